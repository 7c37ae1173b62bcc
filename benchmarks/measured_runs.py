"""DistServe's measured A100 runs beside their replay on the simulator: attainment at five SLO scales, p50, p90, KS.

    python benchmarks/measured_runs.py [--traces DIR] [--file CSV] [--model opt-13b] [--hold-out] [--out DIR]

Prints a line a run, writes JSON and a figure to build/measured-runs. Exit code 1 when the attainment errors' mean is
above 3 points. The figure shows the distributions of TTFT and TPOT, measured and simulated. Seconds; with --hold-out,
which prints each run under the constants that the other runs choose, a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paceline_planner.papers import measured_runs as experiment
from paceline_planner.papers.measured_holdout import HeldOut, hold_out
from paceline_planner.papers.measured_runs import Comparison, Latency
from rich.console import Console
from rich.table import Table

MEAN_POINTS = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=os.environ.get("PACELINE_TRACES"), help="folder of the traces")
    parser.add_argument("--file", type=Path, help=f"a file of runs; else {experiment.FILE} of the traces")
    parser.add_argument("--model", default=experiment.MODEL)
    parser.add_argument("--hold-out", action="store_true", help="choose the constants without each run in turn")
    parser.add_argument("--out", type=Path, default=Path("build/measured-runs"))
    args = parser.parse_args()
    if args.file is None and args.traces is None:
        parser.error("name the folder of traces with --traces or PACELINE_TRACES, or a file of runs with --file")
    path = args.file or args.traces / experiment.FILE
    runs = experiment.read_runs(path)
    comparisons = [experiment.replay(run, args.model) for run in runs]
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=150)
    show(console, comparisons)
    if args.hold_out:
        show_held_out(console, hold_out(runs, args.model))
    document = {"simulated": True, "runs": [as_json(c) for c in comparisons]}
    (args.out / "runs.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(comparisons, args.out / "runs.png")
    return 1 if experiment.errors(comparisons).mean_points > MEAN_POINTS else 0


def show(console: Console, comparisons: Sequence[Comparison]) -> None:
    rows = Table(title="attainment measured → SIMULATED, %, at SLO scales of 0.2 s and 0.1 s; SIMULATED / measured")
    rows.add_column("run")
    for column in (*(f"{scale:g}" for scale in experiment.SCALES), "TTFT p50, p90", "TPOT p50, p90", "KS TTFT, TPOT"):
        rows.add_column(column, justify="right")
    for c in comparisons:
        cells = [f"{measured:.0f} → {simulated:.0f}" for measured, simulated in c.attainment_percent]
        ratios = [f"{ratio:.2f}" for ratio in c.ratios.values()]
        distances = ", ".join(f"{d:.2f}" for d in c.distances.values())
        version = f"{c.run.name}, before 0.2.2" if c.run.packs else c.run.name
        rows.add_row(version, *cells, ", ".join(ratios[:2]), ", ".join(ratios[2:]), distances)
    console.print(rows)
    for system in ("", *sorted({c.run.system for c in comparisons})):
        found = experiment.errors([c for c in comparisons if c.run.system.startswith(system)])
        console.print(
            f"{system or 'all'}: attainment {found.mean_points:.1f} points apart on average, "
            f"{found.max_points:.1f} at most; worst p50 or p90 {100 * found.worst_ratio:.0f} %",
            highlight=False,
        )


def show_held_out(console: Console, found: Sequence[HeldOut]) -> None:
    for held in found:
        c, errors = held.comparison, experiment.errors([held.comparison])
        vllm, distserve = held.constants.vllm, held.constants.distserve
        chosen = (
            f"{1e3 * vllm.host.sequence_s:g} ms a sequence, prefills × {vllm.prefill_ratio:g}, KV × {vllm.kv_ratio:g}"
            if c.run.system == "vllm"
            else f"front {1e3 * distserve.front_s:g} ms, hand-over {1e3 * distserve.handover_s:g} ms "
            f"and {distserve.handover_bytes_per_s / 1e9:g} GB/s"
        )
        console.print(
            f"{c.run.name}, left out ({chosen}): attainment {errors.mean_points:.1f} points apart on average, "
            f"{errors.max_points:.1f} at most; worst p50 or p90 {100 * errors.worst_ratio:.0f} %",
            highlight=False,
        )


def as_json(c: Comparison) -> dict[str, object]:
    return {
        "run": c.run.name,
        "requests": len(c.run.jobs),
        "packs": c.run.packs,
        "attainment_percent": [
            {"scale": scale, "measured": measured, "simulated": simulated}
            for scale, (measured, simulated) in zip(experiment.SCALES, c.attainment_percent, strict=True)
        ],
        "ratios": c.ratios,
        "ks": c.distances,
    }


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    figure = Figure(figsize=(11, 2.2 * len(comparisons)), layout="constrained")
    axes = figure.subplots(len(comparisons), 2, squeeze=False)
    for (left, right), c in zip(axes, comparisons, strict=True):
        distribution(left, c, experiment.ttft, experiment.SLO.ttft_s)
        distribution(right, c, experiment.tpot, experiment.SLO.tpot_s)
        left.set_ylabel(c.run.name, fontsize=8)
    axes[0, 0].set_title("TTFT, ms")
    axes[0, 1].set_title("TPOT, ms")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle("OPT-13B on A100-80G, ShareGPT: DistServe's measured runs, and the same arrivals SIMULATED")
    figure.savefig(path)


def distribution(axes: Axes, c: Comparison, of: Callable[[Latency], float], limit_s: float) -> None:
    for label, latencies, style in (("measured", c.run.measured, "-"), ("simulated", c.simulated, "--")):
        ordered = sorted(1e3 * of(x) for x in latencies)
        axes.plot(ordered, [(i + 1) / len(ordered) for i in range(len(ordered))], style, label=label)
    axes.axvline(1e3 * limit_s, color="grey", linewidth=0.8)
    axes.set_xlim(0, 3e3 * limit_s)


if __name__ == "__main__":
    sys.exit(main())
