"""The verdict on one request (DESIGN §1): when it is decided, and what it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.outcomes import Outcome
from paceline_api.slo import Course, SLOClass, Verdict, judge

SLO = SLOClass("interactive", ttft_s=0.4, tpot_s=0.04)
LIMIT = 0.4 + 9 * 0.04  # of ten tokens


def course(**over: Any) -> Course:
    return Course(**({"arrival_s": 100.0, "prompt_tokens": 1000} | over))


def streamed(first: float, end: float, tokens: int, **over: Any) -> Course:
    """A completed stream; times from its arrival."""
    done = {"first_token_s": 100 + first, "end_s": 100 + end, "output_tokens": tokens, "outcome": Outcome.COMPLETED}
    return course(**(done | over))


def whole(end: float, tokens: int) -> Course:
    return streamed(0.1, end, tokens, streamed=False)


@pytest.mark.parametrize(
    ("given_course", "at", "verdict"),
    [
        pytest.param(course(), 0.3, None, id="waiting within the TTFT limit is undecided"),
        pytest.param(course(), 0.41, Verdict.TTFT, id="a TTFT miss is decided when its limit passes"),
        pytest.param(streamed(0.3, 0.3 + 9 * 0.039, 10), 9, Verdict.GOOD, id="both within their limits is good"),
        pytest.param(streamed(0.5, 0.5 + 9 * 0.039, 10), 9, Verdict.TTFT, id="late first token, quick rest"),
        pytest.param(streamed(0.3, 0.3 + 9 * 0.041, 10), 9, Verdict.TPOT, id="quick first token, slow rest"),
        pytest.param(streamed(0.5, 0.5 + 9 * 0.041, 10), 9, Verdict.BOTH, id="late first token, slow rest"),
        pytest.param(streamed(0.3, 5.0, 1), 9, Verdict.GOOD, id="with one output token TPOT holds"),
        pytest.param(streamed(0.3, 5.0, 0), 9, Verdict.GOOD, id="usage that counts no token leaves TTFT to decide"),
        pytest.param(
            course(end_s=100.3, outcome=Outcome.COMPLETED), 9, Verdict.GOOD, id="complete without content in time"
        ),
        pytest.param(
            course(end_s=100.5, outcome=Outcome.COMPLETED), 9, Verdict.TTFT, id="complete without content too late"
        ),
        pytest.param(course(first_token_s=100.3), 50, None, id="without max_tokens TPOT is decided at the end"),
        pytest.param(course(first_token_s=100.3, max_tokens=11), 0.69, None, id="max_tokens could still be in time"),
        pytest.param(
            course(first_token_s=100.3, max_tokens=11),
            0.71,
            Verdict.TPOT,
            id="even max_tokens would be too slow",
        ),
        pytest.param(course(first_token_s=100.3, max_tokens=1), 5, None, id="max_tokens 1 cannot miss TPOT"),
        pytest.param(whole(LIMIT - 0.001, 10), 9, Verdict.GOOD, id="not streamed: within TTFT + (n - 1) TPOT"),
        pytest.param(whole(LIMIT + 0.001, 10), 9, Verdict.BOTH, id="not streamed: beyond it"),
        pytest.param(whole(0.41, 1), 9, Verdict.BOTH, id="not streamed, one token: TTFT alone is the limit"),
        pytest.param(
            course(streamed=False, max_tokens=10), LIMIT - 0.001, None, id="not streamed, running: max_tokens has time"
        ),
        pytest.param(
            course(streamed=False, max_tokens=10), LIMIT + 0.001, Verdict.BOTH, id="not streamed, running: too late"
        ),
        pytest.param(course(streamed=False), 50, None, id="not streamed, running, no max_tokens: undecided"),
        pytest.param(
            course(end_s=100.3, outcome=Outcome.CLIENT_GONE), 9, None, id="a client that leaves in time is left out"
        ),
        pytest.param(
            course(end_s=100.5, outcome=Outcome.CLIENT_GONE), 9, Verdict.TTFT, id="a client that leaves late counts"
        ),
        pytest.param(
            course(first_token_s=100.3, end_s=100.6, max_tokens=11, outcome=Outcome.CLIENT_GONE),
            9,
            None,
            id="a client that leaves amid a stream in time is left out",
        ),
        pytest.param(
            course(first_token_s=100.3, end_s=101.0, max_tokens=11, outcome=Outcome.CLIENT_GONE),
            9,
            Verdict.TPOT,
            id="a client that leaves after a TPOT miss counts",
        ),
        pytest.param(course(outcome=Outcome.REJECTED, end_s=100.0), 9, None, id="what the client caused is left out"),
        pytest.param(course(outcome=Outcome.SHED, end_s=100.0), 0, Verdict.UNSERVED, id="shed counts against"),
        pytest.param(course(outcome=Outcome.NO_ENDPOINT, end_s=100.0), 0, Verdict.UNSERVED, id="no endpoint counts"),
        pytest.param(streamed(0.1, 0.2, 4, outcome=Outcome.UPSTREAM_FAILED), 9, Verdict.UNSERVED, id="failed counts"),
        pytest.param(streamed(0.1, 0.2, 4, outcome=Outcome.TIMED_OUT), 9, Verdict.UNSERVED, id="timed out counts"),
    ],
)
def test_judge(given_course: Course, at: float, verdict: Verdict | None) -> None:
    assert judge(SLO, given_course, 100 + at) is verdict


def test_the_ttft_limit_grows_with_the_prompt() -> None:
    slo = dataclasses.replace(SLO, ttft_s_per_1k_prompt_tokens=0.1)
    assert slo.ttft_limit_s(5000) == pytest.approx(0.9)
    assert judge(slo, course(prompt_tokens=5000), 100.8) is None


@pytest.mark.parametrize(
    ("per_1k", "ttft_s", "tpot_s", "limits"),
    [
        pytest.param(0.0, 0.2, None, (0.2, 0.04, 0.12), id="a tighter TTFT holds"),
        pytest.param(0.0, 9.0, 9.0, (0.4, 0.04, 0.12), id="looser limits change nothing"),
        pytest.param(0.0, None, 0.02, (0.4, 0.02, 0.06), id="a tighter TPOT tightens its stall"),
        pytest.param(0.1, 0.6, None, (0.6, 0.04, 0.12), id="an own TTFT caps what the prompt adds"),
        pytest.param(0.1, 2.0, None, (1.4, 0.04, 0.12), id="an own TTFT above the grown limit changes nothing"),
    ],
)
def test_a_request_can_only_tighten(
    per_1k: float, ttft_s: float | None, tpot_s: float | None, limits: tuple[float, float, float]
) -> None:
    slo = dataclasses.replace(SLO, ttft_s_per_1k_prompt_tokens=per_1k).tightened(ttft_s, tpot_s)
    assert (slo.ttft_limit_s(10_000), slo.tpot_s, slo.stall_s) == pytest.approx(limits)


def test_an_own_ttft_leaves_the_classs_stall_alone() -> None:
    slo = dataclasses.replace(SLO, max_stall_s=0.5)
    assert slo.tightened(0.1, None).stall_s == 0.5


def test_limits_that_tighten_nothing_leave_the_class_as_it_is() -> None:
    assert SLO.tightened(1.0, 1.0) is SLO


TIMES = st.floats(0, 20)


@given(TIMES, TIMES, st.integers(2, 400), st.integers(0, 100), TIMES, TIMES)
def test_a_miss_is_never_taken_back(
    first: float, rest: float, tokens: int, unused: int, early: float, late: float
) -> None:
    """What is a miss while the request runs is one at its end, with any number of tokens above one."""
    end = first + rest
    done = streamed(first, end, tokens, max_tokens=tokens + unused)
    at = 100 + min(early, end)
    seen = 100 + first if 100 + first <= at else None
    running = course(max_tokens=tokens + unused, first_token_s=seen)
    if judge(SLO, running, at) is not None:
        assert judge(SLO, done, 100 + end + late) not in (None, Verdict.GOOD)


@given(TIMES, TIMES, st.integers(0, 400))
def test_a_complete_request_is_decided(first: float, rest: float, tokens: int) -> None:
    assert judge(SLO, streamed(first, first + rest, tokens), 1000.0) is not None
    assert judge(SLO, whole(first + rest, tokens), 1000.0) is not None
