"""Fleets whose router has a waiting room, at low load and far beyond capacity, on the virtual clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, takewhile
from random import Random

import pytest
from paceline_api.outcomes import Outcome
from paceline_api.slo import SLOClass, Verdict, judge
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec
from paceline_engine.tables import load_table
from paceline_planner.sim.fleet import EngineSpec, Fleet, FleetSpec, Job, Ride
from paceline_router.facts import Role
from paceline_router.pick import POLICIES
from paceline_router.waiting import Rule

CLASSES = {"chat": SLOClass("chat", 0.5, 0.05), "batch": SLOClass("batch", 10.0, 0.25)}
RULES = {"chat": Rule(), "batch": Rule(priority=1)}
TABLE = load_table("a100-sxm-80gb", "llama-3.1-8b", 1)


def make_jobs(rate_rps: float, seed: int = 1) -> Iterator[Job]:
    rng, at = Random(seed), 0.0
    while True:
        at += rng.expovariate(rate_rps)
        yield Job(at, rng.randint(200, 2000), rng.randint(1, 200), "batch" if rng.random() < 0.3 else "chat")


def make_spec(policy: str = "least-misses", *, routers: int = 1, waits: bool = True) -> FleetSpec:
    engines = tuple(EngineSpec(f"m{i}", Role.MIXED, ReplicaSpec(MachineSpec(TABLE))) for i in range(2))
    return FleetSpec(engines, CLASSES, policy, waiting=RULES if waits else None, routers=routers)


def serve(
    rate_rps: float, count: int, *, waits: bool = True, policy: str = "least-misses", routers: int = 1
) -> list[Ride]:
    rides: list[Ride] = []
    fleet = Fleet(make_spec(policy, routers=routers, waits=waits), 1, lambda _: False, rides.append)
    fleet.run(islice(make_jobs(rate_rps), count))
    fleet.check()
    assert fleet.is_over
    assert sum(fleet.outcomes.values()) == len(rides) == count
    return rides


def good(rides: list[Ride], class_name: str) -> float:
    mine = [r for r in rides if r.job.class_name == class_name]
    return sum(judge(CLASSES[class_name], r.course, 1e9) is Verdict.GOOD for r in mine) / len(mine)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_at_low_load_nobody_is_shed_whatever_the_policy(policy: str) -> None:
    rides = serve(3.0, 60, policy=policy)
    assert {r.course.outcome for r in rides} == {Outcome.COMPLETED}


def test_far_beyond_capacity_late_ones_are_shed_and_not_served() -> None:
    with_room, without = serve(45.0, 700), serve(45.0, 700, waits=False)
    assert {r.course.outcome for r in with_room} == {Outcome.COMPLETED, Outcome.SHED}
    assert {r.course.outcome for r in without} == {Outcome.COMPLETED}
    assert good(with_room, "batch") > good(without, "batch")
    assert good(with_room, "chat") > 0.8 * good(without, "chat")
    served = [r for r in with_room if r.course.outcome is Outcome.COMPLETED]
    assert good(served, "chat") > 0.9 > good(without, "chat")


def test_several_routers_have_a_room_each() -> None:
    rides = serve(30.0, 300, routers=3)
    assert {r.router for r in rides} == {0, 1, 2}
    assert {r.course.outcome for r in rides} <= {Outcome.COMPLETED, Outcome.SHED}


def test_one_that_is_shed_was_never_sent() -> None:
    for ride in serve(45.0, 300):
        if ride.course.outcome is Outcome.SHED:
            assert ride.way is not None
            assert (ride.on, ride.way.flight, ride.course.first_token_s) == ("", None, None)
            assert ride.course.end_s is not None
            assert ride.course.end_s >= ride.course.arrival_s + CLASSES[ride.job.class_name].ttft_s


def test_one_tenants_burst_takes_less_of_anothers_goodput_where_they_are_told_apart() -> None:
    """`small` sends an eighth of what the fleet can serve, `big` half as much again as that."""

    def jobs() -> Iterator[Job]:
        rng = Random(2)
        for job in make_jobs(45.0):
            yield replace(job, class_name="chat", tenant="small" if rng.random() < 0.08 else "big")

    def of_small(told: bool) -> float:
        found: list[Ride] = []
        fleet = Fleet(make_spec(), 1, lambda _: False, found.append)
        fleet.run(job if told else replace(job, tenant="") for job in islice(jobs(), 900))
        small = [r for r, job in zip(found, jobs(), strict=False) if job.tenant == "small"]
        return good(small, "chat")

    assert of_small(told=True) > of_small(told=False) + 0.05


def test_a_burst_leaves_another_tenant_most_of_its_goodput() -> None:
    """`big` sends a third of what the fleet can serve, and for 15 s twice as much as that; `small` a twelfth always."""

    def jobs(burst: bool) -> Iterator[Job]:
        rng = Random(5)
        for job in make_jobs(70.0):
            bursts = burst and 8.0 <= job.arrival_s < 23.0
            share = rng.random()
            if share < 0.035:
                yield replace(job, class_name="chat", tenant="small")
            elif bursts or share < 0.18:
                yield replace(job, class_name="chat", tenant="big")

    def of_small(burst: bool) -> float:
        rides: list[Ride] = []
        fleet = Fleet(make_spec(), 1, lambda _: False, rides.append)
        fleet.run(takewhile(lambda job: job.arrival_s < 23.0, jobs(burst)))
        during = [r for r in rides if r.job.tenant == "small" and r.job.arrival_s >= 8.0]
        assert (sum(r.job.tenant == "big" for r in rides) > 1000) is burst
        return good(during, "chat")

    calm = of_small(burst=False)
    assert of_small(burst=True) > 0.65 * calm > 0.6
