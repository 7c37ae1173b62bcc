"""Replicas that come and go while a fleet runs: ordered, starting, ready, draining, gone.

A cold start takes a drawn time, and the engine that comes up has learnt nothing. A replica that leaves gets nothing
new, serves on until endpoints have noticed, and goes when it is idle; one that dies is ordered again, as a Deployment
does. Invariant: replicas that are ordered and not on their way out are as many as the pool's size says. GPUs are paid
for from the order of a replica to its end. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from math import inf
from typing import TYPE_CHECKING

from paceline_api.slo import SLOClass
from paceline_engine.sim.setup import ReplicaSpec
from paceline_router.facts import Role
from paceline_router.scaling.views import Hint, PodView, PoolView, ServiceView

from paceline_planner.launching import DRAIN_NOTICE_S
from paceline_planner.sim.fleet import Fleet
from paceline_planner.sim.rides import EngineSpec

if TYPE_CHECKING:
    from random import Random

LOOK_EVERY_S = 1.0  # at whether it is idle


@dataclass(frozen=True, slots=True)
class StartUp:
    """From the order of a replica to its readiness: uniform within `spread_ratio` around the mean."""

    mean_s: float
    spread_ratio: float = 0.15

    def draw(self, rng: Random) -> float:
        return self.mean_s * rng.uniform(1 - self.spread_ratio, 1 + self.spread_ratio)

    @classmethod
    def of_weights(cls, weight_bytes: float) -> StartUp:
        """Assumed: 30 s for the process and its CUDA graphs, and the weights at 2 GB/s from a local disk."""
        return cls(30.0 + weight_bytes / 2e9)


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """One pool of like replicas, within bounds; `gpus` of one replica."""

    name: str
    role: Role
    replica: ReplicaSpec
    start: StartUp
    gpus: int = 1
    least: int = 1
    most: int = 99


@dataclass(frozen=True, slots=True)
class Declared:
    """What a service's file tells an autoscaler besides its pools and classes."""

    max_gpus: int | None = None
    prompt_hint: Hint | None = None
    output_hint: Hint | None = None


@dataclass(slots=True, eq=False)
class Pod:
    """One replica. What has not happened yet is at infinity."""

    name: str
    pool: PoolSpec
    ordered_s: float
    ready_s: float = inf
    left_s: float = inf  # told to go
    gone_s: float = inf


@dataclass(slots=True)
class Members:
    """Of a fleet whose engines are the pools' first pods, ready from the start (`first_engines`)."""

    fleet: Fleet
    pools: Sequence[PoolSpec]
    rng: Random
    replaces: bool = True  # a replica that died is ordered again
    declared: Declared = Declared()
    pods: list[Pod] = field(default_factory=list)
    _serial: count[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        pools = {pool.name: pool for pool in self.pools}
        self.pods += [Pod(e.name, pools[e.pool], 0.0, ready_s=0.0) for e in self.fleet.spec.engines]

    def size(self, pool: str) -> int:
        """What /scale says."""
        return len(self._staying(pool))

    def resize(self, pool: str, replicas: int, drain_first: Iterable[str] = ()) -> None:
        """Order what is missing; send away those named first, then the youngest."""
        staying = self._staying(pool)
        for _ in range(replicas - len(staying)):
            self._order(staying[0].pool if staying else next(p for p in self.pools if p.name == pool))
        named = list(drain_first)
        rank = {name: i for i, name in enumerate(named)}
        order = sorted(staying, key=lambda pod: (rank.get(pod.name, len(named)), -pod.ordered_s))
        for pod in order[: max(len(staying) - replicas, 0)]:
            self._leave(pod)

    def lost(self, name: str) -> None:
        """A replica died: unless it was leaving or nothing is replaced, another is ordered."""
        pod = next(pod for pod in self.pods if pod.name == name)
        pod.gone_s = self.fleet.now
        if pod.left_s == inf and self.replaces:
            self._order(pod.pool)

    def gpu_seconds(self, until_s: float) -> float:
        return sum(p.pool.gpus * max(min(p.gone_s, until_s) - p.ordered_s, 0.0) for p in self.pods)

    def ready(self, pool: str) -> int:
        return sum(pod.ready_s <= self.fleet.now for pod in self._staying(pool))

    def view(self, classes: Mapping[str, SLOClass], stabilisation_s: float) -> ServiceView:
        """The service as the autoscaler's watches show it."""
        pools = tuple(self._pool_view(pool) for pool in self.pools)
        router = PodView("router", "", "", 0.0, 0.0)
        pods = (router, *(_pod_view(p, self.fleet.now) for p in self.pods if p.left_s == p.gone_s == inf))
        model = self.pools[0].replica.machine.table.model
        slos = tuple(classes.values())
        told = self.declared.max_gpus, self.declared.prompt_hint, self.declared.output_hint
        return ServiceView("sim", "sim", "sim", 1, "Enabled", stabilisation_s, model, slos, pools, pods, *told)

    def _pool_view(self, pool: PoolSpec) -> PoolView:
        table = pool.replica.machine.table
        size = self.size(pool.name)
        existing = sum(pod.gone_s == inf for pod in self.pods if pod.pool.name == pool.name)
        return PoolView(
            pool.name, pool.role, size, existing, self.ready(pool.name), pool.least, pool.most, pool.gpus,
            table.tensor, table.name,
        )  # fmt: skip

    def _staying(self, pool: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.pool.name == pool and pod.left_s == inf and pod.gone_s == inf]

    def _order(self, pool: PoolSpec) -> None:
        pod = Pod(f"{pool.name}-new-{next(self._serial)}", pool, self.fleet.now)
        self.pods.append(pod)
        self.fleet.timeline.at(self.fleet.now + pool.start.draw(self.rng), partial(self._up, pod))

    def _up(self, pod: Pod) -> None:
        if pod.gone_s == inf:
            pod.ready_s = self.fleet.now
            self.fleet.join(_engine(pod.name, pod.pool))

    def _leave(self, pod: Pod) -> None:
        pod.left_s = self.fleet.now
        if pod.ready_s == inf:
            pod.gone_s = self.fleet.now
            return
        self.fleet.retire(pod.name)
        self.fleet.timeline.at(self.fleet.now + DRAIN_NOTICE_S, partial(self._go, pod))

    def _go(self, pod: Pod) -> None:
        """Unless it died, or something still runs on it."""
        if pod.gone_s < inf:
            return
        if self.fleet.is_idle(pod.name):
            pod.gone_s = self.fleet.now
            self.fleet.remove(pod.name)
        else:
            self.fleet.timeline.at(self.fleet.now + LOOK_EVERY_S, partial(self._go, pod))


def first_engines(pools: Iterable[PoolSpec], sizes: Mapping[str, int]) -> tuple[EngineSpec, ...]:
    """The engines that a fleet starts with."""
    return tuple(_engine(f"{pool.name}-{i}", pool) for pool in pools for i in range(sizes[pool.name]))


def _engine(name: str, pool: PoolSpec) -> EngineSpec:
    return EngineSpec(name, pool.role, pool.replica, pool.gpus, pool.name)


def _pod_view(pod: Pod, now: float) -> PodView:
    return PodView(pod.name, pod.pool.name, "", pod.ordered_s, pod.ready_s if pod.ready_s <= now else None)
