"""Steady runs and capacities: the rule of DESIGN §1 on loads whose answer is known."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random

import pytest
from engines import make_table
from paceline_api.slo import SLOClass
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec
from paceline_planner.papers import distserve_2p1d as example
from paceline_planner.sim.fleet import EngineSpec, FleetSpec, Job
from paceline_planner.sim.steady import SteadyRule, SteadyRun, capacity, steady_run
from paceline_router.facts import Role

SLO = SLOClass("interactive", 0.4, 0.04)
QUICK = SteadyRule(drop_s=20, arrivals=400, most_arrivals=1600)


def make_jobs(rate_rps: float, seed: int) -> Iterator[Job]:
    rng = Random(seed)
    at = 0.0
    while True:
        at += rng.expovariate(rate_rps)
        yield Job(at, 500, 16, "interactive")


def quick_run(policy: str, rate_rps: float, seed: int) -> SteadyRun:
    machine = MachineSpec(make_table(), tile_tokens=1, noise_ratio=0.0, stall_probability=0.0)
    fleet = FleetSpec((EngineSpec("m", Role.MIXED, ReplicaSpec(machine, policy)),), {SLO.name: SLO})
    return steady_run(fleet, make_jobs(rate_rps, seed), rate_rps, seed, QUICK)


def test_a_light_load_settles_and_meets_its_objective() -> None:
    run = quick_run("vllm-v1", 1.0, 1)
    assert run.void == ""
    assert run.attainment_percent > 99
    assert run.run.classes[0].decided >= QUICK.arrivals


def test_an_overload_never_settles_says_so_and_still_ends() -> None:
    run = quick_run("vllm-v1", 30.0, 1)
    assert "not steady" in run.void
    assert run.attainment_percent < 20


def test_shedding_nothing_every_measured_arrival_is_decided() -> None:
    run = quick_run("stall-free", 12.0, 1)
    figures = run.run.classes[0]
    assert figures.undecided == 0
    assert figures.arrivals == figures.decided


def test_capacity_is_the_highest_rate_that_meets_the_target_over_all_seeds() -> None:
    found = capacity(partial(quick_run, "vllm-v1"), 90.0, 0.5, 8.0, seeds=(1, 2), tolerance=0.1)
    met = [p.rate_rps for p in found.points if p.attainment_percent >= 90]
    missed = [p.rate_rps for p in found.points if p.attainment_percent < 90]
    assert found.rate_rps == max(met)
    assert min(missed) / found.rate_rps <= 1.1
    assert all(len(p.runs) == 2 for p in found.points)


def test_capacity_is_zero_when_no_rate_meets_the_target() -> None:
    assert capacity(partial(quick_run, "vllm-v1"), 100.1, 1.0, 2.0, seeds=(1,)).rate_rps == 0.0


@pytest.mark.parametrize(
    ("side", "rate_per_gpu", "met"),
    [
        (example.PREFILL_FIRST, 1.5, True),
        (example.PREFILL_FIRST, 2.1, False),
        (example.TWO_P_ONE_D, 3.2, True),
        (example.TWO_P_ONE_D, 3.9, False),
    ],
    ids=lambda v: v.name if isinstance(v, example.Side) else str(v),
)
def test_distserves_example_falls_where_it_should(side: example.Side, rate_per_gpu: float, met: bool) -> None:
    run = example.steady(side, example.TABLE, rate_per_gpu, 1)
    assert (run.attainment_percent >= 90) is met
