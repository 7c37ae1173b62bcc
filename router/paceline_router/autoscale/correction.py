"""Keeps the prediction honest: a factor on the load that each role sees, learned from the verdicts on its requests.

A Wilson interval around the observed share of requests within a role's objective is turned, by the model at the
present sizes, into the interval of factors that explain it. The factor moves into that interval by the least change,
and at most so far that the role's wanted size changes by one replica. It rises only where a target is missed by more
than chance: what an overrated A∞ lacks would be taken for load otherwise, window after window. Verdicts of a window in
which a replica started, or was cold, teach nothing. Invariant: a factor stays within [0.5, 2], and one that explains
what is seen stays. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import log, sqrt

from paceline_router.autoscale.outlook import Outlook, Targets
from paceline_router.autoscale.phases import Factors
from paceline_router.autoscale.signals import Attained, ClassSignals, ServiceSignals, Verdicts
from paceline_router.facts import Role

LEAST_FACTOR, MOST_FACTOR = 0.5, 2.0
GRID = tuple(LEAST_FACTOR * (MOST_FACTOR / LEAST_FACTOR) ** (k / 32) for k in range(33))  # steps of 4.4 %
ENOUGH = 50  # decided requests; a share of fewer says little
COLD_S = 30.0  # after a start: graphs are captured, prefix caches fill, and the engine's own fit has no samples yet
Z = 2.58  # 99 %: misses come in bursts, so that n of them are worth less than n independent ones
MODEL_ERROR = 0.01  # a point between model and truth is not taken for load: near A∞ no load would explain it
NEAR, FAR = 0.15, 0.45  # the load's change, in its logarithm, up to which a factor is kept, and from which none of it
HALVINGS = 8  # of a move that would change a size by more than one replica


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Learned:
    """A role's factor as learned at a load in tokens per second; `share` is what is left of it, in its logarithm."""

    factor: float
    load: float
    share: float = 1.0

    @property
    def left(self) -> float:
        return float(self.factor**self.share)

    def at(self, load: float) -> Learned:
        """At another load: the model errs elsewhere there. What is forgotten stays so; without load nothing is."""
        if load <= 0.0 or self.load <= 0.0:
            return self
        away = (abs(log(load / self.load)) - NEAR) / (FAR - NEAR)
        return replace(self, share=min(self.share, 1.0 - min(max(away, 0.0), 1.0)))


def is_instructive(signals: ServiceSignals, role: Role) -> bool:
    """Whether the window's verdicts are those of the present sizes, warm, and sizes that the law may learn from."""
    steady = all(pool.ready == pool.replicas and pool.settled_s >= signals.window_s + COLD_S for pool in signals.pools)
    pools = [pool for pool in signals.pools if pool.role is role]
    return steady and any(pool.ready for pool in pools) and not any(pool.held for pool in pools)


def misses(signals: ServiceSignals, targets: Targets) -> bool:
    """Whether some class was below its target in the window by more than chance."""
    return any(
        seen.high < targets.get(c.slo.name, 0.0) for c in signals.classes if (seen := _share(c, Role.MIXED)) is not None
    )


def observe(outlook: Outlook, role: Role, targets: Targets) -> Interval | None:
    """The factors of `role` that explain what was observed; None where the verdicts say nothing about it.

    Of several classes the one that sees most load counts.
    """
    seen = {c.slo.name: share for c in outlook.signals.classes if (share := _share(c, role)) is not None}
    if not seen:
        return None
    sizes = {pool.name: pool.ready for pool in outlook.signals.pools}
    curve = [outlook.under({**outlook.factors, role: factor}).at(sizes) for factor in GRID]
    met = _MET[role]
    found = [
        interval
        for name, share in seen.items()
        if (interval := _explaining([met(attained[name]) for attained in curve], share, targets[name])) is not None
    ]
    return Interval(max(i.low for i in found), max(i.high for i in found)) if found else None


def move(factors: Factors, role: Role, interval: Interval, wanted: Callable[[Factors], int]) -> Factors:
    """`factors` with that of `role` in the interval, or as near as changes its `wanted` replicas by at most one."""
    before = factors.get(role, 1.0)
    goal = min(max(before, interval.low), interval.high)
    if goal == before:
        return factors
    here = wanted(factors)

    def reaches(factor: float) -> bool:
        return abs(wanted({**factors, role: factor}) - here) <= 1

    if reaches(goal):
        return {**factors, role: goal}
    near, far = before, goal
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        near, far = (middle, far) if reaches(middle) else (near, middle)
    return {**factors, role: near}


def tokens_per_s(signals: ServiceSignals) -> float:
    """That all classes ask for: prompts and answers."""
    return sum(c.arrivals_rps * (c.prompt.mean_tokens + c.output.mean_tokens) for c in signals.classes)


def wilson(hits: float, count: float) -> Interval:
    """The interval that covers the true share of `hits` among `count` > 0 (E. B. Wilson, 1927)."""
    share, z2 = hits / count, Z * Z
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return Interval(max(centre - half, 0.0), min(centre + half, 1.0))


def _share(c: ClassSignals, role: Role) -> Interval | None:
    """The observed share of a class within the objective of `role`."""
    hits, count = _COUNTS[role](c.verdicts)
    return wilson(min(hits, count), count) if count >= ENOUGH and c.arrivals_rps > 0 else None


def _explaining(shares: list[float], seen: Interval, target: float) -> Interval | None:
    """`shares` fall along GRID. None: every factor explains what was seen, or what was seen is not the load's doing.

    It is not where attainment hardly depends on load, nor where more was attained than at the least factor: to follow
    that down would take replicas for a model that underrates A∞.
    """
    above = [f for f, share in zip(GRID, shares, strict=True) if share > seen.high + MODEL_ERROR]
    below = [f for f, share in zip(GRID, shares, strict=True) if share < seen.low - MODEL_ERROR]
    if (not above and not below) or len(below) == len(GRID) or shares[0] - shares[-1] <= 2 * MODEL_ERROR:
        return None
    missed = seen.high < target
    return Interval(above[-1] if above and missed else LEAST_FACTOR, below[0] if below else MOST_FACTOR)


_COUNTS: Mapping[Role, Callable[[Verdicts], tuple[float, float]]] = {
    Role.PREFILL: lambda v: (v.good + v.tpot, v.decided),
    Role.DECODE: lambda v: (v.good + v.ttft, v.decided - v.unserved),
    Role.MIXED: lambda v: (v.good, v.decided),
}
_MET: Mapping[Role, Callable[[Attained], float]] = {
    Role.PREFILL: lambda attained: attained.ttft,
    Role.DECODE: lambda attained: attained.tpot,
    Role.MIXED: lambda attained: attained.joint,
}
