"""Who waits at the router: the fate of one request, and the order in which a waiting room lets its requests go."""

from __future__ import annotations

import pytest
from paceline_router.waiting import LONGEST_RETRY_S, TURN_S, Claim, Fate, Left, Prospect, Rule, WaitingRoom, fate

FREE, BUSY = Prospect(0.02, 0.1), Prospect(0.8, 0.1)
RULES = {"chat": Rule(), "batch": Rule(priority=1), "last": Rule(priority=2)}

FATES = [
    ("one that harms nobody is served at once", 10.0, FREE, False, Fate.SERVE),
    ("one with all its slack left waits rather than bring a miss", 30.0, Prospect(0.4, 0.1), False, Fate.WAIT),
    ("one that is pressed is served though it may bring one", 0.5, Prospect(0.4, 0.1), False, Fate.SERVE),
    ("one that is pressed waits where it would hardly be in time", 0.5, BUSY, False, Fate.WAIT),
    ("behind others that can be in time, the same may bring none", 0.5, Prospect(0.4, 0.1), True, Fate.WAIT),
    ("one that is late is served where it harms nobody else", -1.0, Prospect(1.0, 0.1), False, Fate.SERVE),
    ("one that is late waits where it would harm another", -1.0, Prospect(1.5, 0.1), False, Fate.WAIT),
    ("one that is late waits behind all that can be saved", -1.0, Prospect(1.0, 0.1), True, Fate.WAIT),
    ("one whose prompt no longer fits before its deadline is late", 0.05, Prospect(0.9, 0.1), True, Fate.WAIT),
]


@pytest.mark.parametrize(("due_s", "prospect", "ahead", "expected"), [c[1:] for c in FATES], ids=[c[0] for c in FATES])
def test_fate(due_s: float, prospect: Prospect, ahead: bool, expected: Fate) -> None:
    assert fate(due_s, prospect, 0.0, ahead_waits=ahead) is expected


def make_room(*entries: tuple[str, str, float]) -> WaitingRoom[str]:
    room: WaitingRoom[str] = WaitingRoom(RULES)
    for what, class_name, due_s in entries:
        room.enter(what, Claim(class_name, due_s))
    return room


def leaving(room: WaitingRoom[str], now: float, **prospects: Prospect) -> list[tuple[str, Fate]]:
    """Who leaves, in order; who is not named would harm nobody."""
    found = []
    while (left := room.release(lambda what: prospects.get(what, FREE), now)) is not None:
        found.append((left.what, left.fate))
    return found


def test_all_leave_in_order_of_arrival_while_nobody_is_harmed() -> None:
    room = make_room(("a", "chat", 1.0), ("b", "chat", 1.1), ("c", "chat", 1.2))
    assert leaving(room, 0.0) == [("a", Fate.SERVE), ("b", Fate.SERVE), ("c", Fate.SERVE)]
    assert len(room) == 0


def test_the_first_of_a_class_holds_the_others_of_it_back() -> None:
    room = make_room(("a", "chat", 1.0), ("b", "chat", 1.1))
    assert leaving(room, 0.0, a=BUSY) == []
    assert len(room) == 2


def test_a_class_of_higher_priority_goes_first_whenever_it_came() -> None:
    room = make_room(("a", "batch", 30.0), ("b", "chat", 1.0))
    assert leaving(room, 0.0) == [("b", Fate.SERVE), ("a", Fate.SERVE)]


def test_while_interactive_work_waits_batch_work_goes_only_where_it_brings_hardly_a_miss() -> None:
    room = make_room(("chat", "chat", 1.0), ("batch", "batch", 0.6))
    assert leaving(room, 0.0, chat=BUSY, batch=Prospect(0.3, 0.1)) == []
    assert leaving(room, 0.0, chat=BUSY, batch=Prospect(0.05, 0.1)) == [("batch", Fate.SERVE)]


def test_what_can_no_longer_be_in_time_is_shed_once_it_is_due() -> None:
    room = make_room(("a", "chat", 1.0), ("b", "last", 1.1))
    harmful = Prospect(2.0, 0.2)
    assert leaving(room, 0.95, a=harmful, b=harmful) == []
    assert leaving(room, 1.0, a=harmful, b=harmful) == [("a", Fate.SHED)]
    assert leaving(room, 1.1, b=harmful) == [("b", Fate.SHED)]


