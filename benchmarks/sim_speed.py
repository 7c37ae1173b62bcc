"""How fast the fleet simulator is: output tokens per second of one core's time, with KV caches more than 60 % full.

    python benchmarks/sim_speed.py [--out build/sim-speed]

Llama-2-13B on A100s of 58,784 tokens of KV, chat-like lengths. One engine and
fleets of 8 and 16, under a fixed token budget and under the deadline-driven one, with and without token gaps; then one
engine for 1, 2 and 4 times as long: the time of a token must not grow with the run. Each figure is the best of three
runs. Prints a table, writes JSON; exit code 1 below 200,000 tokens/s, at 60 % KV use or less, or when the cost of a
token differs by more than a fifth. A minute on one core.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from random import Random
from statistics import fmean

from paceline_api.slo import SLOClass
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec
from paceline_engine.tables import load_table
from paceline_planner import workloads
from paceline_planner.sim.fleet import EngineSpec, Fleet, FleetSpec, Job, Ride
from paceline_router.facts import Role
from rich.console import Console
from rich.table import Table

LEAST_TOKENS_S, LEAST_KV_USE, MOST_SPREAD = 200_000, 0.6, 1.2
RATE_RPS = 3.5  # of one engine: its KV cache is about three quarters full
SLO = SLOClass("interactive", ttft_s=2.0, tpot_s=0.1, target_ratio=0.9)
BUDGETS = {"sarathi": 512, "stall-free": 0}
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Case:
    policy: str
    engines: int
    duration_s: float
    gaps: bool = False


@dataclass(frozen=True, slots=True)
class Speed:
    """`kv_use` is the mean over completions and engines while load arrives."""

    tokens: int
    steps: int
    seconds: float
    kv_use: float

    @property
    def tokens_s(self) -> float:
        return self.tokens / self.seconds


FLEETS = [
    Case(p, n, s, gaps) for p in BUDGETS for n, s in ((1, 120.0), (8, 60.0), (16, 40.0)) for gaps in (False, True)
]
LENGTHS = [Case(p, 1, 120.0 * times) for p in BUDGETS for times in (1, 2, 4)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/sim-speed"))
    args = parser.parse_args()
    found = {case: min((measure(case) for _ in range(REPEATS)), key=lambda s: s.seconds) for case in FLEETS + LENGTHS}
    show(found)
    args.out.mkdir(parents=True, exist_ok=True)
    values = [asdict(case) | asdict(speed) | {"tokens_s": speed.tokens_s} for case, speed in found.items()]
    (args.out / "speed.json").write_text(json.dumps(values, indent=1) + "\n")
    missed = list(judge(found))
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if missed else 0


def measure(case: Case) -> Speed:
    """One run, seconds of this process's CPU time from the first event to the last."""
    machine = MachineSpec(load_table("a100-sxm-80gb", "llama-2-13b"))
    spec = ReplicaSpec(machine, case.policy, token_budget=BUDGETS[case.policy])
    engines = tuple(EngineSpec(f"mixed-{i}", Role.MIXED, spec) for i in range(case.engines))
    tokens = 0
    kv_use: list[float] = []

    def ended(ride: Ride) -> bool:
        nonlocal tokens
        tokens += ride.course.output_tokens or 0
        if case.duration_s / 4 < fleet.now < case.duration_s:
            kv_use.append(fmean(engine.view.kv.usage for engine in fleet.engines.values()))
        return False

    fleet = Fleet(FleetSpec(engines, {SLO.name: SLO}, record_gaps=case.gaps), 1, ended)
    offered = list(takewhile(lambda job: job.arrival_s < case.duration_s, jobs(RATE_RPS * case.engines)))
    gc.collect()
    began = time.process_time()
    fleet.run(iter(offered))
    seconds = time.process_time() - began
    fleet.check()
    steps = sum(engine.counters.steps for engine in fleet.engines.values())
    return Speed(tokens, steps, seconds, fmean(kv_use))


def jobs(rate_rps: float) -> Iterator[Job]:
    """Prompts of 400 tokens and answers of 270 in the middle, lognormal."""
    rng = Random(1)
    for arrival_s in workloads.poisson_arrivals(rate_rps, Random(2)):
        yield Job(arrival_s, int(rng.lognormvariate(6.0, 0.8)) + 1, int(rng.lognormvariate(5.6, 0.6)) + 1, SLO.name)


def show(found: dict[Case, Speed]) -> None:
    table = Table(title="the simulator's own speed, one core")
    for column in ("policy", "engines", "load, s", "gaps kept", "tokens", "KV use", "batch", "steps/s", "tokens/s"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for case, s in found.items():
        table.add_row(
            case.policy,
            str(case.engines),
            f"{case.duration_s:g}",
            "yes" if case.gaps else "no",
            f"{s.tokens:,}",
            f"{100 * s.kv_use:.0f} %",
            f"{s.tokens / s.steps:.0f}",
            f"{s.steps / s.seconds:,.0f}",
            f"{s.tokens_s:,.0f}",
        )
    Console(width=110).print(table)


def judge(found: dict[Case, Speed]) -> Iterator[str]:
    for case, s in found.items():
        if s.tokens_s < LEAST_TOKENS_S:
            yield f"{case}: {s.tokens_s:,.0f} tokens/s, at least {LEAST_TOKENS_S:,} allowed"
        if s.kv_use <= LEAST_KV_USE:
            yield f"{case}: KV use {100 * s.kv_use:.0f} %, it must be above {100 * LEAST_KV_USE:.0f} %"
    for policy in BUDGETS:
        costs = [found[case].seconds / found[case].tokens for case in LENGTHS if case.policy == policy]
        if max(costs) / min(costs) > MOST_SPREAD:
            shown = ", ".join(f"{1e6 * c:.2f}" for c in costs)
            yield f"{policy}: {shown} µs a token over 1, 2 and 4 times the load: not linear"


if __name__ == "__main__":
    sys.exit(main())
