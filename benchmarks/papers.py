"""The published results of DistServe and Sarathi-Serve beside the same experiments on the simulator.

    python benchmarks/papers.py [NAME ...] [--quick] [--list] [--traces DIR] [--out build/papers]

Prints, for each experiment, published and our figures with what is allowed, its tables and remarks; writes JSON and a
figure. Exit code 1 when a judged figure is outside its bounds. All figures of ours are SIMULATED. 35 minutes on 2
cores; with --quick a minute, on fewer requests and points, and nothing is judged.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure
from paceline_planner.papers.catalogue import EXPERIMENTS
from paceline_planner.papers.experiment import Experiment, Finding, Grid, Lab, Result
from rich.console import Console
from rich.table import Table


def main() -> int:
    names = [e.name for e in EXPERIMENTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; none: all")
    parser.add_argument("--list", action="store_true", help="name the experiments, and run none")
    parser.add_argument("--quick", action="store_true", help="fewer requests, points and seeds")
    parser.add_argument("--traces", type=Path, default=os.environ.get("PACELINE_TRACES"), help="folder of the traces")
    parser.add_argument("--out", type=Path, default=Path("build/papers"))
    args = parser.parse_args()
    console = Console(width=130)
    if args.list:
        for e in EXPERIMENTS:
            console.print(f"{e.name:<28}{e.title} ({e.source})", highlight=False)
        return 0
    if unknown := sorted(set(args.names) - set(names)):
        parser.error(f"no experiment is called {', '.join(unknown)}; there are: {', '.join(names)}")
    if args.traces is None:
        parser.error("name the folder of traces with --traces or PACELINE_TRACES")
    args.out.mkdir(parents=True, exist_ok=True)
    missed: list[str] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        lab = Lab(args.traces, args.quick, pool)
        for experiment in EXPERIMENTS:
            if not args.names or experiment.name in args.names:
                missed += run(experiment, lab, console, args.out)
    for line in missed:
        console.print(f"MISSED: {line}", style="bold red", highlight=False)
    return 1 if missed else 0


def run(experiment: Experiment, lab: Lab, console: Console, out: Path) -> list[str]:
    """Run one experiment, print and write it; which judged findings are outside their bounds, none of a quick run."""
    began = time.monotonic()
    result = experiment.run(lab)
    seconds = time.monotonic() - began
    console.rule(f"{experiment.title} ({experiment.source}): SIMULATED, {seconds:.0f} s")
    show(console, result, judged=not lab.quick)
    values = {"simulated": True, "quick": lab.quick, "seconds": round(seconds, 1), **asdict(result)}
    (out / f"{experiment.name}.json").write_text(json.dumps(values, indent=1) + "\n")
    if result.panels:
        draw(experiment, result, out / f"{experiment.name}.png")
    missed = [] if lab.quick else [f for f in result.findings if not f.held]
    return [f"{experiment.name}: {f.name}: {cell(f.ours)}, allowed {bounds(f)}" for f in missed]


def show(console: Console, result: Result, *, judged: bool) -> None:
    if result.findings:
        console.print(text_table(findings_grid(result.findings, judged=judged)))
    for grid in result.grids:
        console.print(text_table(grid))
    for remark in result.remarks:
        console.print(f"- {remark}", highlight=False)


def findings_grid(findings: tuple[Finding, ...], *, judged: bool) -> Grid:
    rows = []
    for f in findings:
        verdict = "" if not judged or not f.is_judged else "held" if f.held else "MISSED"
        rows.append((f.name, cell(f.published), cell(f.ours), bounds(f), verdict, f.unit, f.note))
    return Grid("", ("figure", "published", "ours, SIMULATED", "allowed", "", "unit", "note"), tuple(rows))


def cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def bounds(f: Finding) -> str:
    if not f.is_judged:
        return ""
    low = "" if f.low is None else f"{f.low:.3g}"
    high = "" if f.high is None else f"{f.high:.3g}"
    return f"{low}–{high}" if low and high else f"≥ {low}" if low else f"≤ {high}"


def text_table(grid: Grid) -> Table:
    table = Table(title=grid.title or None)
    for i, column in enumerate(grid.columns):
        table.add_column(column, justify="right" if i else "left")
    for row in grid.rows:
        table.add_row(*row)
    return table


def draw(experiment: Experiment, result: Result, path: Path) -> None:
    columns = min(3, len(result.panels))
    rows = -(-len(result.panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, panel in zip(axes, result.panels, strict=False):
        for curve in panel.curves:
            style = {"linestyle": "--", "marker": "x"} if curve.published else {"marker": "."}
            ax.plot(*zip(*curve.points, strict=True), label=curve.name, linewidth=1.2, **style)
        ax.set_title(panel.title, fontsize=9)
        ax.set_xlabel(panel.x, fontsize=8)
        ax.set_ylabel(panel.y, fontsize=8)
        ax.tick_params(labelsize=7)
        ax.legend(fontsize=7)
    for ax in axes[len(result.panels) :]:
        ax.set_visible(False)
    figure.suptitle(f"{experiment.title} ({experiment.source}) — SIMULATED; dashed: published", fontsize=10)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
