"""The autoscaling law against the fleet simulator: predicted and simulated attainment, and the sizes that follow.

    python benchmarks/autoscale.py [--quick] [--out build/autoscale]

For each workload, topology and rate: steady runs on the virtual clock around the least size that each target needs,
the closed form's attainment at the same sizes, and its least size beside two rivals': replicas at most 70 % busy (what
an HPA on utilisation holds), and a number of requests in flight per replica (what KEDA holds), the one that is right
at the case's middle rate for 95 %. Llama-3.1-8B on A100s with tile steps, noise and stalls; the law sees what
Prometheus would: rates, length histograms, and the scales that the engines fitted. Exit code 1 when the law is ever
short by more than one unit, or right in less than half of the cells. About 6 minutes on 2 cores, `--quick` 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from autoscale_cells import (
    CASES,
    MODEL,
    MOST_UNITS,
    QUICK_RULE,
    RULE,
    TABLE,
    Cell,
    in_flight_rival,
    measure,
)
from rich.console import Console
from rich.table import Table

RIVALS = {"law": "law", "70 % busy": "utilisation", "in flight": "in_flight"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rates a case, and shorter runs")
    parser.add_argument("--out", type=Path, default=Path("build/autoscale"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rule = QUICK_RULE if args.quick else RULE
    rates = {case.name: case.rates[:2] if args.quick else case.rates for case in CASES}
    work = sorted(((case, rate) for case in CASES for rate in rates[case.name]), key=lambda w: -w[1])
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        cells = list(pool.map(partial(measure, rule), *zip(*work, strict=True)))
    order = [case.name for case in CASES]
    cells.sort(key=lambda c: (order.index(c.case), c.rate_rps))
    rivals = {case.name: in_flight_rival(case, [c for c in cells if c.case == case.name]) for case in CASES}
    results = [
        replace(c, sizes=tuple(replace(z, in_flight=rivals[c.case][c.rate_rps]) for z in c.sizes)) for c in cells
    ]
    console = Console(width=110)
    show_trials(console, results)
    show_sizes(console, results)
    figures = {"simulated": True, "cases": [asdict(r) for r in results]}
    (args.out / "autoscale.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw(results, args.out / "autoscale.png")
    missed = verdict(console, results)
    for line in missed:
        console.print(f"MISSED: {line}", style="bold red")
    return 1 if missed else 0


def show_trials(console: Console, cells: Sequence[Cell]) -> None:
    rows = Table(title="attainment, %: predicted by the law and simulated (steady runs, virtual clock, SIMULATED)")
    for column in ("case", "requests/s", "units", "predicted", "simulated", "apart"):
        rows.add_column(column, justify="left" if column == "case" else "right")
    for c in cells:
        for t in c.trials:
            apart = f"{t.predicted - t.simulated:+.1f}"
            rows.add_row(c.case, f"{c.rate_rps:g}", str(t.units), f"{t.predicted:.1f}", f"{t.simulated:.1f}", apart)
    console.print(rows)


def show_sizes(console: Console, cells: Sequence[Cell]) -> None:
    rows = Table(title="least units for 90 / 95 / 99 % — SIMULATED")
    for column in ("case", "requests/s", "simulator", *RIVALS):
        rows.add_column(column, justify="left" if column == "case" else "right")
    for c in cells:
        columns = [" / ".join(str(getattr(z, who)) for z in c.sizes) for who in ("needed", *RIVALS.values())]
        rows.add_row(c.case, f"{c.rate_rps:g}", *columns)
    console.print(rows)


def verdict(console: Console, cells: Sequence[Cell]) -> list[str]:
    """The sum of it: how often each is right, and by how many GPUs it is wrong; what of the law is not good enough."""
    rows = Table(title="over all cells — SIMULATED")
    for column in ("", "right", "within one unit", "short", "GPUs too few", "GPUs too many", "of GPUs needed"):
        rows.add_column(column, justify="left" if not column else "right")
    missed = []
    for who, column in RIVALS.items():
        off = [((getattr(z, column) or MOST_UNITS + 1) - z.needed, c) for c in cells for z in c.sizes if z.needed]
        right, near = (sum(abs(units) <= most for units, _ in off) for most in (0, 1))
        few = sum(-units * c.gpus_per_unit for units, c in off if units < 0)
        many = sum(units * c.gpus_per_unit for units, c in off if units > 0)
        short = sum(units < 0 for units, _ in off)
        needed = sum(z.needed * c.gpus_per_unit for c in cells for z in c.sizes)
        rows.add_row(who, f"{right} of {len(off)}", str(near), str(short), str(few), str(many), str(needed))
        if column == "law":
            missed = [f"{c.case} at {c.rate_rps:g}: {-units} units short" for units, c in off if units < -1]
            missed += [f"right in {right} of {len(off)} cells only"] if right < len(off) / 2 else []
    console.print(rows)
    return missed


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Predicted over simulated attainment, and the sizes of each over those needed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    for name in dict.fromkeys(c.case for c in cells):
        trials = [t for c in cells if c.case == name for t in c.trials]
        left.plot([t.simulated for t in trials], [t.predicted for t in trials], ".", label=name)
    left.plot([0, 100], [0, 100], color="grey", linewidth=0.8)
    left.set(xlabel="simulated attainment, %", ylabel="predicted, %", xlim=(60, 101), ylim=(60, 101))
    left.legend(fontsize=7)
    for (who, column), mark in zip(RIVALS.items(), ("o", "x", "+"), strict=True):
        sized = [(z.needed * c.gpus_per_unit, getattr(z, column) * c.gpus_per_unit) for c in cells for z in c.sizes]
        right.plot(*zip(*sized, strict=True), mark, label=who, fillstyle="none", alpha=0.7)
    most = max(z.needed * c.gpus_per_unit for c in cells for z in c.sizes)
    right.plot([0, most], [0, most], color="grey", linewidth=0.8)
    right.set(xlabel="GPUs that the simulator needs", ylabel="GPUs chosen")
    right.legend(fontsize=8)
    figure.suptitle(f"{MODEL} on {TABLE} — SIMULATED, virtual clock", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
