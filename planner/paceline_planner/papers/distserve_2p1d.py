"""DistServe's introductory example: OPT-13B on A100s, 512 tokens in, 64 out, TTFT 400 ms, TPOT 40 ms, 90 %.

Published (DistServe blog and OSDI'24 §1): 1.6 requests/s per GPU when prefill-first vLLM serves both phases on one
GPU, 3.3 with two prefill GPUs and one decode GPU. Here both are steady runs on the virtual clock, beside vLLM v1's
default, the best fixed budget and the deadline-driven policy on one GPU. Every side of a ratio runs on the same
step-time table. The machines are the table itself, without tile steps and noise, and policies know it exactly: what
differs is scheduling alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from paceline_api.slo import SLOClass
from paceline_engine.policies.step import Limits
from paceline_engine.sim.setup import ReplicaSpec
from paceline_engine.tables import load_table
from paceline_router.facts import Role

from paceline_planner.aggregate import Record
from paceline_planner.papers.measured_machines import machine
from paceline_planner.report import Run, RunTally
from paceline_planner.sim.arrivals import poisson_jobs
from paceline_planner.sim.fleet import EngineSpec, Fleet, FleetSpec, Job, Ride
from paceline_planner.sim.steady import SteadyRun, steady_run
from paceline_planner.validity import Lateness
from paceline_planner.workloads import Fixed

MODEL = "opt-13b"
LENGTHS = Fixed(512, 64)
SLO = SLOClass("interactive", ttft_s=0.4, tpot_s=0.04, target_ratio=0.9)
TABLE = "a100-sxm-80gb.distserve-vllm"  # simdistserve's fit of vLLM with its host term (PAPERS §2.5)
OTHER_TABLES = ("a100-sxm-80gb.distserve", "a100-sxm-80gb")
PUBLISHED_PER_GPU = {"prefill-first": 1.6, "2P1D": 3.3}
RATIO_LOW, RATIO_HIGH = 1.8, 2.4  # of 2P1D to prefill-first, per GPU
NVLINK_BYTES_PER_S = 300e9  # A100 SXM, one direction (NVIDIA A100 data sheet: 600 GB/s both ways)
HANDOVER_S = 0.001
FIXED_BUDGETS = (128, 256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Part:
    """`count` like replicas of one GPU each."""

    role: Role
    policy: str
    count: int = 1
    token_budget: int = 0
    max_batched_tokens: int = 8192


@dataclass(frozen=True, slots=True)
class Side:
    """One way of serving the example."""

    name: str
    parts: tuple[Part, ...]

    @property
    def gpus(self) -> int:
        return sum(part.count for part in self.parts)


PREFILL_FIRST = Side("prefill-first", (Part(Role.MIXED, "vllm-v0", max_batched_tokens=2560),))
VLLM_V1 = Side("vLLM v1 default", (Part(Role.MIXED, "vllm-v1", token_budget=2048),))
TWO_P_ONE_D = Side("2P1D", (Part(Role.PREFILL, "stall-free", 2), Part(Role.DECODE, "stall-free")))
STALL_FREE = Side("deadline-driven", (Part(Role.MIXED, "stall-free"),))
SIDES = (
    PREFILL_FIRST,
    VLLM_V1,
    *(Side(f"fixed budget {b}", (Part(Role.MIXED, "sarathi", token_budget=b),)) for b in FIXED_BUDGETS),
    STALL_FREE,
    TWO_P_ONE_D,
)


def fleet(side: Side, table: str) -> FleetSpec:
    """The side on deterministic machines of one table."""
    of = machine(load_table(table, MODEL), kv_constant_s=HANDOVER_S, kv_bytes_per_s=NVLINK_BYTES_PER_S)
    engines = []
    for part in side.parts:
        limits = Limits(max_batched_tokens=part.max_batched_tokens)
        spec = ReplicaSpec(of, part.policy, None, limits, part.token_budget)
        engines += [EngineSpec(f"{part.role}-{i}", part.role, spec) for i in range(part.count)]
    return FleetSpec(tuple(engines), {SLO.name: SLO})


def jobs(rate_rps: float, seed: int) -> Iterator[Job]:
    """The example's requests without end."""
    return poisson_jobs(LENGTHS, rate_rps, seed, SLO.name)


def steady(side: Side, table: str, rate_per_gpu: float, seed: int) -> SteadyRun:
    rate = rate_per_gpu * side.gpus
    return steady_run(fleet(side, table), jobs(rate, seed), rate, seed)


def finite(side: Side, table: str, rate_rps: float, duration_s: float, seed: int) -> Run:
    """Every arrival of `duration_s` seconds, from an empty fleet: what one `paceline replay` measures of `up`."""
    tally = RunTally({SLO.name: SLO})

    def ended(ride: Ride) -> bool:
        tally.add(Record(ride.job.class_name, ride.course), ride.course.end_s or 0.0)
        return False

    simulated = Fleet(fleet(side, table), seed, ended)
    simulated.run(takewhile(lambda job: job.arrival_s < duration_s, jobs(rate_rps, seed)))
    simulated.check()
    return tally.run(rate_rps, duration_s, gpus=side.gpus, lateness=Lateness(virtual=True), simulated=True)
