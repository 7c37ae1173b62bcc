"""Verdicts as early as they can be, their causes, and what a scrape of an engine is read as."""

from __future__ import annotations

import pytest
from paceline_api.outcomes import Outcome
from paceline_api.slo import Course, SLOClass, Verdict
from paceline_engine.tables import load_table
from paceline_router.exposition import LATENESS, STEP, fleet_quantile, read
from paceline_router.facts import Facts, Role
from paceline_router.miss import Cause, Phases, cause
from paceline_router.replica import NOTHING_TOLD, Replica, Told
from paceline_router.state import Ledger
from paceline_router.tracker import Tracker

SLO = SLOClass("interactive", 0.4, 0.04)


def make_course(*, streamed: bool = True, max_tokens: int = 11) -> Course:
    return Course(arrival_s=10.0, prompt_tokens=100, streamed=streamed, max_tokens=max_tokens)


def test_a_ttft_miss_is_decided_when_its_limit_passes_and_once() -> None:
    tracker, seen = Tracker(), list[Verdict]()
    course = make_course()
    followed = tracker.follow(course, SLO, seen.append)
    tracker.tick(10.39)
    assert seen == []
    tracker.tick(10.41)
    assert seen == [Verdict.TTFT]
    course.first_token_s = 10.5
    tracker.first_token(followed)
    course.end_s, course.outcome, course.output_tokens = 10.6, Outcome.COMPLETED, 2
    tracker.look(followed, 10.6)
    assert seen == [Verdict.TTFT]


def test_a_tpot_miss_is_decided_once_max_tokens_could_not_undo_it() -> None:
    tracker, seen = Tracker(), list[Verdict]()
    course = make_course()
    followed = tracker.follow(course, SLO, seen.append)
    course.first_token_s = 10.1
    tracker.first_token(followed)
    tracker.tick(10.49)  # 10.1 + 10 × 0.04 = 10.5
    assert seen == []
    tracker.tick(10.51)
    assert seen == [Verdict.TPOT]


def test_an_unstreamed_answer_has_until_the_end_of_its_pace() -> None:
    tracker, seen = Tracker(), list[Verdict]()
    tracker.follow(make_course(streamed=False), SLO, seen.append)
    tracker.tick(10.79)
    assert seen == []
    tracker.tick(10.81)
    assert seen == [Verdict.BOTH]


@pytest.mark.parametrize(
    ("outcome", "end_s", "verdicts"),
    [
        (Outcome.COMPLETED, 10.29, [Verdict.GOOD]),
        (Outcome.SHED, 10.0, [Verdict.UNSERVED]),
        (Outcome.TIMED_OUT, 10.1, [Verdict.UNSERVED]),
        (Outcome.REJECTED, 10.0, []),
        (Outcome.CLIENT_GONE, 10.3, []),
        (Outcome.CLIENT_GONE, 10.9, [Verdict.TPOT]),
    ],
)
def test_the_end_decides(outcome: Outcome, end_s: float, verdicts: list[Verdict]) -> None:
    tracker, seen = Tracker(), list[Verdict]()
    course = make_course()
    followed = tracker.follow(course, SLO, seen.append)
    course.first_token_s, course.output_tokens = 10.1, 6
    tracker.first_token(followed)
    course.end_s, course.outcome = end_s, outcome
    tracker.look(followed, end_s)
    tracker.tick(99.0)
    assert seen == verdicts


CAUSES = [
    ("good", Verdict.GOOD, Phases(1, 1, 1, 0), None),
    ("not served", Verdict.UNSERVED, Phases(1, 0, 0, 0), Cause.FAILURE),
    ("too slow a decode", Verdict.TPOT, Phases(9, 1, 1, 0), Cause.DECODE),
    ("waited longest", Verdict.TTFT, Phases(3, 1, 1, 0), Cause.QUEUE),
    ("computed longest", Verdict.TTFT, Phases(1, 3, 1, 0), Cause.PREFILL),
    ("transferred longest", Verdict.BOTH, Phases(1, 1, 3, 0), Cause.TRANSFER),
    ("lost time to a failure", Verdict.TTFT, Phases(3, 1, 1, 1), Cause.FAILURE),
    ("lost no time at all", Verdict.TTFT, Phases(0, 0, 0, 0), Cause.PREFILL),
]


@pytest.mark.parametrize(("verdict", "phases", "why"), [c[1:] for c in CAUSES], ids=[c[0] for c in CAUSES])
def test_cause(verdict: Verdict, phases: Phases, why: Cause | None) -> None:
    assert cause(verdict, phases) is why


