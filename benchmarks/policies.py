"""The deadline-driven policy judged against fixed budgets, silos, a long prompt and overload — SIMULATED.

    python benchmarks/policies.py [--quick] [--only slo,mixes,long,topologies] [--router POLICY] [--out build/policies]

For each SLO of `judged/cases.py`: the capacity of one replica under every fixed budget (Sarathi-Serve's policy) and
under the deadline-driven policy, with a gap above the stall cap counted as a miss for both, and whole curves of
attainment and goodput up to twice that capacity, vLLM v0 and v1's default beside them. Then two classes on a shared
fleet against the best integer split into silos, an 85k-token prompt beside short ones, and prefill/decode pools.
Machines have tile steps, noise and stalls; priors are wrong by 25 %. Exit code 1 when a must of issue 6 is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from math import isfinite, prod
from pathlib import Path
from typing import Any

from paceline_api.config import DEFAULT_POLICY
from paceline_api.slo import SLOClass
from paceline_planner.judged.cases import CASES, DEADLINES, FAST_PRIOR, H100, Box
from paceline_planner.judged.contests import (
    Contest,
    LongPrompt,
    Mixes,
    Silo,
    beside_a_long_prompt,
    contest,
    fraction_rps,
    over,
    shared_rps,
    silos,
    split_rps,
    topologies,
)
from paceline_planner.judged.effort import FULL, QUICK, Effort
from paceline_planner.judged.measure import Measured
from paceline_router.pick import POLICIES
from rich.console import Console
from rich.table import Table

LEAST_RATIO, LEAST_MEAN, LEAST_MIX, MOST_POINTS, LEAST_KEPT = 0.95, 1.00, 1.3, 2.0, 0.9
MIXES = Mixes(
    Box(H100, "llama-3.1-70b", 4, FAST_PRIOR),
    2,
    SLOClass("interactive", 0.25, 0.04),
    SLOClass("batch", 10.0, 0.25),
    {"interactive": "chat", "batch": "chat"},
    {"interactive": 8.5, "batch": 15.0},
    (0.25, 0.5, 0.75),
)
CURVE_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # by arithmetic from the silos
# Llama-3.1-8B on an H100 has KV for 443,520 tokens; its table is measured up to 16k prompt tokens after 4k of prefix,
# and its own quadratic term continues it.
LONG = LongPrompt(
    Box(H100, "llama-3.1-8b"),
    SLOClass("interactive", 0.2, 0.03),
    SLOClass("batch", 120.0, 0.25),
    "one long",
    30.0,
    45.0,
)
TOPOLOGY_CASES = ((CASES[2], (9.0, 18.0, 27.0, 36.0)), (CASES[5], (3.0, 6.0, 9.0, 12.0)))
PARTS = ("slo", "mixes", "long", "topologies")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three SLOs, one seed, short runs: shows that it works")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument(
        "--router", default=DEFAULT_POLICY, choices=POLICIES, help="the router's policy in the part `mixes`"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--out", type=Path, default=Path("build/policies"))
    args = parser.parse_args()
    if unknown := sorted(set(args.only.split(",")) - set(PARTS)):
        parser.error(f"no part is called {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=150)
    missed: list[str] = []
    effort = QUICK if args.quick else FULL
    with ProcessPoolExecutor(args.jobs) as pool:
        parts = {"slo": judge_slos, "mixes": judge_mixes, "long": judge_long, "topologies": judge_topologies}
        for part in args.only.split(","):
            figures, misses = parts[part](effort, args, pool, console)
            missed += misses
            document = {"simulated": True, "quick": args.quick, part: figures}
            (args.out / f"{part}.json").write_text(json.dumps(document, indent=1) + "\n")
    for line in missed:
        console.print(f"MISSED: {line}", style="bold red")
    return 1 if missed else 0


Judged = tuple[Any, list[str]]


def judge_slos(effort: Effort, args: argparse.Namespace, pool: ProcessPoolExecutor, console: Console) -> Judged:
    cases = CASES[1:4] if args.quick else CASES
    contests = list(pool.map(partial(contest, effort), cases))
    rows = Table(title="capacity of one replica, requests/s at 90 %, stalls counted as misses — SIMULATED")
    for column in ("SLO", "best fixed", "budget", "deadline-driven", "ratio", "goodput kept at 2x"):
        rows.add_column(column, justify="left" if column == "SLO" else "right")
    for c in contests:
        best = f"{c.fixed_rps[c.best]:.2f}"
        rows.add_row(c.case, best, c.best, f"{c.deadlines_rps:.2f}", f"{c.ratio:.3f}", f"{c.kept_past_capacity:.2f}")
    console.print(rows)
    mean = prod(c.ratio for c in contests) ** (1 / len(contests))
    console.print(f"geometric mean of the ratios: {mean:.3f}")
    draw_curves(contests, args.out / "policies-curves.png")
    missed = [f"{c.case}: {c.ratio:.3f} of the best fixed budget" for c in contests if c.ratio < LEAST_RATIO]
    missed += [f"geometric mean {mean:.3f}"] if not mean >= LEAST_MEAN else []
    missed += [
        f"{c.case}: {100 * c.kept_past_capacity:.0f} % of the peak's goodput at twice the capacity"
        for c in contests
        if c.kept_past_capacity < LEAST_KEPT
    ]
    figures = [{**plain(c, "curves"), "ratio": finite(c.ratio), "curves": curves_json(c.curves)} for c in contests]
    return {"geometric_mean": finite(mean), "contests": figures}, missed


def finite(ratio: float) -> float | None:
    """JSON has no infinity."""
    return ratio if isfinite(ratio) else None


def judge_mixes(effort: Effort, args: argparse.Namespace, pool: ProcessPoolExecutor, console: Console) -> Judged:
    mixes = replace(MIXES, router=args.router)
    shares = mixes.shares[1:2] if args.quick else mixes.shares
    apart_of = [pool.submit(silos, effort, mixes, slo) for slo in (mixes.interactive, mixes.batch)]
    together = dict(zip(shares, pool.map(partial(shared_rps, effort, mixes), shares), strict=True))
    apart: list[Silo] = [s for future in apart_of for s in future.result()]
    rows = Table(
        title=f"two classes on {mixes.replicas} replicas, {mixes.router}, requests/s with both at 90 % — SIMULATED"
    )
    for column in ("interactive share", "best split", "interactive : batch", "split in fractions", "shared", "ratio"):
        rows.add_column(column, justify="right")
    figures, missed = [], []
    for share in sorted({*CURVE_SHARES, *shares}):
        split, n = split_rps(apart, mixes, share)
        fraction, shared = fraction_rps(apart, mixes, share), together.get(share)
        ratio = None if shared is None else over(shared, split)
        measured = ("", "") if ratio is None else (f"{shared:.2f}", f"{ratio:.2f}")
        rows.add_row(f"{share:.0%}", f"{split:.2f}", f"{n} : {mixes.replicas - n}", f"{fraction:.2f}", *measured)
        figures.append({"share": share, "split_rps": split, "fraction_rps": fraction, "shared_rps": shared})
        if ratio is not None and ratio < LEAST_MIX:
            missed.append(f"{share:.0%} interactive: {ratio:.2f}x the best split")
    console.print(rows)
    return {"router": mixes.router, "silos": [asdict(s) for s in apart], "mixes": figures}, missed


def judge_long(effort: Effort, args: argparse.Namespace, pool: ProcessPoolExecutor, console: Console) -> Judged:
    alone, beside, own = pool.submit(beside_a_long_prompt, effort, LONG).result()
    console.print(
        f"85k-token prompts beside 200-token ones at {LONG.rate_rps:g}/s: interactive {alone:.1f} % without, "
        f"{beside:.1f} % with; the long ones {own:.1f} % — SIMULATED"
    )
    missed = [f"a long prompt costs {alone - beside:.1f} points"] if alone - beside > MOST_POINTS else []
    return {"alone_percent": alone, "beside_percent": beside, "long_percent": own, "rate_rps": LONG.rate_rps}, missed


def judge_topologies(effort: Effort, args: argparse.Namespace, pool: ProcessPoolExecutor, console: Console) -> Judged:
    chosen = TOPOLOGY_CASES[:1] if args.quick else TOPOLOGY_CASES
    found = list(pool.map(partial(topologies, effort), *zip(*chosen, strict=True)))
    for (case, rates), sides in zip(chosen, found, strict=True):
        rows = Table(title=f"{case.name}, three replicas: attainment, % — SIMULATED")
        for column in ("side", *(f"{rate:g}/s" for rate in rates)):
            rows.add_column(column, justify="right")
        for name, runs in sides.items():
            rows.add_row(name, *(f"{m.attainment_percent[case.slo.name]:.1f}" for m in runs))
        console.print(rows)
    return [
        {"case": case.name, "sides": curves_json(sides)} for (case, _), sides in zip(chosen, found, strict=True)
    ], []


def plain(value: Any, *without: str) -> dict[str, Any]:
    return {name: v for name, v in asdict(value).items() if name not in without}


def curves_json(curves: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    return {
        name: [{**plain(m, "verdicts"), "verdicts": {" ".join(k): n for k, n in m.verdicts.items()}} for m in runs]
        for name, runs in curves.items()
    }


def draw_curves(contests: Sequence[Contest], path: Path) -> None:
    """Attainment and goodput over rate, one column an SLO."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shape = (2, len(contests))
    figure, axes = plt.subplots(*shape, figsize=(3.1 * len(contests), 5.2), layout="constrained", squeeze=False)
    for column, c in enumerate(contests):
        for name, runs in c.curves.items():
            rates, label = [m.rate_rps for m in runs], "deadline-driven" if name == DEADLINES.name else name
            for row, values in enumerate(
                ([next(iter(m.attainment_percent.values())) for m in runs], [m.goodput_rps for m in runs])
            ):
                axes[row][column].plot(rates, values, marker=".", label=label)
        axes[0][column].set_title(c.case.replace(", ", "\n", 1), fontsize=7)
        axes[0][column].axhline(90, color="grey", linewidth=0.6)
        axes[1][column].set_xlabel("requests/s")
        axes[0][column].legend(fontsize=6)
    axes[0][0].set_ylabel("attainment, %")
    axes[1][0].set_ylabel("goodput, requests/s")
    figure.suptitle("one replica, SIMULATED", fontsize=9)
    figure.savefig(path, dpi=70)


if __name__ == "__main__":
    sys.exit(main())
