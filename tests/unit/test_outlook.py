"""What is foreseen of a request on a replica: chances, misses among those that are there, and how errors are learnt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paceline_engine.tables import load_table
from paceline_router.arriving import Load
from paceline_router.facts import Facts, Role
from paceline_router.foresight import DRIFT, LEAST, MOST, PRIOR, PredictionErrors
from paceline_router.outlook import chance, foresee, outlook, pacing, slowed
from paceline_router.replica import Replica, Size
from paceline_router.state import Ledger

TABLE = load_table("a100-sxm-80gb", "llama-3.1-8b", 1)
ERRORS = PredictionErrors()


def make_ledger() -> Ledger:
    return Ledger([Replica("m0", Role.MIXED, facts=Facts(table=TABLE, kv_tokens=200_000), ready=True)])


def make_size(prompt: int = 1000, due_s: float = 1.0, tpot_s: float = 0.05) -> Size:
    return Size(prompt, 200, due_s, tpot_s, 150)


def test_a_chance_is_one_half_without_slack_and_a_tenth_at_the_p90() -> None:
    assert chance(0.0) == 0.5
    assert chance(1.0) == pytest.approx(0.1)
    assert chance(-1.0) == pytest.approx(0.9)
    assert (chance(1e9), chance(-1e9)) == (0.0, 1.0)


def test_before_the_first_scrape_everything_is_finite() -> None:
    ledger = Ledger([Replica("m0", Role.MIXED, ready=True)])
    seen = foresee(ledger.replicas["m0"], make_size(), 0, 0.0, 0.0, ERRORS)
    assert 0.0 < seen.alone_s <= seen.ttft_s < 1.0
    assert 0.0 <= slowed(ledger.replicas["m0"], make_size(), Load(), 1.0, 1.0) < 0.1


def test_without_objectives_there_are_no_misses() -> None:
    ledger = make_ledger()
    replica = ledger.replicas["m0"]
    ledger.first_token(ledger.begin(Size(1000, 200), None, "m0", 0.0), 0.0)
    assert foresee(replica, Size(1000, 200), 0, 0.0, 0.0, ERRORS).misses == 0.0
    assert slowed(replica, Size(1000, 200), Load(), 1.0, 1.0) < 1e-3


def test_a_prompt_delays_those_that_are_due_after_it() -> None:
    ledger = make_ledger()
    replica = ledger.replicas["m0"]
    for _ in range(3):
        ledger.begin(make_size(2000, due_s=0.7), None, "m0", 0.0)
    before = foresee(replica, make_size(4000, due_s=0.9), 0, 0.0, 0.0, ERRORS).misses
    first = foresee(replica, make_size(4000, due_s=0.6), 0, 0.0, 0.0, ERRORS)
    own = foresee(make_ledger().replicas["m0"], make_size(4000, due_s=0.6), 0, 0.0, 0.0, ERRORS)
    assert first.misses > own.misses + 0.5
    assert before < 1.0


def test_what_is_late_anyhow_delays_nobody() -> None:
    ledger = make_ledger()
    replica = ledger.replicas["m0"]
    alone = foresee(replica, make_size(), 0, 0.0, 0.0, ERRORS)
    ledger.begin(make_size(8000, due_s=0.05), None, "m0", 0.0)
    behind = foresee(replica, make_size(), 0, 0.0, 0.0, ERRORS)
    assert outlook(replica).dues == []
    assert behind.alone_s == pytest.approx(alone.alone_s, rel=0.5)
    assert behind.misses < 0.1


def test_a_head_that_is_overdue_is_expected_to_take_as_long_again() -> None:
    ledger = make_ledger()
    replica = ledger.replicas["m0"]
    ledger.begin(make_size(4000, due_s=9.0), None, "m0", 0.0)
    (end_s,) = outlook(replica).ends
    size = make_size(due_s=10.0)
    assert foresee(replica, size, 0, end_s, 0.0, ERRORS).ttft_s < foresee(replica, size, 0, 0.0, 0.0, ERRORS).ttft_s
    late = foresee(replica, size, 0, end_s + 1.0, 0.0, ERRORS)
    assert late.ttft_s == pytest.approx(1.0 + late.alone_s)


def test_who_waits_for_one_that_is_late_for_good_is_foreseen_as_if_it_were_not_there() -> None:
    ledger = make_ledger()
    replica = ledger.replicas["m0"]
    ledger.begin(make_size(4000, due_s=0.9), None, "m0", 0.0)
    size = make_size(due_s=10.0)
    held = foresee(replica, size, 0, 0.8, 0.0, ERRORS)
    assert held.ttft_s > 5 * held.alone_s
    freed = foresee(replica, size, 0, 1.0, 0.0, ERRORS)
    assert freed.ttft_s < 2 * freed.alone_s
    assert outlook(replica).dues == []


def test_a_prompt_takes_its_time_from_when_it_came_whoever_lingers_before_it() -> None:
    ledger = make_ledger()
    replica = ledger.replicas["m0"]
    ledger.begin(make_size(4000, due_s=0.1), None, "m0", 0.0)
    ledger.begin(make_size(due_s=6.0), None, "m0", 5.0)
    (end_s,) = outlook(replica).ends
    behind = foresee(replica, make_size(due_s=7.0), 0, 5.0, 0.0, ERRORS)
    assert behind.ttft_s == pytest.approx(end_s - 5.0 + behind.alone_s)
    assert behind.ttft_s < 3 * behind.alone_s


def test_the_more_decodes_hold_a_pace_the_slower_are_prompts() -> None:
    ledger = make_ledger()
    replica = ledger.replicas["m0"]
    times = []
    for _ in range(4):
        times.append(pacing(replica).now.token_s)
        for _ in range(15):
            ledger.first_token(ledger.begin(make_size(tpot_s=0.02), None, "m0", 0.0), 0.0)
    assert times == sorted(times)
    assert times[-1] > 1.5 * times[0]


def test_prompts_that_are_late_for_good_do_not_slow_those_of_others_as_decodes() -> None:
    ledger = make_ledger()
    replica = ledger.replicas["m0"]
    for _ in range(15):
        ledger.first_token(ledger.begin(make_size(tpot_s=0.02), None, "m0", 0.0), 0.0)
    before = pacing(replica).now
    for _ in range(30):
        ledger.begin(make_size(due_s=1.0, tpot_s=0.02), None, "m0", 0.5)
    assert outlook(replica, 2.0).dues == []
    ledger.begin(make_size(due_s=5.0, tpot_s=0.02), None, "m0", 2.0)
    after = pacing(replica).now
    assert before.token_s < after.token_s < 1.2 * before.token_s
    assert after.ratio > 1.2 * before.ratio, "they will decode some day"


def test_the_last_decode_that_a_pace_bears_breaks_it_for_all() -> None:
    ledger = make_ledger()
    replica = ledger.replicas["m0"]
    brought = []
    for _ in range(120):
        brought.append(slowed(replica, make_size(tpot_s=0.02), Load(), 1.0, 1.0))
        ledger.first_token(ledger.begin(make_size(tpot_s=0.02), None, "m0", 0.0), 0.0)
    assert brought[0] < 0.05
    assert max(brought) > 1.0
    assert slowed(replica, make_size(tpot_s=0.25), Load(), 1.0, 1.0) < max(brought)


def test_errors_approach_the_tenth_that_is_exceeded() -> None:
    errors = PredictionErrors()
    for i in range(4000):
        errors.observe(0.5, 1.0, 1.0 + (i % 10) / 10)  # errors of 0 to 0.9, each as often
    assert errors.p90(0.5) == pytest.approx(0.85, abs=0.15)
    assert errors.p90(3.0) == PRIOR[2]


def test_errors_grow_with_age_and_stay_in_bounds() -> None:
    errors = PredictionErrors()
    assert [errors.p90(age) for age in (0.5, 1.5, 3.0, 6.0, 60.0)] == list(PRIOR) == sorted(PRIOR)
    for _ in range(2000):
        errors.observe(0.5, 0.001, 50.0)
        errors.observe(6.0, 10.0, 0.01)
    assert (errors.p90(0.5), errors.p90(6.0)) == (MOST, LEAST)


def test_a_promise_is_learnt_from_at_the_first_token_and_only_once() -> None:
    ledger = make_ledger()
    ledger.learn("m0", replace(ledger.replicas["m0"].facts, seen_at_s=9.5))
    flight = ledger.begin(make_size(due_s=12.0), None, "m0", 10.0)
    ledger.expect(flight, 0.1, 10.0)
    before = ledger.errors.p90(0.5)
    ledger.first_token(flight, 11.0)
    after = ledger.errors.p90(0.5)
    assert after > before
    ledger.first_token(flight, 11.5)
    assert ledger.errors.p90(0.5) == after


def test_load_is_a_rate_from_the_first_seconds_on() -> None:
    load = Load()
    for i in range(100):
        load.note(1000, 100.0 + i * 0.1)
    assert load.requests_rps == pytest.approx(10.0, rel=0.15)
    assert load.tokens_per_s == pytest.approx(10_000, rel=0.15)
    for i in range(5000):
        load.note(100, 110.0 + i * 0.05)
    assert load.requests_rps == pytest.approx(20.0, rel=0.1)
    assert load.tokens_per_s == pytest.approx(2000, rel=0.1)


@pytest.mark.parametrize(
    ("others", "took_s", "falls"),
    [(0, 0.02, True), (0, 0.3, False), (2, 0.02, False)],
    ids=["alone and fast", "alone and slow: never above what is foreseen", "behind others it says nothing"],
)
def test_a_replica_that_computes_lone_prompts_faster_is_foreseen_so(others: int, took_s: float, falls: bool) -> None:
    ledger = make_ledger()
    replica = ledger.replicas["m0"]
    for _ in range(others):
        ledger.begin(make_size(due_s=50.0), None, "m0", 0.0)
    before = foresee(replica, make_size(), 0, 0.0, 0.0, ERRORS).alone_s
    for i in range(30):
        size = make_size(due_s=i + 1.0)
        flight = ledger.begin(size, None, "m0", float(i))
        ledger.expect(flight, foresee(replica, size, 0, float(i), 0.0, ERRORS).alone_s, float(i))
        ledger.first_token(flight, i + took_s)
        ledger.end(flight, i + took_s)
    after = foresee(replica, make_size(), 0, 0.0, 0.0, ERRORS).alone_s
    assert (after < 0.8 * before) is falls
    assert DRIFT[0] <= replica.drift <= DRIFT[1]
    assert falls or after == pytest.approx(before)
