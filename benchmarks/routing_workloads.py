"""What the router's benchmark sends to which fleets: workloads around their capacity, and the sides that are compared.

Eight replicas of Llama-3.1-8B on A100s with tile steps, noise and stalls that no policy knows; engines run the
deadline-driven batching policy. Workloads: Azure's conversation lengths (Poisson) on mixed replicas and on split ones,
Mooncake's conversation trace with prefix caching (its own gaps, stretched to the rate), and three classes together.
PACELINE_TRACES names the folder of traces.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path

from paceline_api.slo import SLOClass
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec
from paceline_engine.tables import load_table
from paceline_planner import workloads
from paceline_planner.judged.cases import jobs as mixed
from paceline_planner.sim.arrivals import job_of, poisson_jobs
from paceline_planner.sim.fleet import EngineSpec, FleetSpec, Job
from paceline_planner.sim.routing import RouterMaker, production
from paceline_planner.sim.seer import seer
from paceline_planner.sim.steady import SteadyRule
from paceline_planner.traces import TraceRequest, read
from paceline_router.facts import Role
from paceline_router.pick import POLICIES
from paceline_router.waiting import Rule

OURS, RIVAL, PERFECT = "least-misses", "lmetric", "perfect inputs"
FRESH, THREE_ROUTERS, ROOM = "state at most 0.1 s old", "three routers", "waiting room"
TABLE, MODEL, REPLICAS, BLOCK = "a100-sxm-80gb", "llama-3.1-8b", 8, 16
LONGEST_TOKENS = 32_000  # of Mooncake's requests; longer ones are left out
SEEDS = (1, 2, 3)
# Shorter than DESIGN §1's steady runs, as in the autoscaler's benchmark: policies are compared on the same arrivals.
RULE = SteadyRule(drop_s=10.0, drop_residences=1.0, arrivals=1000, p99_residences=1.0, halves_points=100.0)
QUICK_RULE = SteadyRule(drop_s=8.0, drop_residences=1.0, arrivals=500, p99_residences=0.5, halves_points=100.0)
CURVE = (0.5, 1.0, 1.25, 1.5, 2.0)  # times the capacity
SOME, NEAR, FULL = (1.0, 1.25), (1.25,), (1.0, 1.25, 2.0)


@dataclass(frozen=True, slots=True)
class Workload:
    """`capacity_rps`: about where nine in ten requests are good with our policy; rates are multiples of it."""

    name: str
    classes: Mapping[str, SLOClass]
    capacity_rps: float
    jobs: Callable[[float, int], Iterator[Job]]
    rules: Mapping[str, Rule]
    roles: Mapping[Role, int]


@dataclass(frozen=True, slots=True)
class Side:
    """A policy in a setting, at `factors` times the capacity."""

    name: str
    policy: str
    factors: tuple[float, ...]
    routers: int = 1
    scrape_every_s: float = 1.0
    waits: bool = False
    make_router: RouterMaker = production


SIDES = (
    Side(OURS, OURS, CURVE),
    Side(RIVAL, RIVAL, CURVE),
    *(Side(policy, policy, SOME) for policy in POLICIES if policy not in (OURS, RIVAL)),
    Side(PERFECT, OURS, SOME, make_router=seer),
    Side(FRESH, OURS, NEAR, scrape_every_s=0.1),
    Side(THREE_ROUTERS, OURS, NEAR, routers=3),
    Side(f"{THREE_ROUTERS}, {RIVAL}", RIVAL, NEAR, routers=3),
    Side(ROOM, OURS, FULL, waits=True),
)


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
    "batch": SLOClass("batch", 10.0, 0.25),
}
WORKLOADS = (
    Workload("azure", CHAT, 70.0, azure_jobs, {}, MIXED),
    Workload("azure-split", CHAT, 54.0, azure_jobs, {}, SPLIT),
    Workload("mooncake", LONG, 10.0, mooncake_jobs, {}, MIXED),
    Workload("mixed", THREE, 100.0, mixed_jobs, {"batch": Rule(priority=1)}, MIXED),
)


def fleet(workload: Workload, side: Side, *, replicas: int = REPLICAS, noisy: bool = True) -> FleetSpec:
    """`replicas` in all, in the workload's proportion; without noise a run depends on what is picked alone."""
    table = load_table(TABLE, MODEL)
    machine = MachineSpec(table) if noisy else MachineSpec(table, noise_ratio=0.0, stall_probability=0.0)
    engines = tuple(
        EngineSpec(f"{role}-{i}", role, ReplicaSpec(machine, block_size=BLOCK))
        for role, n in workload.roles.items()
        for i in range(n * replicas // REPLICAS)
    )
    return FleetSpec(
        engines,
        workload.classes,
        side.policy,
        routers=side.routers,
        scrape_every_s=side.scrape_every_s,
        waiting=workload.rules if side.waits else None,
    )
