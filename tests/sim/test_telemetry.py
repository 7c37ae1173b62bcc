"""What the simulated Prometheus answers: production's signals, as late as scrapes are, and nothing beyond."""

from __future__ import annotations

from random import Random

import pytest
from engines import make_table
from paceline_api.slo import SLOClass
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec
from paceline_planner.sim.fleet import Fleet, FleetSpec
from paceline_planner.sim.members import Members, PoolSpec, StartUp, first_engines
from paceline_planner.sim.rides import Job
from paceline_planner.sim.telemetry import Sample, Telemetry
from paceline_router.autoscale.signals import Blind, ServiceSignals
from paceline_router.facts import Role
from paceline_router.scaling.gather import Standing, gather

SLO = SLOClass("interactive", 0.4, 0.04)
CLASSES = {SLO.name: SLO}
POOL = PoolSpec("mixed", Role.MIXED, ReplicaSpec(MachineSpec(make_table())), StartUp(20.0))


def signals_at(look_s: float, rate_rps: float = 5.0, prompt: int = 300, output: int = 20) -> ServiceSignals | Blind:
    """Scraped every 15 s from 7 s on, and gathered at `look_s` as production does."""
    telemetry = Telemetry(CLASSES, 15.0)
    spec = FleetSpec(first_engines([POOL], {"mixed": 3}), CLASSES)
    fleet = Fleet(spec, 1, lambda ride: bool(telemetry.ended(ride)), telemetry.arrived, telemetry.first_token)  # type: ignore[func-returns-value]
    members = Members(fleet, [POOL], Random(1))
    found: list[ServiceSignals | Blind] = []

    def look() -> None:
        view = members.view(CLASSES, 300.0)
        told = telemetry.answers(fleet.now).of(view.id)
        found.append(gather(view, told, Standing(), lambda *_: make_table()))

    for i in range(int(look_s / 15) + 2):
        fleet.timeline.at(7.0 + 15 * i, lambda: telemetry.scrape(fleet, members))
    fleet.timeline.at(look_s, look)
    count = int((look_s + 20) * rate_rps)
    fleet.run(Job(i / rate_rps, prompt, output, SLO.name) for i in range(count))
    fleet.check()
    return found[0]


def test_a_steady_service_is_seen_as_it_is() -> None:
    signals = signals_at(200.0)
    assert isinstance(signals, ServiceSignals)
    seen = signals.classes[0]
    assert seen.arrivals_rps == pytest.approx(5.0, rel=0.02)
    assert seen.prompt.mean_tokens == pytest.approx(300)
    assert [bound for bound, share in seen.prompt.buckets if share > 0] == [512.0]
    assert [bound for bound, share in seen.output.buckets if share > 0] == [32.0]
    assert seen.verdicts.decided == pytest.approx(300, rel=0.02)
    assert seen.verdicts.good == seen.verdicts.decided
    pool = signals.pools[0]
    assert (pool.replicas, pool.ready) == (3, 3)
    assert pool.engine.kv_tokens == 16_384
    assert pool.engine.mixed_scale != 1.0, "what the engines fitted"


@pytest.mark.parametrize(("look_s", "blind"), [(15.0, True), (40.0, False)], ids=["1 scrape", "3 scrapes"])
def test_a_window_that_scrapes_do_not_cover_yet_decides_nothing(look_s: float, blind: bool) -> None:
    assert isinstance(signals_at(look_s), Blind) is blind


def test_what_comes_after_the_last_scrape_is_not_known() -> None:
    telemetry = Telemetry(CLASSES, 15.0)
    for i, at_s in enumerate((10.0, 25.0, 40.0, 55.0)):
        telemetry.samples.append(Sample(at_s, {("received", SLO.name): 90 + 10 * i}, {}))
    telemetry.metrics.received.values[(SLO.name,)] = 1_000_000
    assert telemetry.increase(60.0, 60.0)(("received", SLO.name)) == pytest.approx(40)


@pytest.mark.parametrize(
    ("now", "length_s", "first", "increase"),
    [
        pytest.param(55.0, 60.0, 90, 30 * 60 / 45, id="a first sample within 1.1 intervals of the start reaches to it"),
        pytest.param(55.0, 300.0, 90, 30 * 52.5 / 45, id="one that is further away reaches half an interval back"),
        pytest.param(55.0, 60.0, 2, 30 * 48 / 45, id="but no further than to where the counter was 0"),
        pytest.param(70.0, 60.0, 90, 20 * 60 / 30, id="a last sample within 1.1 intervals of the end reaches to it"),
        pytest.param(10.0, 60.0, 90, 0.0, id="one sample tells no increase"),
    ],
)
def test_increases_follow_prometheus_rule(now: float, length_s: float, first: int, increase: float) -> None:
    """`rate` and `increase` extrapolate to the window's ends (prometheus.io, "Query functions")."""
    telemetry = Telemetry(CLASSES, 15.0)
    for i, at_s in enumerate((10.0, 25.0, 40.0, 55.0)):
        telemetry.samples.append(Sample(at_s, {("received", SLO.name): first + 10 * i}, {}))
    assert telemetry.increase(now, length_s)(("received", SLO.name)) == pytest.approx(increase)
