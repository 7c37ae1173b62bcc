"""What may befall a simulated fleet, and the account of what did: replicas that die, pools that follow their load.

A dead replica is ordered again and comes back after a start-up, unless the start-up is None. With `autoscale` the
production law resizes the pools within their bounds. Invariant: the same fleet, load and seed have the same events.
Times are seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from random import Random

from paceline_api.slo import SLOClass

from paceline_planner.report import Event
from paceline_planner.sim.autoscaler import Autoscaler, Rhythm
from paceline_planner.sim.failures import kill_at
from paceline_planner.sim.fleet import Fleet
from paceline_planner.sim.members import Declared, Members, PoolSpec
from paceline_planner.sim.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Failure:
    """A replica, or all ready replicas of a pool, die at `at_s`."""

    name: str
    at_s: float


@dataclass(frozen=True, slots=True)
class WhatIf:
    """`pools` are those of the fleet's engines. `rhythm` None: sizes stay; else that of the autoscaler.

    `declared` is what it is told of the service.
    """

    pools: tuple[PoolSpec, ...] = ()
    failures: tuple[Failure, ...] = ()
    comes_back: bool = True
    rhythm: Rhythm | None = None
    declared: Declared = field(default_factory=Declared)

    @property
    def changes_members(self) -> bool:
        return bool(self.failures) or self.rhythm is not None


NOTHING = WhatIf()


@dataclass(slots=True)
class Stage:
    """One fleet with what befalls it."""

    members: Members
    scaler: Autoscaler | None

    def events(self, until_s: float) -> list[Event]:
        """In order of time."""
        return sorted(self._events(until_s), key=lambda event: event.at_s)

    def gpus(self, until_s: float) -> float:
        """On average."""
        return self.members.gpu_seconds(until_s) / until_s

    def _events(self, until_s: float) -> Iterator[Event]:
        for pod in self.members.pods:
            if pod.gone_s < inf and pod.left_s == inf:
                yield Event(pod.gone_s, f"{pod.name} died")
            if pod.ordered_s > 0 and pod.ready_s < inf:
                yield Event(pod.ready_s, f"{pod.name} is ready, {pod.ready_s - pod.ordered_s:.0f} s after its order")
        for resized in self.scaler.resized if self.scaler else ():
            change = resized.change
            binding = f" ({change.binding})" if change.binding else ""
            yield Event(resized.at_s, f"{change.pool} {change.before} → {change.after}{binding}: {change.why}")
        if self.scaler:
            hours = self.members.gpu_seconds(until_s) / 3600
            yield Event(until_s, f"{hours:.3g} GPU-hours until here, {self.gpus(until_s):.3g} GPUs on average")


def stage(
    fleet: Fleet, what_if: WhatIf, classes: Mapping[str, SLOClass], telemetry: Telemetry | None, seed: int
) -> Stage:
    """Ready a fleet that does not run yet; `telemetry`, which hears of its rides, is for an autoscaler."""
    members = Members(fleet, what_if.pools, Random(f"{seed}/starts"), what_if.comes_back, what_if.declared)
    for failure in what_if.failures:
        kill_at(failure.at_s, members, failure.name)
    if what_if.rhythm is None:
        return Stage(members, None)
    assert telemetry is not None, "an autoscaler sees nothing without telemetry"
    return Stage(members, Autoscaler(fleet, members, telemetry, classes, Random(f"{seed}/ticks"), what_if.rhythm))
