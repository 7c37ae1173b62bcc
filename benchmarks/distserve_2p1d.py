"""DistServe's 2P1D example: capacities per GPU on the virtual clock, and three points of it over real HTTP.

    python benchmarks/distserve_2p1d.py [--only virtual|http] [--out build/2p1d]

Prints one table of capacities for each step-time table, the whole curves, and the HTTP points beside the virtual
clock on the same arrivals; writes JSON and a figure. Exit code 1 when 2P1D / prefill-first leaves 1.8–2.4, when an
HTTP point is more than 5 points away, or when its run was not valid. About 6 minutes for the virtual part and 16
for HTTP, on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from paceline_api.slo import SLOClass
from paceline_planner.papers import distserve_2p1d as example
from paceline_planner.papers.distserve_2p1d import SIDES, Side
from paceline_planner.papers.experiment import crossing
from paceline_planner.sim.steady import Capacity, Point, capacity, sweep
from paceline_router.facts import Role
from rich.console import Console
from rich.table import Table
from served import serve

AGGREGATED_GRID = (1.2, 1.5, 1.8, 2.1, 2.4, 2.7, 3.0)
DISAGGREGATED_GRID = (2.4, 2.7, 3.0, 3.3, 3.6, 3.9)
HTTP_POINTS = ((example.PREFILL_FIRST, 1.7), (example.VLLM_V1, 2.2), (example.TWO_P_ONE_D, 3.4))  # requests/s per GPU
HTTP_DURATION_S = 300
HTTP_SEED = 1
HTTP_TOLERANCE_POINTS = 5.0
OTHER_SIDES = (example.PREFILL_FIRST, example.VLLM_V1, example.STALL_FREE, example.TWO_P_ONE_D)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("virtual", "http"), help="one of the two parts")
    parser.add_argument("--out", type=Path, default=Path("build/2p1d"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=110)
    missed: list[str] = []
    if args.only != "http":
        missed += virtual_clock(console, args.out)
    if args.only != "virtual":
        missed += http_points(console, args.out)
    for line in missed:
        console.print(f"MISSED: {line}", style="bold red")
    return 1 if missed else 0


def virtual_clock(console: Console, out: Path) -> list[str]:
    """Capacities and curves on each table; what is wrong with the headline."""
    results: dict[str, object] = {"simulated": True}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = curves(example.TABLE, SIDES, pool)
        show(console, example.TABLE, found)
        draw(found, out / "2p1d.png")
        results[example.TABLE] = as_json(found)
        for table in example.OTHER_TABLES:
            others = curves(table, OTHER_SIDES, pool)
            show(console, table, others)
            results[table] = as_json(others)
    (out / "virtual.json").write_text(json.dumps(results, indent=1) + "\n")
    ratio = found["2P1D"].rate_rps / found["prefill-first"].rate_rps
    console.print(
        f"SIMULATED 2P1D / prefill-first = {ratio:.2f} per GPU on {example.TABLE} (published 3.3 / 1.6 = 2.06)"
    )
    allowed = f"{example.RATIO_LOW}–{example.RATIO_HIGH}"
    return [] if example.RATIO_LOW <= ratio <= example.RATIO_HIGH else [f"{ratio:.2f} is outside {allowed}"]


def curves(table: str, sides: tuple[Side, ...], pool: Executor) -> dict[str, Capacity]:
    """Of each side the whole curve over the grid, and its capacity by bisection between the grid's points around it."""
    found = {}
    for side in sides:
        trial = partial(example.steady, side, table)
        grid = DISAGGREGATED_GRID if side is example.TWO_P_ONE_D else AGGREGATED_GRID
        points = sweep(trial, grid, pool=pool)
        target = 100 * example.SLO.target_ratio
        held = [p.rate_rps for p in points if p.attainment_percent >= target] or [grid[0] / 2]
        above = [rate for rate in grid if rate > max(held)] or [2 * grid[-1]]
        refined = capacity(trial, target, max(held), min(above), pool=pool)
        merged = {p.rate_rps: p for p in (*points, *refined.points)}
        found[side.name] = Capacity(refined.rate_rps, tuple(merged[rate] for rate in sorted(merged)))
    return found


def show(console: Console, table: str, found: dict[str, Capacity]) -> None:
    rows = Table(title=f"requests/s per GPU on {table}: OPT-13B, 512 in, 64 out, 400 ms / 40 ms — SIMULATED")
    for column in ("side", "at 90 %", "at 99 %", "good rps/GPU at best", "/ prefill-first", "/ vLLM v1", "published"):
        rows.add_column(column, justify="left" if column == "side" else "right")
    first, v1 = found["prefill-first"].rate_rps, found["vLLM v1 default"].rate_rps
    for name, result in found.items():
        best = max(p.rate_rps * p.attainment_percent / 100 for p in result.points)
        at_99 = crossing_99(result)
        published = example.PUBLISHED_PER_GPU.get(name)
        rows.add_row(
            name,
            f"{result.rate_rps:.2f}",
            f"{at_99:.2f}" if at_99 else "–",
            f"{best:.2f}",
            f"{result.rate_rps / first:.2f}" if first else "–",
            f"{result.rate_rps / v1:.2f}" if v1 else "–",
            f"{published}" if published else "",
        )
    console.print(rows)
    for name, result in found.items():
        console.print(f"  {name}: " + "  ".join(_point(p) for p in result.points), highlight=False)


def crossing_99(found: Capacity) -> float | None:
    return crossing([(p.rate_rps, p.attainment_percent) for p in found.points], 99.0)


