"""What is known of one service at one moment, over the last window, and what follows from it. Values only. Pure.

Rates are per second, times seconds, shares 0..1. Whoever makes a `ServiceSignals` has checked that its figures are
fresh, finite and do not contradict each other; what could not be had is a `Blind` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paceline_api.slo import SLOClass
from paceline_engine.step_time import StepTable

from paceline_router.facts import Role


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token lengths as a histogram: (upper bound in tokens, share) ascending, shares sum to 1; empty: not known."""

    mean_tokens: float = 0.0
    buckets: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Requests whose verdict was decided in the window, by `result` of paceline_slo_decided_total."""

    good: float = 0.0
    ttft: float = 0.0
    tpot: float = 0.0
    both: float = 0.0
    unserved: float = 0.0

    @property
    def decided(self) -> float:
        return self.good + self.ttft + self.tpot + self.both + self.unserved


@dataclass(frozen=True, slots=True)
class ClassSignals:
    """One class's load. `arrivals_rps` counts what came and could be served: rejected requests are not in it."""

    slo: SLOClass
    arrivals_rps: float
    prompt: Lengths
    output: Lengths
    verdicts: Verdicts = Verdicts()


@dataclass(frozen=True, slots=True)
class EngineSignals:
    """One replica of a pool as its engines describe themselves: the median over those whose fit is trusted."""

    table: StepTable
    mixed_scale: float = 1.0
    mixed_offset_s: float = 0.0
    decode_scale: float = 1.0
    decode_offset_s: float = 0.0
    kv_tokens: int = 0  # 0: the table's


@dataclass(frozen=True, slots=True)
class PoolSignals:
    """One pool. `replicas` is what /scale says, `least` and `most` are its bounds (both `replicas` for a fixed size).

    `held`: a person set its size, and that is respected: the law takes it as given. `settled_s`: for how long the ready
    replicas have been as many as they are now, and all that are wanted.
    """

    name: str
    role: Role
    gpus: int  # of one replica
    replicas: int
    ready: int
    least: int
    most: int
    engine: EngineSignals
    held: bool = False
    settled_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ServiceSignals:
    """`window_s`: what rates and verdicts were taken over."""

    classes: tuple[ClassSignals, ...]
    pools: tuple[PoolSignals, ...]
    window_s: float
    max_gpus: int | None = None


@dataclass(frozen=True, slots=True)
class Blind:
    """Why nothing can be decided now: `reason` is a word of paceline_api.conditions.Reason, `message` a sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Attained:
    """Predicted share of a class's requests within each limit; the two are taken as independent."""

    ttft: float
    tpot: float

    @property
    def joint(self) -> float:
        return self.ttft * self.tpot


@dataclass(frozen=True, slots=True)
class Change:
    """A pool's next size. `binding` is CLASS/ttft, CLASS/tpot or CLASS/kv; empty where bounds or budget decide."""

    pool: str
    before: int
    after: int
    binding: str
    why: str


@dataclass(frozen=True, slots=True)
class Unattainable:
    """A class that even an unloaded fleet does not bring to its target on the present lengths."""

    class_name: str
    objective: str  # ttft or tpot
    attains: float
    target: float


@dataclass(frozen=True, slots=True)
class Ruling:
    """One tick's result. `wanted`: least sizes by pool; `changes`: what to do now; `waits`: why none shrinks yet."""

    wanted: Mapping[str, int]
    changes: tuple[Change, ...]
    predicted: Mapping[str, Attained]  # at the present sizes
    unattainable: tuple[Unattainable, ...] = ()
    factors: Mapping[Role, float] = field(default_factory=dict)
    waits: str = ""
