"""Production's autoscaler on a simulated fleet: up with the load, down after it; and the rules of its rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import pytest
from engines import make_table
from paceline_api.outcomes import Outcome
from paceline_api.slo import SLOClass, judge
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec
from paceline_planner.sim.autoscaler import Autoscaler, Rhythm
from paceline_planner.sim.fleet import Fleet, FleetSpec
from paceline_planner.sim.members import Members, PoolSpec, StartUp, first_engines
from paceline_planner.sim.rides import Job, Ride
from paceline_planner.sim.rivals import Clairvoyant, QueueHPA, RatioLaw, Static
from paceline_planner.sim.telemetry import Telemetry
from paceline_router.autoscale.decide import Pacer
from paceline_router.autoscale.law import least_sizes
from paceline_router.autoscale.signals import ClassSignals, EngineSignals, Lengths, PoolSignals, ServiceSignals
from paceline_router.facts import Role
from paceline_router.scaling.steward import Law

SLO = SLOClass("interactive", 0.5, 0.06)
CLASSES = {SLO.name: SLO}
POOL = PoolSpec("mixed", Role.MIXED, ReplicaSpec(MachineSpec(make_table())), StartUp(20.0), most=8)
RHYTHM = Rhythm(stabilisation_s=60.0)
PHASES = ((0.0, 2.0), (180.0, 10.0), (420.0, 2.0), (840.0, 0.0))  # from, requests per second


@dataclass
class Scaled:
    rides: list[Ride]
    scaler: Autoscaler

    def sizes(self) -> list[tuple[int, int]]:
        return [(r.change.before, r.change.after) for r in self.scaler.resized]

    def good(self) -> float:
        verdicts = [judge(SLO, r.course, r.course.end_s or 0.0) for r in self.rides]
        return sum(v == "good" for v in verdicts) / len(verdicts)


def make_jobs(seed: int = 1) -> Iterator[Job]:
    rng = Random(seed)
    for (start, rate), (end, _) in pairwise(PHASES):
        at = start
        while (at := at + rng.expovariate(rate)) < end:
            yield Job(at, rng.randint(200, 800), rng.randint(10, 60), SLO.name)


def scaled_by(make_law: Callable[[float], Law]) -> Scaled:
    rides: list[Ride] = []
    telemetry = Telemetry(CLASSES, RHYTHM.scrape_s)

    def ended(ride: Ride) -> bool:
        telemetry.ended(ride)
        rides.append(ride)
        return False

    fleet = Fleet(
        FleetSpec(first_engines([POOL], {"mixed": 1}), CLASSES), 1, ended, telemetry.arrived, telemetry.first_token
    )
    members = Members(fleet, [POOL], Random(1))
    scaler = Autoscaler(fleet, members, telemetry, CLASSES, Random(1), RHYTHM, make_law)
    fleet.run(make_jobs())
    fleet.check()
    return Scaled(rides, scaler)


def test_the_law_grows_at_the_rise_and_shrinks_after_it_without_losing_a_request() -> None:
    law = scaled_by(Pacer)
    grown = [r for r in law.scaler.resized if r.change.after > r.change.before]
    shrunk = [r for r in law.scaler.resized if r.change.after < r.change.before]
    assert 180 < min(r.at_s for r in grown if r.at_s > 180) < 240
    most = max(r.change.after for r in grown)
    assert 2 <= most <= 3, "2 are enough for 10 requests per second, and 3 while some miss"
    assert shrunk
    assert min(r.at_s for r in shrunk if r.change.after < 2 and r.at_s > 420) >= 420 + RHYTHM.stabilisation_s
    assert shrunk[-1].change.after < most
    assert all(ride.course.outcome is Outcome.COMPLETED for ride in law.rides)
    assert 1.0 - law.good() < 0.6 * (1.0 - scaled_by(Static).good())


def test_the_same_seed_gives_the_same_decisions() -> None:
    one, other = scaled_by(Pacer), scaled_by(Pacer)
    assert [r.change for r in one.scaler.resized] == [r.change for r in other.scaler.resized]
    assert [r.course for r in one.rides] == [r.course for r in other.rides]


def make_signals(replicas: int, ready: int | None = None, rate_rps: float = 5.0) -> ServiceSignals:
    lengths = Lengths(300.0, ((256.0, 0.5), (512.0, 0.5)))
    load = ClassSignals(SLO, rate_rps, lengths, Lengths(30.0, ((32.0, 1.0),)))
    engine = EngineSignals(make_table())
    ready = replicas if ready is None else ready
    return ServiceSignals((load,), (PoolSignals("mixed", Role.MIXED, 1, replicas, ready, 1, 8, engine),), 60.0)


@pytest.mark.parametrize(
    ("replicas", "ready", "waiting", "after"),
    [
        pytest.param(2, 2, 4.2, 2, id="within the tolerance of 0.1 nothing changes"),
        pytest.param(2, 2, 5.0, 3, id="2.5 waiting each: 2 × 2.5 / 2, rounded up"),
        pytest.param(3, 3, 40.0, 7, id="at most 4 pods or twice the size in 15 s"),
        pytest.param(3, 1, 4.0, 3, id="those that are starting are not ordered again"),
        pytest.param(4, 4, 1.0, 4, id="few waiting: not down before the window has passed"),
    ],
)
def test_an_hpa_on_queue_length(replicas: int, ready: int, waiting: float, after: int) -> None:
    law = QueueHPA(60.0, lambda pool: waiting, target=2.0)
    assert law.rule(make_signals(replicas, ready), 0.0).wanted == {"mixed": after}


def test_an_hpa_goes_down_to_the_most_of_its_window() -> None:
    queue = [8.0]
    law = QueueHPA(60.0, lambda pool: queue[0], target=2.0)
    assert law.rule(make_signals(4), 0.0).wanted == {"mixed": 4}
    queue[0] = 1.0
    assert law.rule(make_signals(4), 45.0).wanted == {"mixed": 4}
    assert law.rule(make_signals(4), 61.0).wanted == {"mixed": 1}


@pytest.mark.parametrize(
    ("ratio", "ready", "now", "after"),
    [
        pytest.param(0.6, 3, 0.0, 4, id="above 0.55: one more"),
        pytest.param(0.6, 2, 0.0, 3, id="not while one is starting"),
        pytest.param(0.5, 3, 90.0, 3, id="between 0.40 and 0.55 nothing"),
        pytest.param(0.3, 3, 90.0, 2, id="below 0.40 for the window: one less"),
        pytest.param(0.3, 3, 30.0, 3, id="below 0.40 for less than that: nothing"),
        pytest.param(None, 3, 90.0, 3, id="no traffic: nothing"),
    ],
)
def test_kedas_ratio_law(ratio: float | None, ready: int, now: float, after: int) -> None:
    law = RatioLaw(60.0, lambda at: ratio)
    law.rule(make_signals(3, 2), 0.0)
    assert law.rule(make_signals(3, ready), now).wanted == {"mixed": after}


def test_the_clairvoyant_has_what_the_law_needs_for_what_is_to_come() -> None:
    asked: list[tuple[float, float]] = []

    def to_come(start_s: float, end_s: float) -> ServiceSignals:
        asked.append((start_s, end_s))
        return make_signals(1, rate_rps=12.0)

    wanted = Clairvoyant(60.0, to_come, 35.0).rule(make_signals(1), 100.0).wanted
    assert asked == [(100.0, 135.0)]
    assert wanted == least_sizes(make_signals(1, rate_rps=12.0)).sizes
    assert wanted["mixed"] > 1