def _point(point: Point) -> str:
    return f"{point.rate_rps:.2f}→{point.attainment_percent:.1f}%" + (" (void)" if point.void else "")


def as_json(found: dict[str, Capacity]) -> dict[str, object]:
    return {
        name: {
            "capacity_rps_per_gpu": result.rate_rps,
            "crossing_99_rps_per_gpu": crossing_99(result),
            "curve": [
                {
                    "rate_rps_per_gpu": p.rate_rps,
                    "attainment_percent": [r.attainment_percent for r in p.runs],
                    "good_output_tokens_per_s": fmean(r.run.classes[0].good_output_tokens_per_s for r in p.runs),
                    "attainment_worst_quartile_percent": [
                        r.run.classes[0].attainment_worst_quartile_percent for r in p.runs
                    ],
                    "void": p.void,
                }
                for p in result.points
            ],
        }
        for name, result in found.items()
    }


def draw(found: dict[str, Capacity], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, result in found.items():
        axes.plot(
            [p.rate_rps for p in result.points],
            [p.attainment_percent for p in result.points],
            marker=".",
            linestyle="--" if name.startswith("fixed") else "-",
            label=f"{name} ({result.rate_rps:.2f})",
        )
    axes.axhline(90, color="grey", linewidth=0.8)
    axes.set(xlabel="requests/s per GPU", ylabel="attainment, %", ylim=(50, 101))
    axes.set_title("OPT-13B on A100, 512 in, 64 out, TTFT 400 ms, TPOT 40 ms — SIMULATED, virtual clock")
    axes.legend(fontsize=8, title="side (capacity at 90 %)", title_fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def service(side: Side) -> dict[str, object]:
    """The side as an LLMService file: the same machines, over HTTP."""
    slo: SLOClass = example.SLO
    machine = ["--table", example.TABLE, "--noise", "0", "--stalls", "0", "--tile-tokens", "1"]
    machine += ["--kv-constant-ms", f"{1e3 * example.HANDOVER_S:g}"]
    machine += ["--kv-bandwidth-gbytes", f"{example.NVLINK_BYTES_PER_S / 1e9:g}"]
    part = side.parts[0]
    policy = ["--policy", part.policy, "--max-batched-tokens", str(part.max_batched_tokens)]
    if part.token_budget:
        policy += ["--token-budget", str(part.token_budget)]
    objective = {"ttftMs": round(1e3 * slo.ttft_s), "tpotMs": round(1e3 * slo.tpot_s), "attainmentPercent": 90}
    aggregated = side.parts[0].role is Role.MIXED
    pools = [
        {"name": p.role, "role": p.role.capitalize(), "replicas": p.count, "accelerator": "a100-sxm-80gb"}
        for p in side.parts
    ]
    return {
        "apiVersion": "paceline.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "example"},
        "spec": {
            "model": {"uri": "hf://facebook/opt-13b", "maxContextTokens": 2048},
            "slo": {"classes": [{"name": slo.name, **objective}]},
            "topology": "Aggregated" if aggregated else "Disaggregated",
            "pools": json.loads(json.dumps(pools)),
            "engine": {"runtime": "Simulated", "extraArgs": machine + policy},
        },
    }


def http_points(console: Console, out: Path) -> list[str]:
    """Each HTTP point beside the virtual clock on the same arrivals; what is wrong with them."""
    rows = Table(
        title=f"SIMULATED engines over HTTP, time scale 1, {HTTP_DURATION_S} s, seed {HTTP_SEED}, same arrivals"
    )
    for column in ("side", "requests/s per GPU", "HTTP", "virtual clock", "apart, points", "valid"):
        rows.add_column(column, justify="left" if column == "side" else "right")
    points: list[dict[str, object]] = []
    missed = []
    for side, rate_per_gpu in HTTP_POINTS:
        rate = rate_per_gpu * side.gpus
        virtual = example.finite(side, example.TABLE, rate, HTTP_DURATION_S, HTTP_SEED).attainment_percent or 0.0
        report = over_http(side, rate, out / side.name.replace(" ", "-").lower())
        served = report["classes"][0]["attainment_percent"]
        apart = abs(served - virtual)
        rows.add_row(
            side.name,
            f"{rate_per_gpu:.2f}",
            f"{served:.1f} %",
            f"{virtual:.1f} %",
            f"{apart:.1f}",
            str(report["valid"]),
        )
        points.append(
            {"side": side.name, "rate_rps": rate, "http": served, "virtual": virtual, "valid": report["valid"]}
        )
        if apart > HTTP_TOLERANCE_POINTS:
            missed.append(f"{side.name} over HTTP is {apart:.1f} points from the virtual clock")
        if not report["valid"]:
            missed.append(f"{side.name} over HTTP: {report['invalid_reason']}")
    console.print(rows)
    (out / "http.json").write_text(json.dumps({"simulated": True, "points": points}, indent=1) + "\n")
    return missed


def over_http(side: Side, rate_rps: float, folder: Path) -> dict[str, Any]:
    """The report of one `paceline up` and `paceline replay`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "service.yaml"
    file.write_text(yaml.safe_dump(service(side), sort_keys=False))
    lengths = f"fixed:{example.LENGTHS.prompt_tokens},{example.LENGTHS.output_tokens}"
    load = ["--synthetic", lengths, "--rate", f"{rate_rps:g}", "--duration", str(HTTP_DURATION_S)]
    return serve(file, [*load, "--seed", str(HTTP_SEED)], folder)


if __name__ == "__main__":
    sys.exit(main())
