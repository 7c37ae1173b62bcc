"""Routers that know everything, and the search that knows even what comes: what they see is true, and helps."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from random import Random

from paceline_api.slo import SLOClass
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec
from paceline_engine.tables import load_table
from paceline_planner.sim.fleet import EngineSpec, Fleet, FleetSpec, Job, Ride
from paceline_planner.sim.look_ahead import look_ahead, play, replay
from paceline_planner.sim.seer import Seer, TruePrefixes, seer
from paceline_router.facts import Role
from paceline_router.prefixes import SPAN_TOKENS

TABLE = load_table("a100-sxm-80gb", "llama-3.1-8b", 1)
MACHINE = MachineSpec(TABLE, noise_ratio=0.0, stall_probability=0.0)
CLASSES = {"chat": SLOClass("chat", 0.4, 0.04)}
SPANS = 16


def make_spec(policy: str = "least-misses", replicas: int = 2) -> FleetSpec:
    engines = tuple(EngineSpec(f"m{i}", Role.MIXED, ReplicaSpec(MACHINE)) for i in range(replicas))
    return FleetSpec(engines, CLASSES, policy)


def make_jobs(rate_rps: float, count: int) -> list[Job]:
    rng, at, jobs = Random(4), 0.0, []
    for _ in range(count):
        at += rng.expovariate(rate_rps)
        jobs.append(Job(at, rng.randint(100, 4000), rng.randint(1, 60), "chat"))
    return jobs


def serve(jobs: list[Job]) -> tuple[Fleet, Seer, list[Ride]]:
    rides: list[Ride] = []
    fleet = Fleet(make_spec(), 1, lambda _: False, rides.append, make_router=seer)
    router = fleet.routers[0]
    assert isinstance(router, Seer)
    fleet.run(iter(jobs))
    fleet.check()
    return fleet, router, rides


def test_a_seer_knows_the_length_of_an_answer() -> None:
    _, router, _ = serve(make_jobs(5.0, 5))
    size = router.size(Job(0.0, 100, 77, "chat"))
    assert (size.output_tokens, size.pace_tokens) == (77, 77)


def test_a_seer_sees_how_far_each_queued_prompt_is() -> None:
    rides: list[Ride] = []
    seen: list[tuple[int, int]] = []
    fleet = Fleet(make_spec(replicas=1), 1, lambda _: False, rides.append, make_router=seer)
    router = fleet.routers[0]

    def look() -> None:
        engine, replica = fleet.engines["m0"], router.ledger.replicas["m0"]
        queued = [r for r in (*engine.view.partials, *engine.view.waiting) if not r.emitted_tokens]
        seen.append((replica.new_tokens, sum(r.left_tokens for r in queued)))

    jobs = [Job(0.001 * i, 9000, 4, "chat") for i in range(3)]
    fleet.timeline.at(0.7, look)
    fleet.run(iter([*jobs, Job(0.69999, 10, 1, "chat")]))
    fleet.check()
    (ledgers, engines) = seen[0]
    assert 0 < engines < 27_000
    assert ledgers == engines
    assert router.ledger.replicas["m0"].new_tokens == 0


def test_a_seer_looks_into_the_prefix_caches() -> None:
    hashes = tuple(range(SPANS * SPAN_TOKENS // 16))
    jobs = [replace(job, prompt_tokens=SPANS * SPAN_TOKENS, block_hashes=hashes) for job in make_jobs(1.0, 1)]
    fleet, router, rides = serve(jobs)
    held = TruePrefixes(fleet.engines).cached(router.spans(hashes), 0.0)
    assert held == {rides[0].on: SPANS * SPAN_TOKENS}
    assert TruePrefixes(fleet.engines).cached(router.spans(tuple(-h - 1 for h in hashes)), 0.0) == {}


def test_who_is_told_all_places_serves_as_whoever_chose_them() -> None:
    spec, jobs = make_spec(), make_jobs(14.0, 120)
    played = play(spec, jobs)
    assert replay(spec, jobs, played.places) == played
    assert not all(played.good)


def test_looking_ahead_saves_some_and_loses_none() -> None:
    spec, jobs = make_spec("round-robin"), list(islice(make_jobs(14.0, 120), 80))
    begin = play(spec, jobs)
    found = look_ahead(spec, jobs, begin, 40, Random(1))
    assert sum(found.good) > sum(begin.good)
    assert replay(spec, jobs, found.places) == found
    assert look_ahead(spec, jobs, found, 0, Random(1)) == found
