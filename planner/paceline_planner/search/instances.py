"""What is asked of a placement, on which machines; and what one instance of a phase, or a pair of them, sustains.

DistServe's simu_prefill, simu_decode and simulate (OSDI'24, Algorithms 1 and 2): a phase is simulated alone, a prefill
instance without anybody to hand over to, a decode instance behind one that computes prompts in no time. Invariant: the
same demand brings the same requests to every instance. Rates are requests per second, times seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from random import Random
from statistics import fmean
from typing import Protocol

from paceline_api.config import DEFAULT_POLICY
from paceline_api.slo import SLOClass
from paceline_engine.sim.setup import ReplicaSpec
from paceline_engine.step_time import HostTerm, StepTable
from paceline_router.facts import Role

from paceline_planner.search.trial import attained_ratio, highest_rate, serve
from paceline_planner.sim.arrivals import poisson_jobs
from paceline_planner.sim.rides import EngineSpec, FleetSpec, Job
from paceline_planner.sim.steady import SteadyRule, steady_run
from paceline_planner.workloads import LengthSource

UNLIMITED_S = 1e9
AMPLE_BLOCKS = 1 << 20
# Shorter than DESIGN §1's steady run: a search has hundreds of them, and only compares.
SEARCH_RULE = SteadyRule(
    drop_s=20, drop_residences=2, arrivals=600, p99_residences=3, halves_points=100, most_arrivals=3000
)


@dataclass(frozen=True, slots=True, order=True)
class Parallel:
    """Tensor and pipeline parallelism of one instance."""

    tensor: int
    pipeline: int = 1

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline

    def __str__(self) -> str:
        return f"TP{self.tensor}PP{self.pipeline}"


class NoInstance(LookupError):
    """There is no such instance: nobody timed it, or the model does not fit or does not divide so."""


class Machines(Protocol):
    """Where instances come from."""

    def instance(self, role: Role, parallel: Parallel) -> EngineSpec:
        """A prefill or decode instance; NoInstance."""
        ...


@dataclass(frozen=True, slots=True)
class Demand:
    """Poisson arrivals of `lengths`, the class that they belong to, and how each rate is tried.

    `rule` is that of a steady run, or a number of requests that an empty fleet serves, as DistServe's simulator tries
    rates: shorter, and kinder to what is slow to fill up. `transfer_in_tpot` counts the hand-over as DistServe does
    (DESIGN §1). No phase by itself is tried beyond `most_rps_per_gpu`.
    """

    lengths: LengthSource
    slo: SLOClass
    rule: SteadyRule | int = SEARCH_RULE
    seeds: tuple[int, ...] = (1,)
    transfer_in_tpot: bool = False
    front_s: float = 0.0
    router_policy: str = DEFAULT_POLICY
    most_rps_per_gpu: float = 16.0

    def jobs(self, rate_rps: float, seed: int) -> Iterator[Job]:
        return poisson_jobs(self.lengths, rate_rps, seed, self.slo.name)

    def attained_percent(self, spec: FleetSpec, rate_rps: float) -> float:
        """Mean over the seeds."""
        return fmean(self._attained_percent(spec, rate_rps, seed) for seed in self.seeds)

    def _attained_percent(self, spec: FleetSpec, rate_rps: float, seed: int) -> float:
        jobs = self.jobs(rate_rps, seed)
        if isinstance(self.rule, SteadyRule):
            return steady_run(spec, jobs, rate_rps, seed, self.rule).attainment_percent
        return 100 * attained_ratio(spec.classes[self.slo.name], serve(spec, islice(jobs, self.rule), seed))

    def goodput_rps(
        self, spec: FleetSpec, guess_rps: float, tolerance: float = 0.02, most_rps: float = inf, first_step: float = 2.0
    ) -> float:
        """The highest rate at which the class's target is met, looked for up to `most_rps`."""
        target = 100 * self.slo.target_ratio

        def meets(rate_rps: float) -> bool:
            return self.attained_percent(spec, rate_rps) >= target

        return highest_rate(meets, guess_rps, tolerance, most_rps, first_step)

    def fleet(self, engines: tuple[EngineSpec, ...]) -> FleetSpec:
        classes = {self.slo.name: self.slo}
        return FleetSpec(
            engines, classes, self.router_policy, transfer_in_tpot=self.transfer_in_tpot, front_s=self.front_s
        )


@dataclass(frozen=True, slots=True)
class _FirstToken:
    """Lengths whose answers are one token."""

    lengths: LengthSource

    def draw(self, rng: Random) -> tuple[int, int]:
        return self.lengths.draw(rng)[0], 1


def prefill_alone(demand: Demand, *instances: EngineSpec) -> tuple[Demand, FleetSpec]:
    """Instances that compute prompts for nobody: TTFT alone is judged."""
    alone = replace(demand, lengths=_FirstToken(demand.lengths), transfer_in_tpot=False)
    mixed = (replace(e, role=Role.MIXED) for e in instances)
    return alone, alone.fleet(tuple(mixed))


def decode_alone(demand: Demand, *instances: EngineSpec) -> tuple[Demand, FleetSpec]:
    """Instances behind a prefill that takes no time: TPOT alone is judged, with the hand-over in it."""
    slo = replace(demand.slo, ttft_s=UNLIMITED_S)
    alone = replace(demand, slo=slo, transfer_in_tpot=True)
    machine = replace(instances[0].spec.machine, table=_in_no_time(instances[0].spec.machine.table), stages=1)
    source = ReplicaSpec(machine, "prefill-only", kv_blocks=AMPLE_BLOCKS)
    return alone, alone.fleet((EngineSpec("source", Role.PREFILL, source, 0), *instances))


def _in_no_time(table: StepTable) -> StepTable:
    none = ((1, 1e-9),)
    return replace(table, linear=none, pair_s=0.0, mixed_s=0.0, decode=((1, 1e-9, 0.0),), host=HostTerm())


def prefill_goodput_rps(demand: Demand, instance: EngineSpec) -> float:
    """DistServe's simu_prefill: what one instance sustains of the demand's prompts within TTFT."""
    return _alone_rps(*prefill_alone(demand, instance), instance.gpus)


def decode_goodput_rps(demand: Demand, instance: EngineSpec) -> float:
    """DistServe's simu_decode: what one instance sustains of the demand's answers within TPOT."""
    return _alone_rps(*decode_alone(demand, instance), instance.gpus)


def _alone_rps(demand: Demand, spec: FleetSpec, gpus: int) -> float:
    most_rps = demand.most_rps_per_gpu * gpus
    return demand.goodput_rps(spec, min(float(gpus), most_rps), most_rps=most_rps)
