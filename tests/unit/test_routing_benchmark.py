"""What the router's benchmark holds policies against, from made-up figures; nothing is simulated here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, in no package

from routing_goals import Figure, area_ratio, by_side, goals, half_width, peak, ratio
from routing_oracle import GREEDY, ORACLE, Gap
from routing_oracle import missed as missed_by_oracle
from routing_tenants import Kept
from routing_tenants import missed as missed_by_tenants
from routing_workloads import FRESH, OURS, PERFECT, RIVAL, ROOM, THREE_ROUTERS

Changed = dict[tuple[str, float], tuple[float, ...]]
AS_AT_PEAK = (90.0, 80.0, 70.0, 60.0)


def make_figure(side: str, factor: float, good: tuple[float, ...], quartiles: tuple[float, ...] = AS_AT_PEAK) -> Figure:
    return Figure("mixed", side, factor, 100 * factor, good, {"chat": quartiles})


def make_figures(changed: Changed | None = None, twice: tuple[float, ...] = AS_AT_PEAK) -> list[Figure]:
    """Every goal is met: ours 12 % above LMETRIC, all else as good as ours."""
    goodputs: Changed = {}
    for factor in (1.0, 2.0):
        goodputs[RIVAL, factor] = (80.0, 84.0)
        for side in (OURS, PERFECT, FRESH, THREE_ROUTERS, ROOM):
            goodputs[side, factor] = (89.6, 94.08)
    return [
        make_figure(side, factor, good, twice if (side, factor) == (ROOM, 2.0) else AS_AT_PEAK)
        for (side, factor), good in (goodputs | (changed or {})).items()
    ]


CASES: list[tuple[str, Changed, tuple[float, ...], list[str]]] = [
    ("all as it should be", {}, AS_AT_PEAK, []),
    (
        "3 % under LMETRIC at one rate",
        {(OURS, 2.0): (77.6, 81.48), (ROOM, 2.0): (89.6, 94.08)},
        AS_AT_PEAK,
        ["more than 2 % under", "over the curve", "perfect inputs", "state 1 s old"],
    ),
    (
        "9 % above LMETRIC",
        {(OURS, f): (87.2, 91.56) for f in (1.0, 2.0)},
        AS_AT_PEAK,
        ["where that peaks", "over the curve"],
    ),
    ("perfect inputs bring 8 %", {(PERFECT, 1.0): (96.8, 101.6)}, AS_AT_PEAK, ["1 × capacity: below 95 %"]),
    ("late state costs 8 %", {(FRESH, 1.0): (96.8, 101.6)}, AS_AT_PEAK, ["1 × capacity: state 1 s old"]),
    ("three routers cost 8 %", {(THREE_ROUTERS, 2.0): (82.4, 86.6)}, AS_AT_PEAK, ["2 × capacity: three routers"]),
    ("goodput falls past its peak", {(ROOM, 2.0): (79.0, 83.0)}, AS_AT_PEAK, ["below 90 % of its peak"]),
    ("long prompts are given up", {(ROOM, 2.0): (89.0, 94.0)}, (90.0, 80.0, 70.0, 29.0), ["quartile 4 29 %"]),
]


@pytest.mark.parametrize(("changed", "twice", "misses"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_misses_a_goal_is_named(changed: Changed, twice: tuple[float, ...], misses: list[str]) -> None:
    missed = goals("mixed", make_figures(changed, twice))
    assert len(missed) == len(misses)
    for line, part in zip(missed, misses, strict=True):
        assert part in line


def test_ratios_are_of_pairs() -> None:
    of = by_side([make_figure(OURS, 1.0, (11.0, 22.0)), make_figure(RIVAL, 1.0, (10.0, 20.0))], "mixed")
    mean, half = ratio(of, OURS, RIVAL, 1.0)
    assert mean == pytest.approx(1.1)
    assert half == pytest.approx(0.0, abs=1e-9)
    assert half_width((1.0, 2.0, 3.0)) == pytest.approx(4.303 / 3**0.5)
    assert half_width((1.0,)) == 0.0


def test_areas_are_under_the_whole_curve() -> None:
    figures = [make_figure(s, f, (g,)) for s, f, g in ((OURS, 1.0, 1.0), (OURS, 2.0, 3.0), (OURS, 4.0, 3.0))]
    figures += [make_figure(RIVAL, f, (1.0,)) for f in (1.0, 2.0, 4.0)]
    of = by_side(figures, "mixed")
    assert area_ratio(of, OURS, RIVAL) == pytest.approx((2.0 + 6.0) / 3.0)
    assert peak(of, OURS).factor == 2.0


def test_a_small_fleet_is_held_against_greedy_with_perfect_inputs() -> None:
    near, far = ({OURS: ours, GREEDY: 90.0, ORACLE: 99.0} for ours in (86.0, 85.0))
    assert missed_by_oracle([Gap("azure", 1.0, near)]) == []
    assert len(missed_by_oracle([Gap("azure", 1.0, near), Gap("mixed", 1.0, far)])) == 1


def test_a_burst_may_take_a_tenth_from_another_tenant() -> None:
    assert missed_by_tenants(Kept("ours", 99.0, 90.0, 50.0)) == []
    assert len(missed_by_tenants(Kept("ours", 99.0, 88.0, 50.0))) == 1
