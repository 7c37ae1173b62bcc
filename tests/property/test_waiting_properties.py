"""A waiting room under any arrivals and prospects: each leaves once, late ones never before those that can be saved."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from paceline_router.waiting import LONGEST_RETRY_S, Claim, Fate, Prospect, Rule, WaitingRoom

RULES = {"chat": Rule(), "code": Rule(), "batch": Rule(priority=1)}
ALONE_S = 0.1
ARRIVALS = st.lists(
    st.tuples(st.floats(0.0, 0.5), st.sampled_from(["chat", "code", "batch", "unknown"]), st.floats(0.01, 4.0)),
    max_size=40,
)


@settings(max_examples=80)
@given(arrivals=ARRIVALS, seed=st.integers(0, 999), most=st.floats(0.0, 2.5))
def test_each_leaves_exactly_once_and_at_the_latest_when_it_is_due(
    arrivals: list[tuple[float, str, float]], seed: int, most: float
) -> None:
    room: WaitingRoom[int] = WaitingRoom(RULES)
    rng = Random(seed)
    now, left = 0.0, dict[int, Fate]()
    due: dict[int, float] = {}
    prospects: dict[int, Prospect] = {}

    def look() -> None:
        for what in due:
            prospects[what] = Prospect(rng.uniform(0.0, most), ALONE_S)
        while (gone := room.release(prospects.__getitem__, now)) is not None:
            assert gone.what not in left
            late = due[gone.what] - ALONE_S < now
            if late and gone.fate is Fate.SERVE:
                others = [w for w in due if w not in left and w != gone.what]
                assert not [w for w in others if due[w] - ALONE_S >= now]
            if gone.fate is Fate.SHED:
                assert now >= due[gone.what]
                assert 1 <= gone.retry_after_s <= LONGEST_RETRY_S
            left[gone.what] = gone.fate
        assert len(room) == len(due) - len(left)

    for number, (gap_s, class_name, limit_s) in enumerate(arrivals):
        now += gap_s
        due[number] = now + limit_s
        room.enter(number, Claim(class_name, due[number]))
        look()
    for _ in range(60):
        now += 0.1
        look()
    assert set(left) == set(due)
    assert len(room) == 0