EXPOSITION = """# HELP vllm:num_requests_running whatever
vllm:num_requests_running{engine="0"} 3
vllm:cache_config_info{block_size="32",num_gpu_blocks="1000",cache_dtype="auto"} 1
paceline_step_time_scale{regime="decode",table="a100-sxm-80gb",model="llama-3.1-8b",tensor="1"} 1.25
paceline_step_time_scale{regime="mixed",table="a100-sxm-80gb",model="llama-3.1-8b",tensor="1"} 0.9
paceline_step_time_offset_seconds{regime="decode"} 0.002
paceline_step_time_offset_seconds{regime="mixed"} 0.003
paceline_token_budget_tokens 512
paceline_sim_lateness_seconds_bucket{le="0.001"} 90
paceline_sim_lateness_seconds_bucket{le="0.002"} 100
paceline_sim_lateness_seconds_bucket{le="+Inf"} 100
paceline_step_seconds_bucket{kind="predicted",le="9"} 7
paceline_step_seconds_bucket{kind="measured",le="0.01"} 0
paceline_step_seconds_bucket{kind="measured",le="0.02"} 10
paceline_step_seconds_bucket{kind="measured",le="+Inf"} 10
paceline_step_seconds_count{kind="measured"} 10
paceline_step_seconds_count{kind="predicted"} 7
vllm:prompt_tokens_total{engine="0"} 300
vllm:generation_tokens_total{engine="0"} 40
vllm:generation_tokens_total{engine="1"} 2
vllm:prompt_tokens_created{engine="0"} 1.7e9
"""


def test_an_exposition_is_read_for_what_the_router_decides_by() -> None:
    scraped = read(EXPOSITION, 7.0, "served", 1)
    table = load_table("a100-sxm-80gb", "llama-3.1-8b", 1)
    assert scraped.facts == Facts(table, 0.9, 0.003, 1.25, 0.002, 512, 32_000, seen_at_s=7.0)
    assert scraped.told == Told(10, 342)
    assert fleet_quantile([scraped], LATENESS, 0.99, {}) == pytest.approx(0.0019)
    assert fleet_quantile([scraped], STEP, 0.5, {"kind": "measured"}) == pytest.approx(0.015)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "paceline_step_time_scale{regime=",
        'paceline_step_time_scale{regime="decode",table="no-such"} 99\n',
        'paceline_step_time_scale{regime="decode"} NaN\npaceline_token_budget_tokens -3\n',
        'vllm:cache_config_info{block_size="None",num_gpu_blocks="0"} 1\n',
        'paceline_sim_lateness_seconds_bucket{le="+Inf"} 0\n',
    ],
    ids=["empty", "torn", "an unknown table and an absurd scale", "no numbers", "an unknown cache", "no samples"],
)
def test_what_makes_no_sense_leaves_the_defaults(text: str) -> None:
    scraped = read(text, 7.0, "served", 1)
    assert scraped.facts == Facts(seen_at_s=7.0)
    assert scraped.told == NOTHING_TOLD
    assert fleet_quantile([scraped], LATENESS, 0.99, {}) is None


def test_a_page_is_a_sign_of_work_where_it_counts_other_than_the_one_before() -> None:
    ledger = Ledger([Replica("m0", Role.MIXED)])
    signs = []
    pages = (NOTHING_TOLD, Told(10, 50), Told(10, 50), Told(11, 50), NOTHING_TOLD, Told(11, 52), Told(2, 3), Told(3, 4))
    for told in pages:
        ledger.tell("m0", told)
        signs.append(ledger.replicas["m0"].signs)
    # the first that counts may have counted long ago; an unreadable one says nothing; a new process begins anew
    assert signs == [0, 0, 0, 1, 1, 2, 0, 1]


def test_a_fleets_quantile_counts_every_step_once_whichever_engine_made_it() -> None:
    busy = 'paceline_sim_lateness_seconds_bucket{le="0.001"} 990\npaceline_sim_lateness_seconds_bucket{le="+Inf"} 990\n'
    idle = 'paceline_sim_lateness_seconds_bucket{le="0.001"} 0\npaceline_sim_lateness_seconds_bucket{le="+Inf"} 10\n'
    fleet = [read(text, 0.0, "m", 1) for text in (busy, idle)]
    assert fleet_quantile(fleet, LATENESS, 0.99, {}) == pytest.approx(0.001)
    assert fleet_quantile(fleet[:1], LATENESS, 0.5, {}) == pytest.approx(0.0005, rel=0.02)
