"""What the model says of one service: each size forecast once, and the goals that a size must reach.

A class's goal is joint attainment where the pools' bounds allow it. Where even the largest sizes miss it, what lacks
gets its most, and what does not lack gets no more than comes within a hundredth of what the most attains. Invariant:
a size that reaches the goals still does with a replica more. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from paceline_router.autoscale.ladder import Ladder, Rank, Sizes, fewest_gpus, ladders
from paceline_router.autoscale.phases import Factors, Forecast, Forecaster
from paceline_router.autoscale.signals import Attained, ServiceSignals

Targets = Mapping[str, float]  # joint attainment by class, 0..1
NEAR_MOST = 0.99  # of what the largest sizes attain, where they do not attain the target
SATURATED = 0.05  # attained by the largest sizes: below it a hundredth means nothing


class Foresight(Protocol):
    """Attainment of one service at some sizes, and on an unloaded fleet; monotone as phases.py has it."""

    def forecast(self, sizes: Sizes, factors: Factors) -> Forecast: ...

    def unloaded(self) -> Mapping[str, Attained]: ...


Model = Callable[[ServiceSignals], Foresight]
PHASES: Model = Forecaster


@dataclass(frozen=True, slots=True)
class Goal:
    """What a class should attain at least."""

    class_name: str
    joint: float = 0.0
    ttft: float = 0.0
    tpot: float = 0.0

    def reached(self, attained: Attained) -> bool:
        return attained.joint >= self.joint and attained.ttft >= self.ttft and attained.tpot >= self.tpot


class Outlook:
    """One service's forecasts by sizes, remembered."""

    def __init__(self, signals: ServiceSignals, factors: Factors, foresight: Foresight) -> None:
        self.signals, self.factors, self.foresight = signals, factors, foresight
        self._known: dict[tuple[int, ...], Forecast] = {}

    def under(self, factors: Factors) -> Outlook:
        """The same service, its load multiplied by other factors."""
        return Outlook(self.signals, factors, self.foresight)

    def forecast(self, sizes: Sizes) -> Forecast:
        """`sizes` of every pool, ready."""
        key = tuple(sizes[pool.name] for pool in self.signals.pools)
        if key not in self._known:
            self._known[key] = self.foresight.forecast(sizes, self.factors)
        return self._known[key]

    def at(self, sizes: Sizes) -> Mapping[str, Attained]:
        return self.forecast(sizes).attained

    def holds(self, sizes: Sizes, targets: Targets) -> bool:
        """Whether every class attains its target."""
        attained = self.at(sizes)
        return all(attained[name].joint >= target for name, target in targets.items())

    def score(self, sizes: Sizes, targets: Targets) -> Rank:
        """Attainment over target: of the worst class, then in sum. More than the target counts as the target."""
        attained = self.at(sizes)
        ratios = [min(attained[name].joint / target, 1.0) for name, target in targets.items() if target]
        return (round(min(ratios, default=1.0), 6), round(sum(ratios), 6))

    def ladders(self, floors: Sizes | None = None, tops: Sizes | None = None) -> tuple[Ladder, ...]:
        """The ladders of this service's pools; see ladder.py."""
        return ladders(self.signals.pools, self._costs(), floors, tops)

    def _costs(self) -> Mapping[str, float]:
        """GPUs by pool that the present load would fill of that pool alone; equal where there is no choice."""
        nothing = dict.fromkeys((pool.name for pool in self.signals.pools), 0)
        if len(nothing) < 3 and len({pool.role for pool in self.signals.pools}) == len(nothing):
            return nothing
        return {
            pool.name: pool.gpus * self.forecast({**nothing, pool.name: 1}).utilisation.get(pool.role, 0.0)
            for pool in self.signals.pools
        }

    def least(self, found: Sequence[Ladder], targets: Targets) -> Sizes:
        """The sizes of the fewest GPUs that reach the targets' goals; of equal ones those nearest to the present."""
        pools = {pool.name: pool for pool in self.signals.pools}

        def rank(sizes: Sizes) -> Rank:
            added = sum(pools[name].gpus * max(n - pools[name].replicas, 0) for name, n in sizes.items())
            return (added, *(-part for part in self.score(sizes, targets)))

        def meets(sizes: Sizes) -> bool:
            attained = self.at(sizes)
            return all(goal.reached(attained[goal.class_name]) for goal in goals)

        goals, found = self._goals(found, targets)
        return fewest_gpus(found, meets, rank)

    def _goals(self, found: Sequence[Ladder], targets: Targets) -> tuple[list[Goal], list[Ladder]]:
        """The goals, and the ladders without the rungs that a saturated objective rules out."""
        most = self.at({name: n for ladder in found for name, n in ladder[-1].sizes.items()})
        goals, kept = [], list(found)
        for name, target in targets.items():
            top = most[name]
            if top.joint >= target:
                goals.append(Goal(name, joint=target))
                continue
            goals.append(Goal(name, ttft=NEAR_MOST * top.ttft, tpot=NEAR_MOST * top.tpot))
            if top.ttft < SATURATED:
                kept[0] = kept[0][-1:]
            if top.tpot < SATURATED:
                kept[-1] = kept[-1][-1:]
        return goals, kept
