"""The router's policies on simulated fleets: goodput over rates, with late state, several routers and twice the load.

    python benchmarks/routing.py [--quick] [--only WORKLOAD,…] [--seeds 1,2,3] [--jobs N] [--out build/routing]
    python benchmarks/routing.py --speed

Ours and LMETRIC from half to twice the capacity, the other policies around it; ours with perfect inputs, fresh state,
three routers whose state is up to 1 s old, and a waiting room. Then the oracle's lines on a small fleet, and one
tenant's burst beside another's steady load. Workloads: routing_workloads.py; goals: routing_goals.py. `--speed`
measures decisions over 128 replicas instead. Exit code 1 when a goal of issue 8 is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from paceline_planner.sim.steady import SteadyRun, steady_run
from rich.console import Console
from routing_goals import Figure, goals, show
from routing_oracle import ORACLE, oracle
from routing_speed import speed
from routing_tenants import TENANTS, tenants
from routing_workloads import (
    FRESH,
    OURS,
    PERFECT,
    QUICK_RULE,
    RIVAL,
    ROOM,
    RULE,
    SEEDS,
    SIDES,
    THREE_ROUTERS,
    WORKLOADS,
    Side,
    Workload,
    fleet,
)

QUICK_FACTORS = (1.0, 1.25, 2.0)
QUICK_SIDES = (OURS, RIVAL, PERFECT, FRESH, THREE_ROUTERS, ROOM)
PARTS = (*(w.name for w in WORKLOADS), ORACLE, TENANTS)


class Task(NamedTuple):
    """One run: indices of workload and side, so that a process can be told of it."""

    workload: int
    side: int
    factor: float
    seed: int
    quick: bool

    @property
    def rate_rps(self) -> float:
        return round(WORKLOADS[self.workload].capacity_rps * self.factor, 1)


def main() -> int:
    args = parse()
    console = Console(width=132)
    if args.speed:
        return speed(console)
    chosen = [w for w in WORKLOADS if w.name in args.only]
    figures = [
        figure for w in chosen for figure in measure(w, args.seeds, args.jobs, quick=args.quick, console=console)
    ]
    missed = [line for w in chosen for line in goals(w.name, figures)]
    found: dict[str, object] = {"simulated": True, "quick": args.quick, "figures": [asdict(f) for f in figures]}
    for name, part in ((ORACLE, oracle), (TENANTS, tenants)):
        if name in args.only:
            found[name], misses = part(console, quick=args.quick)
            missed += misses
    args.out.mkdir(parents=True, exist_ok=True)
    suffix = "" if args.only == PARTS else "-" + "-".join(args.only)
    (args.out / f"routing{suffix}.json").write_text(json.dumps(found, indent=1))
    for line in missed:
        console.print(f"MISSED: {line}", style="bold red")
    return 1 if missed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter runs, three rates, one seed, fewer policies")
    parser.add_argument("--speed", action="store_true", help="only how long a decision takes over 128 replicas")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by name")
    parser.add_argument("--seeds", default=None, help="by default 1,2,3; with --quick 1")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at once")
    parser.add_argument("--out", type=Path, default=Path("build/routing"))
    args = parser.parse_args()
    args.only = tuple(args.only.split(","))
    if unknown := sorted(set(args.only) - set(PARTS)):
        parser.error(f"no workload is called {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    if "PACELINE_TRACES" not in os.environ and not args.speed and set(args.only) - {"mixed", TENANTS}:
        parser.error("name the folder of traces with PACELINE_TRACES, or run --only mixed, which needs none")
    args.seeds = SEEDS[: 1 if args.quick else None] if args.seeds is None else tuple(map(int, args.seeds.split(",")))
    return args


def measure(workload: Workload, seeds: Sequence[int], jobs: int, *, quick: bool, console: Console) -> list[Figure]:
    plan = [
        (side, factor)
        for side in SIDES
        for factor in side.factors
        if not quick or (side.name in QUICK_SIDES and factor in QUICK_FACTORS)
    ]
    w = WORKLOADS.index(workload)
    tasks = [Task(w, SIDES.index(side), factor, seed, quick) for side, factor in plan for seed in seeds]
    runs = iter(run_all(tasks, jobs))
    figures = [figure(workload, side, factor, [next(runs) for _ in seeds]) for side, factor in plan]
    show(console, workload.name, figures)
    return figures


def run_all(tasks: Sequence[Task], jobs: int) -> Iterable[SteadyRun]:
    if jobs == 1:
        return map(run, tasks)
    return _pooled(tasks, jobs)


def _pooled(tasks: Sequence[Task], jobs: int) -> Iterator[SteadyRun]:
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(run, tasks)


def run(task: Task) -> SteadyRun:
    workload, side, rule = WORKLOADS[task.workload], SIDES[task.side], QUICK_RULE if task.quick else RULE
    jobs = workload.jobs(task.rate_rps, task.seed)
    return steady_run(fleet(workload, side), jobs, task.rate_rps, task.seed, rule, side.make_router)


def figure(workload: Workload, side: Side, factor: float, runs: Sequence[SteadyRun]) -> Figure:
    rate = runs[0].rate_rps
    goodputs = tuple(rate * run.attainment_percent / 100 for run in runs)
    quartiles = {
        name: [fmean(qs) for qs in zip(*(run.quartiles[name] for run in runs), strict=True)]
        for name in workload.classes
    }
    return Figure(workload.name, side.name, factor, rate, goodputs, quartiles)


if __name__ == "__main__":
    sys.exit(main())
