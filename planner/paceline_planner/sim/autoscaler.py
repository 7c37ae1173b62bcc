"""Production's autoscaler on the virtual clock: its steward and law, fed by simulated metrics, resizing a fleet.

Metrics are scraped and looked at every so often, each at its own moments, so that what the law knows is as late as in
production. Invariant: sizes change at ticks only, and only as a turn of the steward says. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from paceline_api.slo import SLOClass
from paceline_engine.step_time import StepTable
from paceline_router.autoscale.decide import Pacer
from paceline_router.autoscale.signals import Change
from paceline_router.scaling.steward import Law, Moment, Steward

from paceline_planner.sim.fleet import Fleet
from paceline_planner.sim.members import Members
from paceline_planner.sim.telemetry import Telemetry

HOLD_S = 900.0  # the chart's autoscaler.manualHoldSeconds; nobody else resizes a simulated pool


@dataclass(frozen=True, slots=True)
class Rhythm:
    """The chart's prometheus.scrapeInterval and autoscaler.interval, and the service's stabilisation window."""

    scrape_s: float = 15.0
    interval_s: float = 15.0
    stabilisation_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Resized:
    """One change that was made."""

    at_s: float
    change: Change


@dataclass(slots=True)
class Autoscaler:
    """`make_law` makes the law of a stabilisation window: production's unless another is given."""

    fleet: Fleet
    members: Members
    telemetry: Telemetry
    classes: Mapping[str, SLOClass]
    rng: Random
    rhythm: Rhythm = Rhythm()
    make_law: Callable[[float], Law] = Pacer
    resized: list[Resized] = field(default_factory=list)
    blind_ticks: int = 0

    def __post_init__(self) -> None:
        self._steward = Steward(self.make_law, self._find_table, HOLD_S)
        self.fleet.timeline.at(self.rng.uniform(0.0, self.rhythm.scrape_s), self._scrape)
        self.fleet.timeline.at(self.rng.uniform(0.0, self.rhythm.interval_s), self._tick)

    _steward: Steward = field(init=False)

    def _find_table(self, name: str, model: str, tensor: int) -> StepTable | None:
        """The prior of the pool that names it: tables of simulated engines need not be on disk."""
        tables = [p.replica.prior or p.replica.machine.table for p in self.members.pools]
        return next((t for t in tables if (t.name, t.model, t.tensor) == (name, model, tensor)), None)

    def _scrape(self) -> None:
        self.telemetry.scrape(self.fleet, self.members)
        if not self.fleet.is_over:
            self.fleet.timeline.at(self.fleet.now + self.rhythm.scrape_s, self._scrape)

    def _tick(self) -> None:
        now = self.fleet.now
        view = self.members.view(self.classes, self.rhythm.stabilisation_s)
        turn = self._steward.look(view, self.telemetry.answers(now), Moment(now, now))
        self.blind_ticks += turn.finding.blind is not None
        for task in turn.tasks:
            self.members.resize(task.change.pool, task.change.after, task.drain_first)
            self.resized.append(Resized(now, task.change))
        if not self.fleet.is_over:
            self.fleet.timeline.at(now + self.rhythm.interval_s, self._tick)
