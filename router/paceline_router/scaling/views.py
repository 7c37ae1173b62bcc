"""One service as Kubernetes shows it: what is wanted of it, its pools and its pods. Values only. Pure.

Times are epoch seconds, as the API server writes them; `uid` tells a service from another of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paceline_api.slo import SLOClass

from paceline_router.facts import Role

Id = tuple[str, str]  # namespace, name


@dataclass(frozen=True, slots=True)
class Hint:
    """Lengths that a person expects: mean and 90th percentile, tokens."""

    mean_tokens: float
    p90_tokens: float


@dataclass(frozen=True, slots=True)
class Marks:
    """What an EnginePool bears of its sizes: those that are Paceline's, and one that is somebody else's since when."""

    sizes: frozenset[int] = frozenset()
    held: int | None = None
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolView:
    """One EnginePool with its entry in the service. `existing` and `ready` count pods over all revisions."""

    name: str
    role: Role
    replicas: int
    existing: int
    ready: int
    least: int
    most: int
    gpus: int = 1  # of one replica
    tensor: int = 1
    table: str = ""  # the accelerator's, "" where it is not a built-in one
    revision: str = ""
    drain_first: frozenset[str] = frozenset()
    marks: Marks = Marks()
    version: str = ""  # of the object that all this was read from

    @property
    def is_fixed(self) -> bool:
        return self.least == self.most

    @property
    def is_settled(self) -> bool:
        return self.replicas == self.existing == self.ready


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod that is not on its way out. `pool` is empty for a router."""

    name: str
    pool: str
    revision: str
    created_s: float
    ready_since_s: float | None = None

    def is_ready_for(self, seconds: float, now_s: float) -> bool:
        return self.ready_since_s is not None and now_s - self.ready_since_s >= seconds


@dataclass(frozen=True, slots=True)
class ServiceView:
    """`status` is the live one, both writers' parts. `mode` is a value of AutoscalingMode."""

    namespace: str
    name: str
    uid: str
    generation: int
    mode: str
    stabilisation_s: float
    model: str
    classes: tuple[SLOClass, ...]
    pools: tuple[PoolView, ...]
    pods: tuple[PodView, ...] = ()
    max_gpus: int | None = None
    prompt_hint: Hint | None = None
    output_hint: Hint | None = None
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> Id:
        return self.namespace, self.name

    def pods_of(self, pool: str) -> tuple[PodView, ...]:
        """Of a pool; of the routers for ""."""
        return tuple(pod for pod in self.pods if pod.pool == pool)
