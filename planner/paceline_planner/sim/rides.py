"""What a simulated fleet is made of and what it serves: jobs, engines, and the record of each request's way.

Values, and one record a request that fleet and router write to. Times are seconds, lengths tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paceline_api.config import DEFAULT_POLICY
from paceline_api.slo import Course, SLOClass
from paceline_engine.request import Leg
from paceline_engine.sim.setup import ReplicaSpec
from paceline_router import attempts
from paceline_router.facts import Role
from paceline_router.waiting import Rule
from paceline_router.way import Way

ENGINE_LEGS = {attempts.Leg.WHOLE: Leg.WHOLE, attempts.Leg.PREFILL: Leg.PREFILL, attempts.Leg.FETCH: Leg.DECODE}


@dataclass(frozen=True, slots=True)
class Job:
    """One request of a workload; `block_hashes` name its full prompt blocks, empty without prefix caching."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    class_name: str
    block_hashes: tuple[int, ...] = ()
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One replica of the fleet."""

    name: str
    role: Role
    spec: ReplicaSpec
    gpus: int = 1
    pool: str = ""


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """`transfer_in_tpot`: DistServe's way of counting, where the prefill's token is the first one (DESIGN §1).

    `max_context_tokens`: longer requests are rejected, as an engine does; None: whatever fits the KV cache is served.
    `record_gaps`: rides keep the times between their tokens, which costs a tenth of the speed.
    `front_s`: from a client's send until the fleet knows of the request (connection, HTTP, tokenising); in TTFT.
    `hop_s`: from the end of a prefill leg until the decode engine asks for its KV (two HTTP exchanges, the router).
    `routers` share the arrivals at random; each knows what it sent itself, and of the others' what engines tell of when
    it scrapes them, at its own moments.
    `waiting`: what a router's waiting room holds each class to; None: there is none, and nothing is shed.
    `kv_failure_ratio` of the KV transfers fail, known after `kv_timeout_s`; `recompute` is kvTransfer.onFailure,
    `local_prefill` the router's: decode replicas may compute prompts wherever that is the shorter way.
    """

    engines: tuple[EngineSpec, ...]
    classes: Mapping[str, SLOClass]
    router_policy: str = DEFAULT_POLICY
    transfer_in_tpot: bool = False
    max_context_tokens: int | None = None
    record_gaps: bool = False
    front_s: float = 0.0
    hop_s: float = 0.0
    routers: int = 1
    scrape_every_s: float = 1.0
    waiting: Mapping[str, Rule] | None = None
    kv_failure_ratio: float = 0.0
    kv_timeout_s: float = 5.0
    recompute: bool = True
    local_prefill: bool = False

    @property
    def gpus(self) -> int:
        return sum(e.gpus for e in self.engines)


@dataclass(slots=True, eq=False)
class Ride:
    """A job on its way, and at its end the record of it. `router` is the index of the one that has it."""

    id: int
    job: Job
    course: Course
    router: int = 0
    way: Way | None = None  # at its router; None before it is there
    on: str = ""  # the replica that has its current leg
    leg: Leg = Leg.WHOLE
    prefilled_on: str = ""  # where its KV is parked
    parked_key: str = ""
    started_s: float = 0.0  # when its prompt was first scheduled on a decode or mixed replica
    gaps_s: list[float] = field(default_factory=list)

    @property
    def failures(self) -> int:
        """Legs of it that failed."""
        return 0 if self.way is None else self.way.failures

    @property
    def key(self) -> str:
        """What engines know the current leg by: another one after each failure."""
        return f"{self.id}/{self.failures}" if self.failures else str(self.id)
