"""Who is suspected for errors, and for how long; how much may be tried again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_router.facts import Role
from paceline_router.outliers import MOST_ERRORS, SUSPECTED_S, Outliers
from paceline_router.replica import Replica
from paceline_router.retry_budget import LEAST_HELD, RATIO, REFILL_RPS, RetryBudget
from paceline_router.state import Ledger


class Rig:
    """One replica that errs and completes."""

    def __init__(self) -> None:
        self.ledger = Ledger([Replica("m0", Role.MIXED)])
        self.outliers = Outliers()
        self.now = 0.0

    def errs(self, times: int = 1) -> bool:
        """Whether it is suspected now."""
        for _ in range(times):
            self.ledger.erred("m0")
        return self.passes(0.0)

    def passes(self, seconds: float) -> bool:
        self.now += seconds
        self.outliers.look(self.ledger.replicas, self.now)
        return "m0" in self.outliers.suspects


def test_errors_in_a_row_make_a_suspect_and_one_completed_leg_clears_it() -> None:
    rig = Rig()
    assert not rig.errs(MOST_ERRORS - 1)
    rig.ledger.completed("m0")
    assert not rig.errs(MOST_ERRORS - 1)
    assert rig.errs()
    rig.ledger.completed("m0")
    assert not rig.passes(0.0)


def test_after_its_time_a_single_error_makes_it_a_suspect_for_twice_as_long() -> None:
    rig = Rig()
    for times in range(3):
        assert rig.errs(1 if times else MOST_ERRORS)
        assert rig.errs(3)  # of what it had before
        assert rig.passes(SUSPECTED_S * 2**times - 0.1)
        assert not rig.passes(0.2)
    rig.ledger.completed("m0")
    rig.passes(0.0)
    assert not rig.errs(MOST_ERRORS - 1)


def test_one_that_left_is_forgotten() -> None:
    rig = Rig()
    assert rig.errs(MOST_ERRORS)
    rig.ledger.remove("m0")
    assert not rig.passes(0.0)


@pytest.mark.parametrize("in_flight", [0, 700], ids=["few in flight", "many in flight"])
def test_as_many_may_be_tried_again_at_once_as_are_in_flight(in_flight: int) -> None:
    budget, most = RetryBudget(), max(in_flight, int(LEAST_HELD))
    for _ in range(10_000):
        budget.add(in_flight)
    assert [budget.take(in_flight, 1.0) for _ in range(most + 5)] == [True] * most + [False] * 5


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0.0, 0.5)), max_size=400),
    st.integers(0, 300),
)
def test_retries_stay_within_the_budget(steps: list[tuple[bool, float]], in_flight: int) -> None:
    budget, now, requests, retries = RetryBudget(), 0.0, 0, 0
    for retried, passed_s in steps:
        now += passed_s
        if retried:
            retries += budget.take(in_flight, now)
        else:
            requests += 1
            budget.add(in_flight)
    assert retries <= LEAST_HELD + RATIO * requests + REFILL_RPS * now + 1e-6


def test_where_all_fails_the_load_grows_by_a_fifth_only() -> None:
    budget, requests = RetryBudget(), 100_000
    retries = 0
    for i in range(requests):
        budget.add(50)
        retries += sum(budget.take(50, i / 1000) for _ in range(3))
    assert retries / requests == pytest.approx(RATIO + REFILL_RPS / 1000, abs=0.01)
