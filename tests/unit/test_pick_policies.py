"""What each policy chooses, on fleets of a given state; of least misses, why."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any, get_args

import pytest
from paceline_api.config import DEFAULT_POLICY, PolicyName
from paceline_api.v1alpha1 import RouterPolicy, RouterSpec
from paceline_engine.tables import load_table
from paceline_engine.work import Work
from paceline_planner.launching import policy_called, policy_name
from paceline_router.facts import Facts, Role
from paceline_router.pick import POLICIES, Choice, NoEndpoint, Picker
from paceline_router.pick.picker import FEW
from paceline_router.prefixes import SPAN_TOKENS
from paceline_router.replica import Flight, Replica, Size
from paceline_router.state import Ledger

TABLE = load_table("a100-sxm-80gb", "llama-3.1-8b", 1)
FACTS = Facts(table=TABLE, kv_tokens=200_000)
ROLES = {"p": Role.PREFILL, "d": Role.DECODE, "m": Role.MIXED}
CHAT, CODE, BATCH = (1.0, 0.05), (0.3, 0.02), (30.0, 0.25)  # TTFT and TPOT limits, seconds


def make_ledger(*names: str, **over: Any) -> Ledger:
    return Ledger(Replica(n, ROLES[n[0]], **{"facts": FACTS, "ready": True, **over}) for n in names)


def make_size(limits: tuple[float, float] = CHAT, prompt: int = 512, **over: Any) -> Size:
    return Size(**{"prompt_tokens": prompt, "output_tokens": 200, "due_s": limits[0], "tpot_s": limits[1], **over})


def choose(policy: str, ledger: Ledger, size: Size, now: float = 0.0) -> tuple[str | None, str]:
    choice = Picker(policy, Random(1)).choose(ledger, size, now)
    assert isinstance(choice, Choice)
    return choice.prefill, choice.decode


def queue(ledger: Ledger, name: str, *prompts: int, **over: Any) -> list[Flight]:
    return [ledger.begin(make_size(prompt=prompt, **over), None, name, 0.0) for prompt in prompts]


def decoding(ledger: Ledger, name: str, count: int, limits: tuple[float, float] = CHAT, prompt: int = 512) -> None:
    for _ in range(count):
        ledger.first_token(ledger.begin(make_size(limits, prompt), None, name, 0.0), 0.0)


def spans(count: int) -> tuple[int, ...]:
    return tuple(range(count))


def test_power_of_two_never_takes_the_busier_of_the_two() -> None:
    ledger = make_ledger("m0", "m1", "m2")
    queue(ledger, "m2", 100, 100, 100)
    picker = Picker("power-of-two", Random(3))
    found = Counter(c.decode for _ in range(60) if isinstance(c := picker.choose(ledger, make_size(), 0.0), Choice))
    assert set(found) == {"m0", "m1"}
    assert choose("power-of-two", make_ledger("m0"), make_size()) == (None, "m0")


def test_lmetric_multiplies_new_tokens_and_batch() -> None:
    ledger = make_ledger("m0", "m1")
    queue(ledger, "m0", 1000)  # (1000 + 512) × 2
    decoding(ledger, "m1", 4)  # 512 × 5
    assert choose("lmetric", ledger, make_size()) == (None, "m1")
    decoding(ledger, "m1", 2)  # 512 × 7
    assert choose("lmetric", ledger, make_size()) == (None, "m0")


def test_lmetric_counts_what_the_prefix_cache_lacks() -> None:
    ledger = make_ledger("m0", "m1")
    tokens = 8 * SPAN_TOKENS
    for flight in queue(ledger, "m1", tokens, prefix=spans(8)):
        ledger.first_token(flight, 0.0)
    assert choose("lmetric", ledger, make_size(prompt=tokens + 100, prefix=spans(8))) == (None, "m1")
    assert choose("lmetric", ledger, make_size(prompt=tokens + 100)) == (None, "m0")


def test_a_decode_leg_goes_to_the_smallest_batch_by_lmetric() -> None:
    ledger = make_ledger("p0", "d0", "d1")
    decoding(ledger, "d0", 3)
    assert Picker("lmetric", Random(1)).choose_decode(ledger, make_size(), 0.0) == "d1"


def test_prefix_affinity_follows_the_longest_prefix_until_load_is_out_of_balance() -> None:
    ledger, tokens = make_ledger("m0", "m1"), 8 * SPAN_TOKENS
    queue(ledger, "m1", tokens, prefix=spans(8))
    size = make_size(prompt=tokens, prefix=spans(8))
    assert choose("prefix-affinity", ledger, size) == (None, "m1")
    assert choose("prefix-affinity", ledger, make_size(prompt=4 * tokens, prefix=spans(8))) == (None, "m0")
    queue(ledger, "m1", *[10] * 40)
    assert choose("prefix-affinity", ledger, size) == (None, "m0")


def test_least_misses_avoids_the_queue_that_would_make_it_late() -> None:
    ledger = make_ledger("m0", "m1")
    queue(ledger, "m0", *[4000] * 4, due_s=0.9)
    assert choose("least-misses", ledger, make_size()) == (None, "m1")


def test_what_is_due_later_is_not_waited_for_but_would_be_made_late() -> None:
    later, sooner = make_ledger("m0"), make_ledger("m0")
    for ledger, due_s in ((later, 20.0), (sooner, 0.9)):
        queue(ledger, "m0", *[3000] * 3, due_s=due_s)
    picker = Picker("least-misses", Random(1))
    waits = {}
    for name, ledger in (("later", later), ("sooner", sooner)):
        choice = picker.choose(ledger, make_size(), 0.0)
        assert isinstance(choice, Choice)
        waits[name] = choice.ttft_s
    assert waits["later"] < 0.2 < 0.5 < waits["sooner"]


def test_a_tight_tpot_goes_where_one_is_already() -> None:
    ledger = make_ledger("m0", "m1")
    decoding(ledger, "m0", 20, BATCH)
    decoding(ledger, "m1", 20, CODE)
    for _ in range(12):  # prompts keep the fleet busy: what comes later counts
        ledger.load.note(2000, 0.0)
    assert choose("least-misses", ledger, make_size(CODE, pace_tokens=200)) == (None, "m1")


def test_a_decode_that_would_break_the_pace_of_others_goes_elsewhere() -> None:
    ledger = make_ledger("p0", "d0", "d1")
    decoding(ledger, "d0", 60, CODE, prompt=2000)
    decoding(ledger, "d1", 70, BATCH, prompt=500)
    assert Picker("least-misses", Random(1)).choose_decode(ledger, make_size(CHAT), 0.0) == "d1"


def test_a_decode_replica_computes_the_prompt_when_the_prefill_queue_would_make_it_late() -> None:
    def first(prompt: int, **over: bool) -> str | None:
        found = Picker("least-misses", Random(1), **over).choose(ledger, make_size(CHAT, prompt=prompt), 0.0)
        assert isinstance(found, Choice)
        return found.prefill

    ledger = make_ledger("p0", "d0")
    assert first(256, local_prefill=True) is None  # idle: no hand-over is the shorter way
    decoding(ledger, "d0", 30, CODE)
    assert first(4000, local_prefill=True) == "p0"
    queue(ledger, "p0", *[8000] * 5, due_s=0.95)
    assert first(256, local_prefill=True) is None
    assert first(256) == "p0"
    assert first(256, local_prefill=True, recompute=False) == "p0"


def test_who_was_sent_a_prompt_a_moment_ago_is_spared_the_next() -> None:
    ledger = make_ledger("m0", "m1")
    ledger.end(ledger.begin(make_size(), None, "m0", 0.0), 0.05)
    for now, expected in ((0.1, "m1"), (60.0, "m0")):
        choice = Picker("least-misses", Random(1)).choose(ledger, make_size(due_s=now + 0.5), now)
        assert isinstance(choice, Choice)
        assert choice.decode == expected


def test_a_cached_prefix_shortens_the_prediction() -> None:
    ledger, tokens = make_ledger("m0", "m1"), 16 * SPAN_TOKENS
    for flight in queue(ledger, "m1", tokens, prefix=spans(16)):
        ledger.first_token(flight, 0.0)
    size = make_size(prompt=tokens, prefix=spans(16), due_s=11.0)
    with_cache = Picker("least-misses", Random(1)).choose(ledger, size, 10.0)
    without = Picker("least-misses", Random(1)).choose(ledger, replace(size, prefix=()), 10.0)
    assert isinstance(with_cache, Choice)
    assert isinstance(without, Choice)
    assert with_cache.decode == "m1"
    assert with_cache.ttft_s < 0.5 * without.ttft_s


def test_replicas_short_of_kv_come_last() -> None:
    ledger = make_ledger("m0", "m1")
    ledger.learn("m0", replace(FACTS, kv_tokens=600))
    decoding(ledger, "m1", 30)
    assert choose("least-misses", ledger, make_size()) == (None, "m1")


def test_a_faster_replica_gets_more() -> None:
    ledger = make_ledger("m0", "m1")
    ledger.learn("m1", replace(FACTS, table=load_table("h100-sxm", "llama-3.1-8b", 1)))
    picker, taken = Picker("least-misses", Random(1)), Counter[str]()
    for _ in range(30):
        choice = picker.choose(ledger, make_size(prompt=2000, due_s=3.0), 0.0)
        assert isinstance(choice, Choice)
        ledger.begin(make_size(prompt=2000, due_s=3.0), None, choice.decode, 0.0)
        taken[choice.decode] += 1
    assert taken["m1"] > taken["m0"] > 0


def test_work_of_other_routers_is_seen_as_the_engines_tell_of_it() -> None:
    ledger = make_ledger("m0", "m1")
    decoding(ledger, "m0", 2)
    ledger.learn("m0", replace(FACTS, work=Work(0, 1026, {0.05: 2})))  # nothing but its own
    ledger.learn("m1", replace(FACTS, work=Work(30_000, 100_000, {0.05: 60})))
    assert choose("least-misses", ledger, make_size()) == (None, "m0")
    assert ledger.own == pytest.approx(2 / 62)
    ledger.remove("m1")
    assert ledger.own == 1.0


LOOKS_AT_ALL = sorted(POLICIES.keys() - {"random", "round-robin", "power-of-two"})


@pytest.mark.parametrize("policy", LOOKS_AT_ALL)
def test_a_large_fleet_is_served_by_its_idle_replicas(policy: str) -> None:
    names = [f"m{i:02d}" for i in range(3 * FEW)]
    ledger = make_ledger(*names)
    idle = names[FEW]
    for name in names:
        if name != idle:
            decoding(ledger, name, 6)
            queue(ledger, name, 6000)
    assert choose(policy, ledger, make_size()) == (None, idle)
    ledger.set_ready(idle, False)
    assert choose(policy, ledger, make_size()) != (None, idle)


def test_no_replica_is_no_endpoint_for_every_policy() -> None:
    for policy in POLICIES:
        assert isinstance(Picker(policy, Random(1)).choose(make_ledger(), make_size(), 0.0), NoEndpoint)


def test_configuration_knows_every_policy() -> None:
    assert set(get_args(PolicyName)) == POLICIES.keys()
    assert DEFAULT_POLICY in POLICIES
    assert [policy_called(policy_name(policy)) for policy in RouterPolicy] == list(RouterPolicy)
    assert {policy_name(policy) for policy in RouterPolicy} == POLICIES.keys()
    assert policy_name(RouterSpec().policy) == DEFAULT_POLICY