def test_late_requests_come_after_all_that_can_be_saved() -> None:
    room = make_room(("late", "last", 2.05), ("saved", "chat", 5.0))
    alone = Prospect(1.0, 0.1)
    assert leaving(room, 2.0, late=alone, saved=BUSY) == []
    assert leaving(room, 2.0, late=alone) == [("saved", Fate.SERVE), ("late", Fate.SERVE)]


def test_once_some_became_late_the_newest_has_a_turn() -> None:
    room = make_room(("a", "chat", 1.0))
    assert leaving(room, 1.5, a=Prospect(2.0, 0.1)) == [("a", Fate.SHED)]
    for what, due_s in (("b", 2.4), ("c", 2.5)):
        room.enter(what, Claim("chat", due_s))
    assert leaving(room, 1.6, c=BUSY) == []
    room.enter("d", Claim("chat", 2.6))
    assert leaving(room, 1.6 + TURN_S / 2, c=BUSY) == []
    assert leaving(room, 1.6 + TURN_S) == [("d", Fate.SERVE), ("c", Fate.SERVE), ("b", Fate.SERVE)]


def test_a_turn_in_a_crowd_is_that_of_who_came_last_not_of_long_prompts_which_are_due_later() -> None:
    room = make_room(("a", "chat", 1.0))
    assert leaving(room, 1.5, a=Prospect(2.0, 0.1)) == [("a", Fate.SHED)]
    for what, due_s in (("long", 8.0), ("short", 3.5)):
        room.enter(what, Claim("chat", due_s))
    assert leaving(room, 1.6, long=BUSY) == [("short", Fate.SERVE)]


def test_retry_after_is_the_time_in_which_those_that_wait_would_be_served() -> None:
    room: WaitingRoom[int] = WaitingRoom({})
    assert room.retry_after_s() == 1
    for i in range(1020):
        room.enter(i, Claim("chat", 1e9))
    for i in range(1000):
        room.release(lambda _: FREE, 0.5 * i)
    assert room.retry_after_s() == pytest.approx(10, abs=1)
    for i in range(1000):
        room.enter(i, Claim("chat", 1e9))
    assert room.retry_after_s() == LONGEST_RETRY_S


def test_a_lull_says_nothing_of_how_fast_a_queue_is_served() -> None:
    room: WaitingRoom[int] = WaitingRoom({})
    for i in range(100):
        room.enter(i, Claim("chat", 1e9))
        room.release(lambda _: FREE, 60.0 * i)
    for i in range(5):
        room.enter(i, Claim("chat", 1e9))
    assert room.retry_after_s() == 1


@pytest.mark.parametrize("now", [0.0, 0.95], ids=["one that can be in time", "one that is late"])
@pytest.mark.parametrize("gone", ["a", "b"], ids=["the next", "one behind it"])
def test_one_that_leaves_by_itself_waits_no_more(now: float, gone: str) -> None:
    room = make_room(("a", "chat", 1.0), ("b", "chat", 1.0))
    assert leaving(room, now, a=Prospect(2.0, 0.1), b=Prospect(2.0, 0.1)) == []
    room.leave(gone, "chat")
    assert len(room) == 1
    left = leaving(room, 1.0, a=Prospect(2.0, 0.1), b=Prospect(2.0, 0.1))
    assert [what for what, _ in left] == [{"a": "b", "b": "a"}[gone]]


def test_a_new_rule_holds_for_those_that_wait() -> None:
    room = make_room(("a", "batch", 30.0), ("b", "chat", 1.0))
    room.adopt({"chat": Rule(priority=5)})
    assert leaving(room, 0.0) == [("a", Fate.SERVE), ("b", Fate.SERVE)]


def test_one_that_is_shed_is_told_when_to_come_again() -> None:
    room = make_room(("a", "chat", 1.0))
    assert room.release(lambda _: Prospect(2.0, 0.1), 2.0) == Left("a", Fate.SHED, 1)
