"""A model of a fleet that can be computed in the head, and signals with defaults, for tests of the autoscaling law.

Each replica of a role holds so many requests a second: up to there a class attains EASY of an objective, beyond it
EASY / overload⁴. Two objectives together attain EASY² = 98 %, unless `unloaded` says otherwise of a class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf

from paceline_api.slo import SLOClass
from paceline_engine.tables import load_table
from paceline_router.autoscale.phases import Factors, Forecast
from paceline_router.autoscale.signals import (
    Attained,
    Change,
    ClassSignals,
    EngineSignals,
    Lengths,
    PoolSignals,
    ServiceSignals,
    Verdicts,
)
from paceline_router.facts import Role

EASY = 0.99
ENGINE = EngineSignals(load_table("a100-sxm-80gb", "llama-3.1-8b"))


@dataclass(frozen=True)
class Capacity:
    """Requests a second that one replica holds: by pool, else by role. `unloaded`: what a class attains at best."""

    rps: Mapping[str, float] = field(default_factory=lambda: {"prefill": 1.0, "decode": 2.0, "mixed": 1.0})
    unloaded: Mapping[str, Attained] = field(default_factory=dict)
    steepness: float = 4.0
    collapse: float = inf  # overload from which nothing at all is attained

    def __call__(self, signals: ServiceSignals) -> CapacityForesight:
        return CapacityForesight(self, signals)


@dataclass(frozen=True)
class CapacityForesight:
    capacity: Capacity
    signals: ServiceSignals

    def overload(self, role: Role, sizes: Mapping[str, int], factors: Factors) -> float:
        rps = self.capacity.rps
        pools = [pool for pool in self.signals.pools if pool.role is role]
        held = sum(sizes[pool.name] * rps.get(pool.name, rps.get(role.value, 0.0)) for pool in pools)
        load = sum(c.arrivals_rps for c in self.signals.classes) * factors.get(role, 1.0)
        return load / held if held else (1e6 if pools else 0.0)

    def forecast(self, sizes: Mapping[str, int], factors: Factors) -> Forecast:
        load = {role: self.overload(role, sizes, factors) for role in Role}
        prompts, tokens = max(load[Role.PREFILL], load[Role.MIXED]), max(load[Role.DECODE], load[Role.MIXED])
        attained = {}
        for name, best in self.unloaded().items():
            ttft, tpot = (self.share(x) for x in (prompts, tokens))
            attained[name] = Attained(best.ttft * ttft, best.tpot * tpot)
        return Forecast(attained, dict.fromkeys(attained, 1.0), load)

    def share(self, overload: float) -> float:
        return 0.0 if overload >= self.capacity.collapse else max(overload, 1.0) ** -self.capacity.steepness

    def unloaded(self) -> Mapping[str, Attained]:
        names = [c.slo.name for c in self.signals.classes]
        return {name: self.capacity.unloaded.get(name, Attained(EASY, EASY)) for name in names}


def make_class(
    name: str = "chat", rps: float = 1.0, target: float = 0.95, verdicts: Verdicts | None = None, ttft_s: float = 0.4
) -> ClassSignals:
    slo = SLOClass(name, ttft_s, 0.04, target)
    return ClassSignals(slo, rps, Lengths(500.0), Lengths(200.0), verdicts or Verdicts())


def make_pool(
    role: Role = Role.MIXED,
    replicas: int = 1,
    *,
    name: str = "",
    gpus: int = 1,
    ready: int | None = None,
    least: int = 1,
    most: int = 10,
    held: bool = False,
    settled_s: float = 3600.0,
) -> PoolSignals:
    """Named as its role; ready, settled for long, of one GPU, from 1 to 10 replicas."""
    ready = replicas if ready is None else ready
    return PoolSignals(name or role.value, role, gpus, replicas, ready, least, most, ENGINE, held, settled_s)


def make_pair(prefill: int = 1, decode: int = 1, *, most: int = 10) -> tuple[PoolSignals, PoolSignals]:
    return make_pool(Role.PREFILL, prefill, most=most), make_pool(Role.DECODE, decode, most=most)


def make_signals(
    *pools: PoolSignals,
    rps: float = 1.0,
    classes: tuple[ClassSignals, ...] = (),
    window_s: float = 60.0,
    max_gpus: int | None = None,
) -> ServiceSignals:
    """One class, `chat`, at `rps` unless `classes` are given."""
    return ServiceSignals(classes or (make_class(rps=rps),), pools, window_s, max_gpus)


@dataclass
class Fleet:
    """Pools that do what they are told: a new replica is ready after `start_s`, one too many goes at once."""

    pools: tuple[PoolSignals, ...]
    start_s: float = 0.0
    changed_s: dict[str, float] = field(default_factory=dict)

    def seen(self, now: float) -> tuple[PoolSignals, ...]:
        def one(pool: PoolSignals) -> PoolSignals:
            age_s = now - self.changed_s.get(pool.name, -3600.0)
            if age_s < self.start_s:
                return replace(pool, ready=min(pool.ready, pool.replicas), settled_s=0.0)
            return replace(pool, ready=pool.replicas, settled_s=age_s - self.start_s)

        self.pools = tuple(one(pool) for pool in self.pools)
        return self.pools

    def apply(self, changes: Iterable[Change], now: float) -> None:
        for change in changes:
            self.changed_s[change.pool] = now
            self.pools = tuple(
                replace(p, replicas=change.after, ready=min(p.ready, change.after)) if p.name == change.pool else p
                for p in self.pools
            )

    def sizes(self) -> tuple[int, ...]:
        return tuple(pool.replicas for pool in self.pools)
