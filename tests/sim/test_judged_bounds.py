"""What a judged run leaves out, and what a search of capacities says where nothing holds any rate."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import pytest
from paceline_api.slo import SLOClass
from paceline_planner.judged.cases import DEADLINES, Box, fleet
from paceline_planner.judged.contests import Contest
from paceline_planner.judged.measure import LEFT_OUT, Measured, Window, bracket, measure, settle
from paceline_planner.sim.rides import Job

BOX = Box("a100-sxm-80gb", "llama-2-13b")  # KV for 58,784 tokens
SLO = SLOClass("interactive", 0.4, 0.06)
TOO_LONG, RATE_RPS = 85_000, 2.0


def some_too_long(every: int) -> Iterator[Job]:
    """Short prompts, and every so often one that no replica's KV can hold."""
    i = 0
    while True:
        i += 1
        yield Job(i / RATE_RPS, TOO_LONG if i % every == 0 else 200, 20, SLO.name)


def run(every: int, *, cuts: bool) -> Measured:
    spec = fleet(BOX, DEADLINES, [SLO])
    return measure(spec, some_too_long(every), RATE_RPS, 1, Window(5.0, 60), cuts=cuts)


@pytest.mark.parametrize("cuts", [False, True])
def test_a_request_that_no_replica_can_hold_is_left_out_and_ends_no_run(cuts: bool) -> None:
    found = run(4, cuts=cuts)
    assert found.verdicts == {(SLO.name, LEFT_OUT): 15, (SLO.name, "good"): 45}
    assert found.attainment_percent == {SLO.name: 100.0}
    assert found.worst_quartile_percent == 100.0


def test_a_class_of_which_nothing_can_be_held_attains_nothing() -> None:
    found = run(1, cuts=False)
    assert found.attainment_percent == {SLO.name: 0.0}
    assert found.over_percent == -90.0


def never(rate_rps: float, seed: int) -> Measured:
    assert rate_rps > 0
    return Measured(rate_rps, {}, -1.0, 0.0, 0.0, 0.0, {})


def test_a_capacity_of_nothing_is_zero_and_no_rate_of_zero_is_tried() -> None:
    near = bracket(never, 5.0)
    assert near == 0.0
    assert bracket(never, near) == 0.0
    assert settle(never, near, (1, 2), 1.02) == 0.0
    assert settle(never, 5.0, (1, 2), 1.02) == 0.0


@pytest.mark.parametrize(
    ("ours_rps", "fixed_rps", "ratio"),
    [
        pytest.param(6.0, {"sarathi 256": 2.0, "sarathi 512": 4.0}, 1.5, id="against the best fixed budget"),
        pytest.param(6.0, {"sarathi 256": 0.0}, inf, id="infinite where no fixed budget holds a rate"),
        pytest.param(0.0, {"sarathi 256": 0.0}, 0.0, id="zero where nobody holds any"),
    ],
)
def test_a_contest_is_a_ratio_of_capacities(ours_rps: float, fixed_rps: dict[str, float], ratio: float) -> None:
    curve = [Measured(rate, {}, 0.0, 0.0, 0.0, 0.0, {}) for rate in (3.0, 6.0)]
    found = Contest("case", ours_rps, fixed_rps, {}, {DEADLINES.name: curve})
    assert found.ratio == ratio
    assert found.kept_past_capacity == 0.0
