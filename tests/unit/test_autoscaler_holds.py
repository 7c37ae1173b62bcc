"""Whose size a pool has, by the marks that it bears, and for how long somebody else's is respected."""

from __future__ import annotations

from typing import Any

import pytest
from factories_scaling import NOW_S, make_pool_view
from paceline_router.scaling.holds import HELD, SIZED, Hold, annotations_of, hold_of, mark, read_marks
from paceline_router.scaling.views import Marks

HOLD_S = 900.0
SINCE = "2026-01-01T00:00:00Z"
EARLIER_S = NOW_S - 600


def ours(*sizes: int) -> Marks:
    return Marks(frozenset(sizes))


def theirs(held: int, *sizes: int, since_s: float = NOW_S) -> Marks:
    return Marks(frozenset(sizes), held, since_s)


JUDGED: list[Any] = [
    pytest.param(5, Marks(), {}, ours(5), id="nobody's: no mark yet, so it counts as ours from now on"),
    pytest.param(3, ours(3), {}, ours(3), id="ours, as marked"),
    pytest.param(3, ours(2, 3), {}, ours(3), id="ours, which was being written"),
    pytest.param(2, ours(2, 3), {}, ours(2), id="ours, whose change never came about"),
    pytest.param(5, ours(3), {}, theirs(5, 3), id="somebody else's, from now on"),
    pytest.param(5, theirs(5, 3, since_s=EARLIER_S), {}, theirs(5, 3, since_s=EARLIER_S), id="theirs, as before"),
    pytest.param(5, theirs(5, 3, since_s=NOW_S - 899), {}, theirs(5, 3, since_s=NOW_S - 899), id="theirs, to the last"),
    pytest.param(5, theirs(5, 3, since_s=NOW_S - 900), {}, ours(5), id="ours, now that its time is over"),
    pytest.param(5, theirs(5, 3, since_s=NOW_S + 60), {}, theirs(5, 3), id="theirs from now on: that clock was ahead"),
    pytest.param(6, theirs(5, 3, since_s=EARLIER_S), {}, theirs(6, 3), id="theirs again: another size, time anew"),
    pytest.param(3, theirs(5, 3, since_s=EARLIER_S), {}, ours(3), id="ours again: somebody gave it back"),
    pytest.param(4, ours(3), {"least": 4}, ours(4), id="ours, raised to a new least by the operator"),
    pytest.param(2, ours(3), {"most": 2}, ours(2), id="ours, cut to a new most by the operator"),
    pytest.param(5, ours(3), {"least": 4}, theirs(5, 3), id="theirs, above a new least"),
    pytest.param(4, ours(3), {"least": 4, "most": 4}, ours(4), id="the file's, where that fixes it"),
]


@pytest.mark.parametrize(("size", "before", "bounds", "after"), JUDGED)
def test_a_size_is(size: int, before: Marks, bounds: dict[str, int], after: Marks) -> None:
    assert mark(make_pool_view("prefill", size, marks=before, **bounds), HOLD_S, NOW_S + 0.4) == after


def test_theirs_is_held_and_ours_is_not() -> None:
    assert hold_of(make_pool_view("prefill", 5), theirs(5, 3), HOLD_S) == Hold("prefill", 5, NOW_S + 900)
    assert hold_of(make_pool_view("prefill", 3), ours(3), HOLD_S) is None


def test_a_hold_says_what_and_until_when() -> None:
    said = "prefill: 5 replicas, set by others, until 2026-01-01T00:15:00Z"
    assert str(Hold("prefill", 5, NOW_S + 900)) == said


@pytest.mark.parametrize("marks", [Marks(), ours(3), ours(2, 3), theirs(5, 3)])
def test_marks_are_read_as_they_were_written(marks: Marks) -> None:
    assert read_marks({k: v for k, v in annotations_of(marks).items() if v is not None}) == marks


@pytest.mark.parametrize(
    ("annotations", "marks"),
    [
        ({SIZED: "three"}, Marks()),
        ({SIZED: "3,x"}, ours(3)),
        ({SIZED: "3", HELD: "5"}, ours(3)),
        ({SIZED: "3", HELD: f"five since {SINCE}"}, ours(3)),
        ({SIZED: "3", HELD: "5 since yesterday"}, ours(3)),
        ({SIZED: "9" * 5000, HELD: f"{'9' * 5000} since {SINCE}"}, Marks()),
        ({SIZED: "3", HELD: f"5 since {SINCE}"}, theirs(5, 3)),
    ],
)
def test_what_makes_no_sense_counts_as_absent(annotations: dict[str, str], marks: Marks) -> None:
    assert read_marks(annotations) == marks
