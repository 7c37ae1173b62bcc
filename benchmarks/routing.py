"""The router's policies on simulated fleets: goodput over rates, with late state, several routers and twice the load.

    python benchmarks/routing.py [--quick] [--speed] [--only WORKLOAD,…] [--out build/routing]

Eight replicas of Llama-3.1-8B on A100s with tile steps, noise and stalls that no policy knows; engines run the
deadline-driven batching policy. Workloads: Azure's conversation lengths (Poisson), Mooncake's conversation trace with
prefix caching (stretched to the rate), and three classes together. LMETRIC and ours at every rate, the other policies
at the middle one; three seeds, 95 % intervals of Student's t. Then ours with fresh state, with three routers whose
state is up to 1 s old, and with a waiting room at twice the highest rate. `--speed` measures decisions over 128
replicas instead. Exit code 1 when a goal of issue 8 is missed. PACELINE_TRACES names the folder of traces.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean, stdev

from paceline_api.slo import SLOClass
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec
from paceline_engine.tables import load_table
from paceline_planner import workloads
from paceline_planner.judged.cases import jobs as mixed
from paceline_planner.sim.arrivals import job_of, poisson_jobs
from paceline_planner.sim.fleet import EngineSpec, FleetSpec, Job
from paceline_planner.sim.steady import SteadyRule, SteadyRun, steady_run
from paceline_planner.traces import TraceRequest, read
from paceline_router.facts import Role
from paceline_router.pick import POLICIES
from paceline_router.waiting import Rule
from rich.console import Console
from rich.table import Table
from routing_speed import speed

OURS, RIVAL = "least-misses", "lmetric"
TABLE, MODEL, REPLICAS, BLOCK = "a100-sxm-80gb", "llama-3.1-8b", 8, 16
LONGEST_TOKENS = 32_000  # of Mooncake's requests; longer ones are left out
SEEDS, STUDENT_T = (1, 2, 3), {2: 12.706, 3: 4.303}
# Shorter than DESIGN §1's steady runs, as in the autoscaler's benchmark: policies are compared on the same arrivals.
RULE = SteadyRule(drop_s=10.0, drop_residences=1.0, arrivals=2000, p99_residences=1.0, halves_points=100.0)
QUICK_RULE = SteadyRule(drop_s=8.0, drop_residences=1.0, arrivals=1200, p99_residences=0.5, halves_points=100.0)
Jobs = Callable[[float, int], Iterator[Job]]


@dataclass(frozen=True, slots=True)
class Workload:
    """`rates` in requests per second, ascending, around the capacity of the fleet."""

    name: str
    classes: Mapping[str, SLOClass]
    rates: tuple[float, ...]
    jobs: Jobs
    rules: Mapping[str, Rule]
    roles: Mapping[Role, int]


@dataclass(frozen=True, slots=True)
class Figure:
    """One policy at one rate over the seeds. `half` is that of the 95 % interval; quartiles by prompt length."""

    workload: str
    setting: str
    rate_rps: float
    goodput_rps: float
    half_rps: float
    attainment_percent: float
    worst_quartile_percent: float
    seeds: tuple[float, ...]


def traces() -> Path:
    return Path(os.environ["PACELINE_TRACES"])


@cache
def azure_lengths() -> tuple[tuple[int, int], ...]:
    path = traces() / "azure/AzureLLMInferenceTrace_conv.csv"
    return tuple((r.prompt_tokens, r.output_tokens) for r in read(path))


@cache
def mooncake() -> tuple[TraceRequest, ...]:
    found = read(traces() / "mooncake/conversation_trace.jsonl")
    return tuple(r for r in found if r.prompt_tokens + r.output_tokens <= LONGEST_TOKENS)


def azure_jobs(rate_rps: float, seed: int) -> Iterator[Job]:
    return poisson_jobs(workloads.Empirical(azure_lengths()), rate_rps, seed, "chat")


def mooncake_jobs(rate_rps: float, seed: int) -> Iterator[Job]:
    """The trace from a quarter of its own for each seed, over and over, with its gaps stretched to the rate."""
    requests = mooncake()
    mean_s = requests[-1].arrival_s / len(requests)
    first = (seed - 1) * len(requests) // 4
    at, before = 0.0, requests[first].arrival_s
    for r in islice(cycle(requests), first, None):
        at += max(r.arrival_s - before, 0.0) / (mean_s * rate_rps)
        before = r.arrival_s
        yield replace(job_of(r, "chat", BLOCK), arrival_s=at)


mixed_jobs = partial(mixed, {"chat": (0.4, "chat"), "code": (0.3, "code"), "batch": (0.3, "summarisation")})
MIXED, SPLIT = {Role.MIXED: REPLICAS}, {Role.PREFILL: REPLICAS // 2, Role.DECODE: REPLICAS // 2}
CHAT = {"chat": SLOClass("chat", 0.5, 0.04)}
LONG = {"chat": SLOClass("chat", 2.0, 0.05, ttft_s_per_1k_prompt_tokens=0.2)}
THREE = {
    "chat": SLOClass("chat", 1.0, 0.05),
    "code": SLOClass("code", 0.3, 0.02),
    "batch": SLOClass("batch", 30.0, 0.25),
}
WORKLOADS = (
    Workload("azure", CHAT, (54.0, 60.0, 66.0), azure_jobs, {}, MIXED),
    Workload("azure-split", CHAT, (48.0, 54.0, 60.0), azure_jobs, {}, SPLIT),
    Workload("mooncake", LONG, (7.0, 9.0, 11.0), mooncake_jobs, {}, MIXED),
    Workload("mixed", THREE, (100.0, 120.0, 140.0), mixed_jobs, {"batch": Rule(priority=1)}, MIXED),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, LMETRIC and ours, two rates, shorter runs")
    parser.add_argument("--speed", action="store_true", help="only how long a decision takes over 128 replicas")
    parser.add_argument("--only", default=",".join(w.name for w in WORKLOADS), help="workloads, by name")
    parser.add_argument("--out", type=Path, default=Path("build/routing"))
    args = parser.parse_args()
    console = Console(width=120)
    if args.speed:
        return speed(console)
    if unknown := sorted(set(args.only.split(",")) - {w.name for w in WORKLOADS}):
        parser.error(f"no workload is called {', '.join(unknown)}; there are: {', '.join(w.name for w in WORKLOADS)}")
    chosen = [w for w in WORKLOADS if w.name in args.only.split(",")]
    if "PACELINE_TRACES" not in os.environ and any(w.jobs is not mixed_jobs for w in chosen):
        parser.error("name the folder of traces with PACELINE_TRACES, or run --only mixed, which needs none")
    figures = [figure for workload in chosen for figure in measure(workload, quick=args.quick, console=console)]
    args.out.mkdir(parents=True, exist_ok=True)
    found = {"simulated": True, "quick": args.quick, "figures": [asdict(f) for f in figures]}
    (args.out / f"routing{'-' + args.only if len(chosen) == 1 else ''}.json").write_text(json.dumps(found, indent=1))
    missed = [line for workload in chosen for line in goals(workload.name, figures)]
    for line in missed:
        console.print(f"MISSED: {line}", style="bold red")
    return 1 if missed else 0


def measure(workload: Workload, *, quick: bool, console: Console) -> list[Figure]:
    seeds, rule = (SEEDS[:1], QUICK_RULE) if quick else (SEEDS, RULE)
    rates = workload.rates[1:] if quick else workload.rates
    middle, top = workload.rates[1], workload.rates[-1]
    rivals = [] if quick else [name for name in POLICIES if name not in (OURS, RIVAL)]
    plan: list[tuple[str, float, FleetSpec]] = [
        *((policy, rate, fleet(workload, policy)) for rate in rates for policy in (OURS, RIVAL)),
        *((policy, middle, fleet(workload, policy)) for policy in rivals),
        ("state at most 0.1 s old", middle, fleet(workload, OURS, scrape_every_s=0.1)),
        ("three routers", middle, fleet(workload, OURS, routers=3)),
        ("three routers, lmetric", middle, fleet(workload, RIVAL, routers=3)),
        *((f"{policy}, twice", 2 * top, fleet(workload, policy)) for policy in (OURS, RIVAL)),
        ("waiting room", middle, fleet(workload, OURS, waiting=workload.rules)),
        ("waiting room", top, fleet(workload, OURS, waiting=workload.rules)),
        ("waiting room, twice", 2 * top, fleet(workload, OURS, waiting=workload.rules)),
    ]
    figures = []
    for setting, rate, spec in plan:
        runs = [steady_run(spec, workload.jobs(rate, seed), rate, seed, rule) for seed in seeds]
        figures.append(figure(workload.name, setting, rate, runs))
    show(console, workload, figures)
    return figures


def fleet(
    workload: Workload,
    policy: str,
    *,
    routers: int = 1,
    scrape_every_s: float = 1.0,
    waiting: Mapping[str, Rule] | None = None,
) -> FleetSpec:
    machine = MachineSpec(load_table(TABLE, MODEL))
    engines = tuple(
        EngineSpec(f"{role}-{i}", role, ReplicaSpec(machine, block_size=BLOCK, hands_over=role is Role.PREFILL))
        for role, n in workload.roles.items()
        for i in range(n)
    )
    return FleetSpec(engines, workload.classes, policy, routers=routers, scrape_every_s=scrape_every_s, waiting=waiting)


def figure(workload: str, setting: str, rate: float, runs: Sequence[SteadyRun]) -> Figure:
    goodputs = [rate * run.attainment_percent / 100 for run in runs]
    half = STUDENT_T[len(goodputs)] * stdev(goodputs) / len(goodputs) ** 0.5 if len(goodputs) > 1 else 0.0
    worst = fmean(min(c.attainment_worst_quartile_percent or 0.0 for c in run.run.classes) for run in runs)
    attained = fmean(run.attainment_percent for run in runs)
    return Figure(workload, setting, rate, fmean(goodputs), half, attained, worst, tuple(goodputs))


def show(console: Console, workload: Workload, figures: Sequence[Figure]) -> None:
    rows = Table(title=f"{workload.name}: good requests/s, attainment and its worst prompt-length quartile — SIMULATED")
    for column in ("policy or setting", "requests/s", "good/s", "± 95 %", "attained %", "worst quartile %"):
        rows.add_column(column, justify="left" if column.startswith("policy") else "right")
    for f in figures:
        figure = (f"{x:.1f}" for x in (f.goodput_rps, f.half_rps, f.attainment_percent, f.worst_quartile_percent))
        rows.add_row(f.setting, f"{f.rate_rps:g}", *figure)
    console.print(rows)


def goals(name: str, figures: Sequence[Figure]) -> list[str]:
    """What of issue 8's goals a workload misses."""
    of = {(f.setting, f.rate_rps): f for f in figures if f.workload == name}
    rates = sorted({rate for setting, rate in of if setting == RIVAL})
    missed, middle = [], rates[-2]
    for rate in rates:
        if of[OURS, rate].goodput_rps < 0.98 * of[RIVAL, rate].goodput_rps:
            missed.append(f"{name} at {rate:g}: more than 2 % under LMETRIC")
    if name == "mixed" and max(of[OURS, r].goodput_rps / of[RIVAL, r].goodput_rps for r in rates) < 1.1:
        missed.append("mixed classes: less than 10 % above LMETRIC")
    if of["three routers", middle].goodput_rps < 0.95 * of[OURS, middle].goodput_rps:
        missed.append(f"{name}: three routers cost more than 5 %")
    if of[OURS, middle].goodput_rps < 0.95 * of["state at most 0.1 s old", middle].goodput_rps:
        missed.append(f"{name}: state 1 s old costs more than 5 %")
    rooms = [f for (setting, _), f in of.items() if setting == "waiting room"]
    peak, twice = max(rooms, key=lambda f: f.goodput_rps), of["waiting room, twice", 2 * rates[-1]]
    if twice.goodput_rps < 0.9 * peak.goodput_rps:
        missed.append(f"{name}: at twice the load goodput is below 90 % of its peak")
    if twice.worst_quartile_percent < 0.5 * peak.worst_quartile_percent:
        missed.append(
            f"{name}: at twice the load the worst quartile attains less than half of what it does at the peak"
        )
    return missed


if __name__ == "__main__":
    sys.exit(main())
