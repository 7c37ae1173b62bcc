"""Which silences count, what follows from them, and that a common cause leaves nobody out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.tables import load_table
from paceline_router.attempts import Leg
from paceline_router.facts import Facts, Role
from paceline_router.foresight import PredictionErrors
from paceline_router.latency import prefill_s, step_s
from paceline_router.replica import Replica, Told
from paceline_router.silence import (
    FIRST,
    LEAST_END,
    PAGES,
    TRIAL,
    UNKNOWN,
    WARM_SIGNS,
    Finding,
    Heard,
    Mute,
    Owed,
    Silences,
    Silent,
    Tried,
    limit_s,
)

LEAST_S = 2.0
LOOK_S = 0.05
FACTS = Facts(load_table("a100-sxm-80gb", "llama-3.1-8b", 1))
COUNTED = Told(1000.0, 90_000.0)


def replica(name: str = "m0", role: Role = Role.MIXED, **over: Any) -> Replica:
    return Replica(name, role, **{"ready": True, "facts": FACTS, "signs": WARM_SIGNS, **over})


def owed(**over: Any) -> Owed:
    return Owed(**{"leg": Leg.WHOLE, "prompt_tokens": 100, "since_s": 0.0, "begun": True, **over})


class Rig:
    """Replicas that owe what `owed` says, and time."""

    def __init__(self, *replicas: Replica, recompute: bool = True) -> None:
        self.replicas = {each.name: each for each in replicas}
        self.silences = Silences(LEAST_S, 5.0, recompute=recompute)
        self.owed: dict[str, list[Owed]] = {}
        self.now = 0.0
        self.found: list[tuple[float, Finding]] = []
        self.listen(0.0)

    def owes(self, name: str, *each: Owed) -> None:
        self.owed[name] = list(each)
        self.replicas[name].legs = len(each)

    def sign(self, name: str) -> None:
        self.replicas[name].signs += 1

    def listen(self, seconds: float, *, look_s: float = LOOK_S) -> list[Finding]:
        """What is found in so many seconds, in which nothing is heard."""
        before = len(self.found)
        for _ in range(round(seconds / look_s)) or [0]:
            self.now += look_s if seconds else 0.0
            found = self.silences.look(self.replicas, PredictionErrors(), self._owed, self.now)
            self.found += [(self.now, each) for each in found]
        return [each for _, each in self.found[before:]]

    @property
    def left_out(self) -> set[str]:
        return self.silences.left_out

    def _owed(self) -> Mapping[str, Sequence[Owed]]:
        return self.owed


def two(**over: Any) -> Rig:
    """m0 and m1, both warm."""
    return Rig(replica("m0", **over), replica("m1", **over))


ALARMS: list[tuple[str, dict[str, Any], Owed, float]] = [
    ("a stream that had begun", {}, owed(), 2.0),
    ("a short prompt", {}, owed(begun=False), 2.0 + PAGES * LEAST_S),
    ("leg 1", {}, owed(leg=Leg.PREFILL, begun=False, streamed=False), 2.0 + PAGES * LEAST_S),
    (
        "an answer that is not streamed, where pages count steps",
        {"told": COUNTED},
        owed(begun=False, streamed=False),
        2.0 + PAGES * LEAST_S,
    ),
    ("a fetch: its transfer has a time limit of its own", {}, owed(leg=Leg.FETCH, begun=False), 7.0),
    ("a fetch whose first token came", {}, owed(leg=Leg.FETCH), 2.0),
    ("an engine that may be compiling", {"signs": 0}, owed(), FIRST * LEAST_S),
    ("one that is new to this router, and not by its page", {"signs": 0, "told": COUNTED}, owed(), 2.0),
    ("an engine without a table", {"facts": Facts()}, owed(), UNKNOWN * LEAST_S),
]


@pytest.mark.parametrize(("over", "waits", "after_s"), [row[1:] for row in ALARMS], ids=[row[0] for row in ALARMS])
def test_silence_counts_after(over: dict[str, Any], waits: Owed, after_s: float) -> None:
    rig = two(**over)
    rig.owes("m0", waits)
    assert rig.listen(after_s - 0.1) == []
    assert [type(each) for each in rig.listen(0.4)] == [Silent]
    assert rig.left_out == {"m0"}


def test_nothing_can_be_said_of_an_unstreamed_answer_where_pages_count_nothing() -> None:
    rig = two()
    rig.owes("m0", owed(streamed=False))
    assert rig.listen(60.0) == []


def test_a_replica_that_owes_nothing_may_be_silent() -> None:
    assert two().listen(60.0) == []


def test_a_request_that_comes_late_into_a_silence_has_waited_for_less() -> None:
    rig = two()
    rig.owes("m0", owed(streamed=False))
    rig.listen(20.0)
    rig.owes("m0", owed(streamed=False), owed(since_s=rig.now))
    assert rig.listen(1.9) == []
    assert rig.listen(0.4)


@pytest.mark.parametrize("tokens", [4_000, 32_000, 120_000])
def test_a_long_prompt_may_take_its_predicted_time_where_only_its_end_is_a_sign(tokens: int) -> None:
    predicted_s = prefill_s(replica(), tokens, tokens**2)
    rig = two()
    rig.owes("m0", owed(prompt_tokens=tokens, begun=False))
    assert rig.listen(max(LEAST_S, 3 * predicted_s) + PAGES * LEAST_S - 0.1) == []
    rig.listen(2.2 * predicted_s + 0.5)  # the error of predictions beside it, grown with the age of what is known
    assert rig.left_out == {"m0"}


def test_a_page_that_counts_steps_shortens_the_wait_for_a_long_prompt() -> None:
    waits = [owed(prompt_tokens=120_000, begun=False)]
    assert limit_s(replica(told=COUNTED), waits, 0.25, LEAST_S) < limit_s(replica(), waits, 0.25, LEAST_S) / 2


@pytest.mark.parametrize("context", [8_000, 32_000, 120_000])
def test_the_last_step_of_a_long_prompt_attends_to_all_of_it(context: int) -> None:
    """Of 8,192 tokens, the largest budget that the tables were measured with."""
    held = replica(told=COUNTED)
    step = step_s(held.facts, 8192, 8192 * (context - 8192 / 2), 0, 0)
    assert limit_s(held, [owed(prompt_tokens=context, begun=False)], 0.25, LEAST_S) > step


def test_a_sign_ends_the_silence() -> None:
    rig = two()
    rig.owes("m0", owed(begun=True))
    for _ in range(20):
        assert rig.listen(0.9) == []
        rig.sign("m0")
    rig.listen(2.1)
    assert rig.left_out == {"m0"}
    rig.sign("m0")
    (heard,) = rig.listen(LOOK_S)
    assert isinstance(heard, Heard)
    assert heard.after_s == pytest.approx(2.1, abs=2 * LOOK_S)
    assert rig.left_out == set()


def test_a_router_that_stood_still_itself_has_heard_no_silence() -> None:
    rig = two()
    rig.owes("m0", owed(begun=True))
    assert rig.listen(30.0, look_s=30.0) == []
    assert rig.left_out == set()


def test_streams_that_had_begun_end_after_a_much_longer_silence_where_another_stands() -> None:
    rig, alone = two(), Rig(replica())
    for each in (rig, alone):
        each.owes("m0", owed())
    mutes = [at for at, each in _over(rig, 60.0) if isinstance(each, Mute)]
    assert mutes[0] == pytest.approx(LEAST_END * LEAST_S, abs=0.4)
    assert _over(alone, 60.0) == []


def test_what_waited_elsewhere_meanwhile_does_not_end_begun_streams_sooner() -> None:
    """A long prompt and a begun stream: the prompt is asked for elsewhere, which leaves the limit as it was."""
    rig = Rig(replica("m0", facts=Facts()), replica("m1"))
    rig.owes("m0", owed(prompt_tokens=300_000, begun=False), owed())
    while not rig.left_out:
        rig.listen(1.0)
    silent_s = rig.now
    rig.owes("m0", owed())
    assert [each for each in rig.listen(silent_s) if isinstance(each, Mute)] == []


@pytest.mark.parametrize("wait_s", [2.0, 12.0], ids=["heard before its trial", "heard after it"])
def test_a_prompt_that_was_only_slow_is_mistaken_for_a_hang_once(wait_s: float) -> None:
    rig = Rig(replica("m0", facts=Facts()), replica("m1", facts=Facts()))
    alarms = 0
    for _ in range(3):
        rig.owes("m0", owed(prompt_tokens=2_000, begun=False, since_s=rig.now))
        found = rig.listen(20.0)
        alarms += sum(isinstance(each, Silent) for each in found)
        rig.owes("m0")  # asked for elsewhere, or done
        rig.listen(wait_s)
        rig.sign("m0")
        rig.listen(LOOK_S)
    assert alarms == 1


def test_a_prefill_replica_that_waits_for_kv_which_others_fetch_is_not_silent() -> None:
    full = Facts(FACTS.table, kv_tokens=1000)
    rig = Rig(replica("p0", Role.PREFILL, facts=full, kv_parked=900, kv_reserved=950), replica("p1", Role.PREFILL))
    rig.owes("p0", owed(leg=Leg.PREFILL, begun=False, streamed=False))
    rig.listen(30.0)
    assert rig.left_out == set()


def _over(rig: Rig, seconds: float) -> list[tuple[float, Finding]]:
    rig.listen(seconds)
    return rig.found


STAND_INS: list[tuple[str, tuple[str, ...], tuple[str, ...], bool, set[str]]] = [
    ("one of two", ("m0", "m1"), ("m0",), True, {"m0"}),
    ("the only one", ("m0",), ("m0",), True, set()),
    ("both", ("m0", "m1"), ("m0", "m1"), True, set()),
    ("two of three", ("m0", "m1", "m2"), ("m0", "m1"), True, set()),
    ("two of four", ("m0", "m1", "m2", "m3"), ("m0", "m1"), True, {"m0", "m1"}),
    ("the only prefill replica, where decode replicas recompute", ("p0", "d0"), ("p0",), True, {"p0"}),
    ("the only prefill replica, where they do not", ("p0", "d0"), ("p0",), False, set()),
    ("the only decode replica", ("p0", "p1", "d0"), ("d0",), True, set()),
    ("more prefill replicas than decode replicas could stand in for", ("p0", "p1", "d0"), ("p0", "p1"), True, set()),
    ("each role by itself", ("p0", "p1", "d0"), ("p0", "d0"), True, {"p0"}),
]
ROLES = {"m": Role.MIXED, "p": Role.PREFILL, "d": Role.DECODE}


@pytest.mark.parametrize(
    ("names", "hung", "recompute", "out"), [row[1:] for row in STAND_INS], ids=[row[0] for row in STAND_INS]
)
def test_who_is_left_out_when_silent(
    names: tuple[str, ...], hung: tuple[str, ...], recompute: bool, out: set[str]
) -> None:
    rig = Rig(*(replica(name, ROLES[name[0]]) for name in names), recompute=recompute)
    for name in hung:
        rig.owes(name, owed())
    found = rig.listen(2.4)
    assert rig.left_out == out
    assert {each.name for each in found if isinstance(each, Silent)} == out


@pytest.mark.parametrize("looks", range(5))
def test_what_is_owed_is_known_when_a_stand_in_comes_late(looks: int) -> None:
    rig = Rig(replica("m0"), replica("m1", ready=False))
    rig.owes("m0", owed())
    rig.listen(4.0 + looks * LOOK_S)
    rig.replicas["m1"].ready = True
    asked: list[bool] = []
    rig._owed = lambda: asked.append(True) or rig.owed  # type: ignore[method-assign,func-returns-value]
    while not rig.found:
        asked.clear()
        rig.listen(LOOK_S)
    assert asked


def test_when_the_last_ones_hang_as_well_the_first_get_requests_again() -> None:
    rig = two()
    rig.owes("m0", owed())
    rig.listen(2.4)
    rig.owes("m0")
    rig.owes("m1", owed(since_s=rig.now))
    rig.listen(2.4)
    assert rig.left_out == set()


def test_a_replica_that_is_not_ready_stands_in_for_nobody() -> None:
    rig = Rig(replica("m0"), replica("m1", ready=False), replica("m2", retired=True))
    rig.owes("m0", owed())
    rig.listen(2.4)
    assert rig.left_out == set()


def test_a_silent_replica_is_tried_when_it_owes_nothing_more_and_each_time_later() -> None:
    rig = two()
    waits_s = []
    for _ in range(3):
        rig.owes("m0", owed(since_s=rig.now))
        rig.listen(2.4)
        assert rig.left_out == {"m0"}
        rig.owes("m0")  # asked for elsewhere
        since = rig.now
        while rig.left_out:
            rig.listen(LOOK_S)
        assert isinstance(rig.found[-1][1], Tried)
        waits_s.append(rig.now - since)
    assert waits_s == pytest.approx([TRIAL * LEAST_S * n for n in (1, 2, 4)], abs=0.3)


def test_on_trial_a_replica_gets_no_second_request_before_a_sign() -> None:
    rig = two()
    rig.owes("m0", owed())
    rig.listen(2.4)
    rig.owes("m0")
    rig.listen(TRIAL * LEAST_S + 0.2)
    assert rig.left_out == set()
    rig.owes("m0", owed(since_s=rig.now))
    rig.listen(LOOK_S)
    assert rig.left_out == {"m0"}
    rig.sign("m0")
    assert [type(each) for each in rig.listen(LOOK_S)] == [Heard]
    assert rig.left_out == set()


def test_a_silence_that_ended_by_itself_makes_the_next_one_count_later() -> None:
    rig = two()
    rig.owes("m0", owed())
    rig.listen(4.0)
    rig.sign("m0")
    rig.listen(5.5)
    assert rig.left_out == set()  # 1.5 × 4 s
    rig.listen(0.8)
    assert rig.left_out == {"m0"}


def test_a_hang_that_ended_does_not() -> None:
    rig = two()
    rig.owes("m0", owed())
    rig.listen(60.0)
    rig.sign("m0")
    rig.listen(2.4)
    assert rig.left_out == {"m0"}


def test_a_replica_that_left_is_forgotten() -> None:
    rig = two()
    rig.owes("m0", owed())
    rig.listen(2.4)
    del rig.replicas["m0"]
    rig.listen(LOOK_S)
    assert rig.left_out == set()


@given(
    st.lists(
        st.tuples(st.sampled_from(["sign", "owe", "settle", "wait"]), st.integers(0, 3), st.floats(0.05, 3.0)),
        max_size=40,
    )
)
def test_at_most_half_are_left_out_and_nobody_who_was_just_heard(
    steps: list[tuple[str, int, float]],
) -> None:
    rig = Rig(*(replica(f"m{i}") for i in range(4)))
    for what, i, seconds in steps:
        name = f"m{i}"
        if what == "owe":
            rig.owes(name, *rig.owed.get(name, []), owed(since_s=rig.now))
        elif what == "settle":
            rig.owes(name)
        elif what == "sign":
            rig.sign(name)
            rig.listen(LOOK_S)
            assert name not in rig.left_out
        rig.listen(seconds, look_s=0.2)
        assert len(rig.left_out) <= 2
    assert all(each.silent_s >= each.limit_s >= LEAST_S for _, each in rig.found if isinstance(each, Silent))
