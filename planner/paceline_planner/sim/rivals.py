"""Other laws than production's, behind the same interface: what an autoscaler could be instead, or at best.

An HPA on queue length and KEDA's rule on TTFT and TPOT see what their metrics show; the clairvoyant knows the arrivals
ahead and asks production's law for the least sizes. Invariant: sizes stay within the pools' bounds. Times are seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil

from paceline_router.autoscale.law import least_sizes
from paceline_router.autoscale.signals import Change, PoolSignals, Ruling, ServiceSignals

HPA_TOLERANCE = 0.1  # Kubernetes' defaults: horizontal-pod-autoscaler-tolerance, and behavior.scaleUp and scaleDown
HPA_UP_RATIO, HPA_UP_PODS, HPA_UP_EVERY_S = 2.0, 4, 15.0
RATIO_UP, RATIO_DOWN = 0.55, 0.40  # of the limit


@dataclass(slots=True)
class Static:
    """Never changes anything; the parts of a law that only production's needs."""

    stabilisation_s: float

    def rule(self, signals: ServiceSignals, now: float) -> Ruling:
        return _ruling(signals, {p.name: p.replicas for p in signals.pools}, "static")

    def blind(self, now: float) -> None:
        """Nothing is remembered that a gap would spoil."""

    def restart(self, now: float) -> None:
        """Nor a jump."""

    def seen_s(self, now: float) -> float:
        return self.stabilisation_s


@dataclass(slots=True)
class QueueHPA(Static):
    """`waiting`: requests in the queues of a pool's engines, as last scraped; `target` of them for each replica."""

    waiting: Callable[[str], float]
    target: float = 1.0
    _proposed: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)
    _grown: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)

    def rule(self, signals: ServiceSignals, now: float) -> Ruling:
        """Kubernetes' algorithm: ceil(ready × metric / target), and nothing within the tolerance."""
        sizes = {pool.name: self._size(pool, now) for pool in signals.pools}
        return _ruling(signals, sizes, f"{self.target:g} waiting for each replica")

    def _size(self, pool: PoolSignals, now: float) -> int:
        ratio = self.waiting(pool.name) / max(pool.ready, 1) / self.target
        wanted = pool.replicas if abs(ratio - 1) <= HPA_TOLERANCE else ceil(max(pool.ready, 1) * ratio)
        if wanted > pool.ready and wanted <= pool.replicas:
            wanted = pool.replicas  # those that are starting count as they are
        proposed = self._proposed.setdefault(pool.name, deque([(now, pool.replicas)]))  # as it was found
        proposed.append((now, min(max(wanted, pool.least), pool.most)))
        while proposed[0][0] < now - self.stabilisation_s:
            proposed.popleft()
        if wanted >= pool.replicas:
            return min(wanted, self._most(pool, now))
        return min(pool.replicas, max(n for _, n in proposed))

    def _most(self, pool: PoolSignals, now: float) -> int:
        """The greater of the two default policies: twice the size, or 4 pods more, in 15 s."""
        grown = self._grown.setdefault(pool.name, deque())
        while grown and grown[0][0] <= now - HPA_UP_EVERY_S:
            grown.popleft()
        before = min((n for _, n in grown), default=pool.replicas)
        grown.append((now, pool.replicas))
        return max(ceil(before * HPA_UP_RATIO), before + HPA_UP_PODS)


@dataclass(slots=True)
class RatioLaw(Static):
    """`ratio`: the worst of TTFT and TPOT over its limit; None without traffic. One replica at a time."""

    ratio: Callable[[float], float | None]
    _low_since_s: float | None = None

    def rule(self, signals: ServiceSignals, now: float) -> Ruling:
        """Up above 0.55 once all replicas are ready, down below 0.40 for the stabilisation window."""
        ratio = self.ratio(now)
        low = ratio is not None and ratio < RATIO_DOWN
        self._low_since_s = (now if self._low_since_s is None else self._low_since_s) if low else None
        step = 1 if ratio is not None and ratio > RATIO_UP else 0
        if self._low_since_s is not None and now - self._low_since_s >= self.stabilisation_s:
            step, self._low_since_s = -1, now
        sizes = {p.name: p.replicas + (step if step < 0 or p.ready == p.replicas else 0) for p in signals.pools}
        return _ruling(signals, sizes, f"ratio {-1.0 if ratio is None else ratio:.2f}")


@dataclass(slots=True)
class Clairvoyant(Static):
    """`to_come(from, until)`: the service under the highest true load in between; `ahead_s`: a start-up's longest time.

    It measures nothing, is never late, and gives replicas up at once.
    """

    to_come: Callable[[float, float], ServiceSignals]
    ahead_s: float

    def rule(self, signals: ServiceSignals, now: float) -> Ruling:
        """The law's least sizes for what is to come until a replica ordered at the next tick could be ready."""
        return _ruling(signals, least_sizes(self.to_come(now, now + self.ahead_s)).sizes, "what is to come")


def _ruling(signals: ServiceSignals, sizes: Mapping[str, int], why: str) -> Ruling:
    bounded = {p.name: min(max(sizes[p.name], p.least), p.most) for p in signals.pools}
    changes = tuple(
        Change(p.name, p.replicas, bounded[p.name], "", why) for p in signals.pools if bounded[p.name] != p.replicas
    )
    return Ruling(bounded, changes, {})
