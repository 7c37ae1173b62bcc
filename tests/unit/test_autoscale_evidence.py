"""What is known of a rate from tick to tick: bounds of spans that do not contradict each other."""

from __future__ import annotations

from dataclasses import astuple
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_router.autoscale.evidence import LONGEST_S, SPARE, SURE, Known, Rates, with_rates
from scaling_double import make_class, make_pool, make_signals

TICK_S, WINDOW_S = 15.0, 60.0


def known(*rates_rps: float) -> tuple[float, float, float]:
    """At least, mean, at most after ticks of these measured rates."""
    rates = Rates()
    for i, rate in enumerate(rates_rps):
        signals = make_signals(make_pool(), rps=rate, window_s=WINDOW_S)
        rates.add(signals, i * TICK_S)
    return astuple(rates.known(signals)["chat"])


def test_one_window_is_known_to_so_many_deviations_of_its_count() -> None:
    root = sqrt(4.0 * WINDOW_S)
    assert known(4.0) == pytest.approx((4.0 / (1 + SURE / root), 4.0, 4.0 * (1 + SPARE / root)))


def test_a_rate_that_stays_is_known_better_up_to_the_longest_span() -> None:
    root = sqrt(4.0 * LONGEST_S)
    steady = (4.0 / (1 + SURE / root), 4.0, 4.0 * (1 + SPARE / root))
    assert known(*[4.0] * 17) == pytest.approx(steady)
    assert known(*[9.0] * 30, *[4.0] * 21) == pytest.approx(steady), "what is older is forgotten"


@pytest.mark.parametrize(("before", "after"), [(4.0, 8.0), (8.0, 4.0), (4.0, 0.0)])
def test_a_rate_that_has_changed_for_sure_is_known_from_after_the_change_only(before: float, after: float) -> None:
    assert known(*[before] * 20, after) == pytest.approx(known(after))


def test_a_rate_that_may_have_changed_is_averaged() -> None:
    least, mean, most = known(*[4.0] * 16, 4.4)
    assert 4.0 < mean < 4.1
    assert least < mean < most < 4.4


def test_a_window_in_which_nothing_came_by_chance_contradicts_no_low_rate() -> None:
    """0.05 rps are 3 a minute, of which e⁻³ see none; 0.5 rps are 30."""
    least, mean, most = known(*[0.05] * 17, 0.0)
    assert 0.02 < least < 0.04 < mean < 0.05 < most < 0.07
    assert known(*[0.5] * 17, 0.0) == (0.0, 0.0, 0.0)


def test_no_traffic_is_no_traffic() -> None:
    assert known(0.0, 0.0) == (0.0, 0.0, 0.0)


def test_one_request_a_window_is_never_taken_for_none() -> None:
    assert known(1.0 / WINDOW_S)[0] > 0.0


def test_each_class_is_known_by_itself() -> None:
    rates = Rates()
    signals = make_signals(make_pool(), classes=(make_class("a", 4.0), make_class("b", 0.0)))
    rates.add(signals, 0.0)
    found = rates.known(signals)
    assert found["a"].high > 4.0
    assert found["b"] == Known(0.0, 0.0, 0.0)
    assert [c.arrivals_rps for c in with_rates(signals, {"a": 3.0, "b": 1.0}).classes] == [3.0, 1.0]


@given(st.lists(st.floats(0.0, 50.0), min_size=1, max_size=40))
def test_at_least_is_never_more_than_at_most(rates_rps: list[float]) -> None:
    least, _, most = known(*rates_rps)
    assert 0.0 <= least <= most
