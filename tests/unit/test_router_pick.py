"""Where requests go: predicted times, and each policy's choice among replicas of a given state."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from paceline_engine.tables import load_table
from paceline_router.facts import Facts, Role
from paceline_router.latency import prefill_s, step_s, tpot_s, transfer_s, wait_s
from paceline_router.pick import POLICIES, Choice, NoEndpoint, Picker
from paceline_router.replica import Replica, Size
from paceline_router.state import Ledger

TABLE = load_table("a100-sxm-80gb", "llama-3.1-8b", 1)
FACTS = Facts(table=TABLE, kv_tokens=100_000)
SIZE = Size(512, 100)
LEAST = "least-predicted-ttft"


def make_replica(name: str, role: Role = Role.MIXED, **over: Any) -> Replica:
    return Replica(name, role, **{"facts": FACTS, "ready": True, **over})


def make_ledger(*names: str) -> Ledger:
    roles = {"p": Role.PREFILL, "d": Role.DECODE, "m": Role.MIXED}
    return Ledger(make_replica(name, roles[name[0]]) for name in names)


def make_picker(policy: str = LEAST, **over: Any) -> Picker:
    return Picker(policy, Random(1), **over)


def chosen(choice: Choice | NoEndpoint) -> tuple[str | None, str]:
    assert isinstance(choice, Choice)
    return choice.prefill, choice.decode


def test_a_step_is_scaled_by_the_engines_own_fit() -> None:
    facts = replace(FACTS, mixed_scale=2.0, mixed_offset_s=0.001, decode_scale=1.5, decode_offset_s=-1.0)
    table_s = TABLE.seconds4(100, 0.0, 0, 0)
    assert step_s(facts, 100, 0.0, 0, 0) == pytest.approx(2 * table_s + 0.001)
    assert step_s(facts, 0, 0.0, 4, 400) == pytest.approx(0.5 * TABLE.seconds4(0, 0.0, 4, 400))  # never below half


def test_before_the_first_scrape_a_prediction_is_finite_and_grows() -> None:
    times = [prefill_s(make_replica("m0", facts=Facts()), n, n * n) for n in (0, 1, 500, 5000, 50_000)]
    assert times[0] == 0
    assert times == sorted(times)


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    small, large = (make_replica("m0", facts=replace(FACTS, token_budget=b)) for b in (256, 8192))
    assert prefill_s(small, 8000, 8000**2) > prefill_s(large, 8000, 8000**2)


def test_the_wait_shrinks_as_the_head_is_computed_and_grows_once_it_is_overdue() -> None:
    ledger = make_ledger("m0")
    replica = ledger.replicas["m0"]
    assert wait_s(replica, 0.0) == 0.0
    for _ in range(2):
        ledger.begin(Size(4000, 10), None, "m0", 0.0)
    one = prefill_s(replica, 8000, 2 * 4000**2) / 2
    assert wait_s(replica, 0.0) == pytest.approx(2 * one)
    assert wait_s(replica, one) == pytest.approx(one)
    assert wait_s(replica, 3 * one) == pytest.approx(3 * one)


def test_a_transfer_takes_its_constant_and_its_bytes() -> None:
    assert transfer_s(FACTS, 2000) - transfer_s(FACTS, 1000) == pytest.approx(1000 * TABLE.kv_bytes_per_token / 20e9)


def test_the_shortest_queue_in_seconds_gets_the_request() -> None:
    ledger = make_ledger("m0", "m1", "m2")
    ledger.begin(Size(6000, 10), None, "m0", 0.0)
    for _ in range(3):
        ledger.begin(Size(100, 10), None, "m2", 0.0)
    ledger.begin(Size(4000, 10), None, "m1", 0.0)
    assert chosen(make_picker().choose(ledger, SIZE, 0.0)) == (None, "m2")
    assert chosen(make_picker("least-requests").choose(ledger, SIZE, 0.0)) == (None, "m0")


def test_ties_go_to_the_least_tpot_then_to_the_first_name() -> None:
    ledger = make_ledger("m1", "m0")
    assert chosen(make_picker().choose(ledger, SIZE, 0.0)) == (None, "m0")
    ledger = make_ledger("p0", "d0", "d1")
    ledger.first_token(ledger.begin(SIZE, None, "d0", 0.0), 0.0)
    assert chosen(make_picker().choose(ledger, SIZE, 0.0)) == ("p0", "d1")


def test_a_prediction_is_the_sum_of_what_lies_ahead() -> None:
    ledger = make_ledger("p0", "d0")
    choice = make_picker().choose(ledger, SIZE, 0.0)
    assert isinstance(choice, Choice)
    p, d = ledger.replicas["p0"], ledger.replicas["d0"]
    assert choice.tpot_s == tpot_s(d, 512)
    assert choice.ttft_s == pytest.approx(prefill_s(p, 512, 512**2) + transfer_s(FACTS, 512) + choice.tpot_s)


@pytest.mark.parametrize("policy", ["least-misses", "least-predicted-ttft"])
def test_a_prediction_takes_a_hand_over_as_slow_as_the_decode_replica_has_seen_them(policy: str) -> None:
    ledger = make_ledger("p0", "d0")
    fast = make_picker(policy).choose(ledger, SIZE, 0.0)
    ledger.replicas["d0"].link = 9.0
    slow = make_picker(policy).choose(ledger, SIZE, 0.0)
    assert isinstance(fast, Choice)
    assert isinstance(slow, Choice)
    assert slow.ttft_s - fast.ttft_s == pytest.approx(8 * transfer_s(FACTS, 512))


@pytest.mark.parametrize("name", ["m0", "d0"])
def test_replicas_short_of_kv_room_come_last(name: str) -> None:
    other = name[0] + "1"
    ledger = make_ledger(name, other, "p0")
    ledger.learn(name, replace(FACTS, kv_tokens=600))
    prefill, decode = chosen(make_picker().choose(ledger, SIZE, 0.0))
    assert (prefill, decode) == ((None if name == "m0" else "p0"), other)


def test_one_of_two_pools_is_missing() -> None:
    empty = make_picker().choose(make_ledger(), SIZE, 0.0)
    alone = make_picker().choose(make_ledger("p0"), SIZE, 0.0)
    assert isinstance(empty, NoEndpoint)
    assert isinstance(alone, NoEndpoint)
    assert chosen(make_picker().choose(make_ledger("d0"), SIZE, 0.0)) == (None, "d0")  # recomputes
    assert isinstance(make_picker(recompute=False).choose(make_ledger("d0"), SIZE, 0.0), NoEndpoint)


def test_what_is_not_ready_or_to_be_avoided_is_not_chosen() -> None:
    ledger = make_ledger("m0", "m1", "m2")
    ledger.set_ready("m0", False)
    for policy in POLICIES:
        picker = make_picker(policy)
        for _ in range(6):
            assert chosen(picker.choose(ledger, SIZE, 0.0, frozenset({"m1"}))) == (None, "m2")
    assert isinstance(make_picker().choose(ledger, SIZE, 0.0, frozenset({"m1", "m2"})), NoEndpoint)


def test_round_robin_takes_turns_in_each_pool_apart() -> None:
    ledger, picker = make_ledger("p0", "p1", "d0", "d1", "d2"), make_picker("round-robin")
    firsts = [chosen(picker.choose(ledger, SIZE, 0.0))[0] for _ in range(4)]
    decodes = [picker.choose_decode(ledger, SIZE, 0.0) for _ in range(4)]
    assert firsts == ["p0", "p1", "p0", "p1"]
    assert decodes == ["d0", "d1", "d2", "d0"]


def test_random_choices_follow_the_generator() -> None:
    ledger = make_ledger("m0", "m1", "m2")
    runs = [
        [chosen(p.choose(ledger, SIZE, 0.0)) for _ in range(20)] for p in (make_picker("random"), make_picker("random"))
    ]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 3


def test_the_decode_replica_is_the_one_with_the_shortest_step() -> None:
    ledger = make_ledger("d0", "d1")
    for _ in range(20):
        ledger.first_token(ledger.begin(SIZE, None, "d0", 0.0), 0.0)
    assert make_picker().choose_decode(ledger, SIZE, 0.0) == "d1"


SERVES = [
    ("no replica", (), False, False),
    ("a mixed one", ("m0",), True, True),
    ("a pair", ("p0", "d0"), True, True),
    ("decode alone, where it may recompute", ("d0",), True, False),
    ("prefill alone", ("p0",), False, False),
]


@pytest.mark.parametrize(("names", "recomputing", "failing"), [c[1:] for c in SERVES], ids=[c[0] for c in SERVES])
def test_can_serve_exactly_when_a_request_would_be_given_to_someone(
    names: tuple[str, ...], recomputing: bool, failing: bool
) -> None:
    for recompute, serves in ((True, recomputing), (False, failing)):
        picker, ledger = make_picker(recompute=recompute), make_ledger(*names)
        assert picker.can_serve(ledger) is serves
        assert isinstance(picker.choose(ledger, SIZE, 0.0), Choice) is serves
