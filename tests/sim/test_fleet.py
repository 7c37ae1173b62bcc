"""The fleet simulator: every job ends once, nothing is left behind, and the same seed gives the same run."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from engines import make_table
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.outcomes import Outcome
from paceline_api.slo import SLOClass
from paceline_engine.request import Leg
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec, scaled
from paceline_engine.step_time import Regime
from paceline_planner.sim.fleet import EngineSpec, Fleet, FleetSpec, Job, Ride
from paceline_router.facts import Role
from paceline_router.pick import POLICIES

CLASSES = {"interactive": SLOClass("interactive", 0.4, 0.04), "batch": SLOClass("batch", 30.0, 0.25)}
AGGREGATED = (Role.MIXED, Role.MIXED, Role.MIXED)
DISAGGREGATED = (Role.PREFILL, Role.PREFILL, Role.DECODE)


def make_fleet(roles: tuple[Role, ...], tile_tokens: int = 128, **over: object) -> FleetSpec:
    machine = MachineSpec(make_table(), tile_tokens)
    spec = ReplicaSpec(machine, prior=scaled(make_table(), 0.75), kv_blocks=400)
    engines = tuple(EngineSpec(f"{role}-{i}", role, spec) for i, role in enumerate(roles))
    return FleetSpec(engines, CLASSES, **over)  # type: ignore[arg-type]  # a factory's overrides


def make_jobs(count: int, rate_rps: float, seed: int) -> Iterator[Job]:
    rng = Random(seed)
    at = 0.0
    for i in range(count):
        at += rng.expovariate(rate_rps)
        yield Job(at, rng.randint(1, 1500), rng.randint(1, 120), "batch" if i % 4 == 0 else "interactive")


def serve(spec: FleetSpec, jobs: Iterator[Job], seed: int = 1) -> tuple[Fleet, list[Ride]]:
    rides: list[Ride] = []
    fleet = Fleet(spec, seed, lambda ride: bool(rides.append(ride)))  # type: ignore[func-returns-value]  # never stops
    fleet.run(jobs)
    fleet.check()
    return fleet, rides


@pytest.mark.parametrize("roles", [AGGREGATED, DISAGGREGATED], ids=["aggregated", "2 prefill + 1 decode"])
@pytest.mark.parametrize("router_policy", sorted(POLICIES))
def test_every_arrival_has_one_outcome_and_every_leg_is_counted(roles: tuple[Role, ...], router_policy: str) -> None:
    fleet, rides = serve(make_fleet(roles, router_policy=router_policy), make_jobs(300, 6.0, 2))
    assert fleet.arrivals == len(rides) == sum(fleet.outcomes.values()) == 300
    assert fleet.outcomes[Outcome.COMPLETED] == 300
    legs = sum(e.counters.finished + e.counters.aborted for e in fleet.engines.values())
    assert legs == 300 + sum(ride.leg is Leg.DECODE for ride in rides)
    assert legs == (600 if roles is DISAGGREGATED else 300)
    for ride in rides:
        assert ride.course.first_token_s is not None
        assert ride.course.end_s is not None
        assert ride.course.arrival_s < ride.course.first_token_s <= ride.course.end_s
        assert ride.course.output_tokens == ride.job.output_tokens


@given(seed=st.integers(0, 1000), rate=st.floats(0.5, 40), disaggregated=st.booleans())
def test_the_same_seed_gives_the_same_run_at_any_load(seed: int, rate: float, disaggregated: bool) -> None:
    spec = make_fleet(DISAGGREGATED if disaggregated else AGGREGATED)
    runs = [serve(spec, make_jobs(40, rate, seed), seed)[1] for _ in range(2)]
    assert [r.course for r in runs[0]] == [r.course for r in runs[1]]


def test_the_policy_believes_its_prior_and_learns_the_machine() -> None:
    fleet, _ = serve(make_fleet(AGGREGATED), make_jobs(400, 6.0, 3))
    for engine in fleet.engines.values():
        assert engine.machine.spec.table.name != engine.model.table.name
        assert all(engine.model.trusted(regime) for regime in Regime), "enough samples"
        assert 1.1 < engine.model.scale(Regime.DECODE) < 1.5, "towards 1 / 0.75"
        # Tile steps, which the prior lacks, are most of a small chunk's time: offset and scale share the correction.
        assert engine.model.error_ratio(Regime.MIXED) < 0.15, "the prior's is 0.25 and more"


def test_where_a_scale_is_all_that_is_wrong_it_is_learnt_in_both_regimes() -> None:
    fleet, _ = serve(make_fleet(AGGREGATED, tile_tokens=1), make_jobs(400, 6.0, 3))
    for engine in fleet.engines.values():
        for regime in Regime:
            assert engine.model.trusted(regime), "enough samples"
            assert 1.1 < engine.model.scale(regime) < 1.5, "towards 1 / 0.75"
            assert engine.model.error_ratio(regime) < 0.05, "the prior's is 0.25"


def test_a_job_that_no_engine_can_hold_is_rejected() -> None:
    fleet, _ = serve(make_fleet(AGGREGATED), iter([Job(0.0, 7000, 10, "batch")]))
    assert fleet.outcomes[Outcome.REJECTED] == 1


def test_distserves_switch_counts_the_hand_over_in_tpot_instead_of_ttft() -> None:
    jobs = [Job(float(i), 1000, 20, "interactive") for i in range(20)]
    ours = serve(make_fleet(DISAGGREGATED), iter(jobs))[1]
    theirs = serve(make_fleet(DISAGGREGATED, transfer_in_tpot=True), iter(jobs))[1]
    assert all((a.course.ttft_s or 0) > (b.course.ttft_s or 9) + 0.03 for a, b in zip(ours, theirs, strict=True))
    assert all(r.course.output_tokens == 20 for r in theirs)
