"""Replicas that come, go and die while a fleet runs: nothing is lost but what was on a dead one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random

import pytest
from engines import make_table
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline_api.outcomes import Outcome
from paceline_api.slo import SLOClass
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec
from paceline_planner.launching import DRAIN_NOTICE_S
from paceline_planner.sim.failures import kill_at
from paceline_planner.sim.fleet import Fleet, FleetSpec
from paceline_planner.sim.members import LOOK_EVERY_S, Members, PoolSpec, StartUp, first_engines
from paceline_planner.sim.rides import Job, Ride
from paceline_router.facts import Role

CLASSES = {"interactive": SLOClass("interactive", 1.0, 0.1)}
START = StartUp(20.0, 0.1)
REPLICA = ReplicaSpec(MachineSpec(make_table()), kv_blocks=400)
MIXED = (PoolSpec("mixed", Role.MIXED, REPLICA, START, gpus=2),)
SPLIT = (PoolSpec("prefill", Role.PREFILL, REPLICA, START), PoolSpec("decode", Role.DECODE, REPLICA, START))


@dataclass
class Served:
    """A fleet that has not run yet, and what ends on it."""

    fleet: Fleet
    members: Members
    rides: list[Ride] = field(default_factory=list)

    def run(self, jobs: Iterable[Job]) -> None:
        self.fleet.run(iter(jobs))
        self.fleet.check()

    def count(self, outcome: Outcome) -> int:
        return sum(ride.course.outcome is outcome for ride in self.rides)


def make_served(pools: tuple[PoolSpec, ...] = MIXED, replicas: int = 2, seed: int = 1, **over: object) -> Served:
    rides: list[Ride] = []
    sizes = {pool.name: replicas for pool in pools}
    spec = FleetSpec(first_engines(pools, sizes), CLASSES, **over)  # type: ignore[arg-type]  # a factory's overrides
    fleet = Fleet(spec, seed, lambda ride: bool(rides.append(ride)))  # type: ignore[func-returns-value]  # never stops
    return Served(fleet, Members(fleet, pools, Random(seed)), rides)


def make_jobs(count: int, rate_rps: float, seed: int = 1, output: int = 60) -> Iterator[Job]:
    rng = Random(seed)
    at = 0.0
    for _ in range(count):
        at += rng.expovariate(rate_rps)
        yield Job(at, rng.randint(1, 800), rng.randint(1, output), "interactive")


def test_an_ordered_replica_serves_after_its_start_and_is_paid_for_from_its_order() -> None:
    served = make_served(replicas=1)
    served.fleet.timeline.at(10.0, lambda: served.members.resize("mixed", 2))
    served.run(make_jobs(300, 5.0))
    new = served.members.pods[1]
    assert 18.0 <= new.ready_s - new.ordered_s <= 22.0
    on_new = [ride.course for ride in served.rides if ride.on == new.name]
    assert len(on_new) > 50
    assert min(course.arrival_s for course in on_new) >= new.ready_s
    assert served.members.gpu_seconds(50.0) == pytest.approx(2 * 50 + 2 * 40)


def test_a_leaving_replica_gets_nothing_new_and_goes_when_it_is_idle() -> None:
    served = make_served(replicas=2)
    served.fleet.timeline.at(20.0, lambda: served.members.resize("mixed", 1, ["mixed-0"]))
    served.run(make_jobs(200, 4.0, output=120))
    left = next(pod for pod in served.members.pods if pod.name == "mixed-0")
    there = [ride.course for ride in served.rides if ride.on == "mixed-0"]
    assert all(course.arrival_s <= 20.0 for course in there)
    last = max(course.end_s or 0.0 for course in there)
    assert last > 20.0, "it had something to finish"
    assert max(last, 20.0 + DRAIN_NOTICE_S) <= left.gone_s <= max(last, 20.0 + DRAIN_NOTICE_S) + LOOK_EVERY_S
    assert served.count(Outcome.COMPLETED) == 200
    assert list(served.fleet.engines) == ["mixed-1"]


def test_a_replica_that_is_not_wanted_any_more_before_it_is_ready_never_comes() -> None:
    served = make_served(replicas=1)
    served.fleet.timeline.at(5.0, lambda: served.members.resize("mixed", 2))
    served.fleet.timeline.at(15.0, lambda: served.members.resize("mixed", 1))
    served.run(make_jobs(100, 2.0))
    assert [pod.name for pod in served.members.pods if pod.gone_s == 15.0] == ["mixed-new-0"]
    assert list(served.fleet.engines) == ["mixed-0"]


def test_requests_on_a_dead_replica_go_elsewhere_unless_their_answer_had_begun() -> None:
    served = make_served(replicas=2)
    kill_at(20.0, served.members, "mixed-0")
    served.run(Job(i // 2 + 0.9, 1500, 40, "interactive") for i in range(80))
    failed = [ride for ride in served.rides if ride.course.outcome is Outcome.UPSTREAM_FAILED]
    again = [ride for ride in served.rides if ride.failures and ride.course.outcome is Outcome.COMPLETED]
    assert failed
    assert again
    assert all((ride.course.first_token_s or 99.0) < 20.0 for ride in failed), "its client had bytes"
    assert all((ride.course.first_token_s or 0.0) > 20.0 for ride in again), "no first byte before the failure"
    assert len(failed) + served.count(Outcome.COMPLETED) == 80
    assert len(served.fleet.engines) == 2, "another one was ordered, and came"


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_disaggregated_service_outlives_each_of_its_replicas(role: str) -> None:
    served = make_served(SPLIT, replicas=2)
    kill_at(20.0, served.members, f"{role}-0")
    kill_at(23.0, served.members, f"{role}-1")
    served.run(make_jobs(300, 5.0))
    assert served.count(Outcome.COMPLETED) > 200
    if role == "prefill":
        assert served.count(Outcome.COMPLETED) == 300, "no client has bytes from a prefill replica"


@pytest.mark.parametrize("recompute", [True, False], ids=["recompute", "fail"])
def test_a_failed_kv_transfer_is_prefilled_elsewhere_once_then_follows_on_failure(recompute: bool) -> None:
    served = make_served(SPLIT, kv_failure_ratio=0.5, kv_timeout_s=0.2, recompute=recompute)
    served.run(make_jobs(200, 2.0))
    prefills = {ride.id: ride.way.prefill_failures for ride in served.rides if ride.way is not None}
    twice = [ride for ride in served.rides if prefills[ride.id] == 2]
    assert len(twice) == pytest.approx(50, abs=20)
    wanted = Outcome.COMPLETED if recompute else Outcome.UPSTREAM_FAILED
    assert {ride.course.outcome for ride in twice} == {wanted}
    assert served.count(wanted) >= len(twice)
    assert all(ride.course.outcome is Outcome.COMPLETED for ride in served.rides if prefills[ride.id] < 2)


@pytest.mark.parametrize(
    ("recompute", "outcome"), [(True, Outcome.COMPLETED), (False, Outcome.NO_ENDPOINT)], ids=["recompute", "fail"]
)
def test_without_prefill_replicas_decode_ones_stand_in_where_they_may(recompute: bool, outcome: Outcome) -> None:
    served = make_served(SPLIT, replicas=1, recompute=recompute)
    kill_at(5.0, served.members, "prefill-0")
    served.run(make_jobs(40, 2.0))
    late = [ride for ride in served.rides if 5.0 < ride.job.arrival_s < 20.0]
    assert len(late) > 20
    assert {ride.course.outcome for ride in late} == {outcome}


def test_routers_share_the_arrivals_and_know_only_their_own() -> None:
    served = make_served(replicas=3, routers=3)
    served.run(make_jobs(300, 8.0))
    by_router = [sum(ride.router == i for ride in served.rides) for i in range(3)]
    assert sum(by_router) == served.count(Outcome.COMPLETED) == 300
    assert min(by_router) > 70


ACTIONS = st.lists(
    st.tuples(st.floats(0, 60), st.sampled_from(["resize", "kill"]), st.integers(0, 3)), min_size=1, max_size=6
)


@settings(max_examples=40)
@given(actions=ACTIONS, split=st.booleans(), routers=st.integers(1, 3), seed=st.integers(0, 99))
def test_whatever_comes_and_goes_every_job_ends_once_and_pools_have_their_size(
    actions: list[tuple[float, str, int]], split: bool, routers: int, seed: int
) -> None:
    pools = SPLIT if split else MIXED
    served = make_served(pools, 2, seed, routers=routers)
    fleet, members = served.fleet, served.members
    wanted = {pool.name: 2 for pool in pools}
    for at, what, n in sorted(actions):
        pool = pools[n % len(pools)].name

        def resize(pool: str = pool, n: int = n) -> None:
            wanted[pool] = n
            members.resize(pool, n)
            assert members.size(pool) == n

        if what == "resize":
            fleet.timeline.at(at, resize)
        else:
            kill_at(at, members, f"{pool}-{n % 2}")
    served.run(make_jobs(120, 3.0, seed))
    assert len(served.rides) == sum(fleet.outcomes.values()) == 120
    assert {name: members.size(name) for name in wanted} == wanted
    for pod in members.pods:
        assert pod.ordered_s <= pod.gone_s
