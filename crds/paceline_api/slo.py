"""SLO classes and the verdict on one request (DESIGN §1), shared by router, simulator, load generator and reports.

A request is good when it completed with its TTFT and its mean TPOT within its class. The verdict is decided as early as
it can be: a TTFT miss when its limit passes, a TPOT miss once even the full `max_tokens` could no longer lower the mean
enough. Standard library only; times are seconds on one clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from paceline_api.outcomes import Outcome

STALL_PER_TPOT = 3.0  # DESIGN §1: a stall is a gap above 3 × TPOT unless the class says otherwise


@dataclass(frozen=True, slots=True)
class SLOClass:
    """A named objective. `target_ratio` is the share of requests (0..1] that must meet both limits."""

    name: str
    ttft_s: float
    tpot_s: float
    target_ratio: float = 0.9
    max_stall_s: float = 0.0  # 0: STALL_PER_TPOT × tpot_s
    ttft_s_per_1k_prompt_tokens: float = 0.0
    ttft_cap_s: float = math.inf  # one request's own limit, whatever its prompt adds

    @property
    def stall_s(self) -> float:
        return self.max_stall_s or STALL_PER_TPOT * self.tpot_s

    def ttft_limit_s(self, prompt_tokens: int) -> float:
        return min(self.ttft_s + self.ttft_s_per_1k_prompt_tokens * prompt_tokens / 1000, self.ttft_cap_s)

    def tightened(self, ttft_s: float | None, tpot_s: float | None) -> SLOClass:
        """This class with one request's own limits, which can only be tighter; itself when neither is."""
        slo = self
        if ttft_s is not None and (ttft_s < self.ttft_s or self.ttft_s_per_1k_prompt_tokens):
            slo = replace(slo, ttft_s=min(self.ttft_s, ttft_s), ttft_cap_s=min(self.ttft_cap_s, ttft_s))
        if tpot_s is not None and tpot_s < self.tpot_s:
            slo = replace(slo, tpot_s=tpot_s, max_stall_s=min(self.stall_s, STALL_PER_TPOT * tpot_s))
        return slo


class Verdict(StrEnum):
    """`result` of paceline_slo_decided_total."""

    GOOD = "good"
    TTFT = "ttft"
    TPOT = "tpot"
    BOTH = "both"
    UNSERVED = "unserved"  # shed, failed or timed out: counts against


@dataclass(slots=True)
class Course:
    """What is known of one request so far. `first_token_s` and `end_s` are None until they happen."""

    arrival_s: float
    prompt_tokens: int
    streamed: bool = True
    max_tokens: int | None = None
    first_token_s: float | None = None
    end_s: float | None = None
    output_tokens: int = 0
    outcome: Outcome | None = None

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None before the end, or with one token (then it holds)."""
        if self.end_s is None or self.first_token_s is None or self.output_tokens < 2:
            return None
        return (self.end_s - self.first_token_s) / (self.output_tokens - 1)


def judge(slo: SLOClass, course: Course, now: float) -> Verdict | None:
    """The verdict at `now`, or None: undecided, or left out of attainment (rejected; a client that left in time)."""
    match course.outcome:
        case Outcome.REJECTED:
            return None
        case Outcome.SHED | Outcome.NO_ENDPOINT | Outcome.UPSTREAM_FAILED | Outcome.TIMED_OUT:
            return Verdict.UNSERVED
        case Outcome.COMPLETED if not course.streamed:
            return _judge_whole(slo, course)
        case _:
            at = now if course.end_s is None else course.end_s
            return _judge_stream(slo, course, at, done=course.outcome is Outcome.COMPLETED)


def _judge_whole(slo: SLOClass, course: Course) -> Verdict:
    """Not streamed: within TTFT + (n − 1) × TPOT as a whole, DESIGN §1."""
    assert course.end_s is not None
    limit = slo.ttft_limit_s(course.prompt_tokens) + max(course.output_tokens - 1, 0) * slo.tpot_s
    return Verdict.GOOD if course.end_s - course.arrival_s <= limit else Verdict.BOTH


def _judge_stream(slo: SLOClass, course: Course, at: float, *, done: bool) -> Verdict | None:
    """Of a stream, complete or not: misses that no later token can undo, GOOD only once it is complete."""
    if not course.streamed:  # unfinished: the last moment at which it could still be good
        latest = slo.ttft_limit_s(course.prompt_tokens) + max((course.max_tokens or 1) - 1, 0) * slo.tpot_s
        return Verdict.BOTH if course.max_tokens and at - course.arrival_s > latest else None
    first = course.first_token_s if course.first_token_s is not None else at
    late = first - course.arrival_s > slo.ttft_limit_s(course.prompt_tokens)
    if course.first_token_s is None:  # complete without content: its end stands for its first token
        return Verdict.TTFT if late else Verdict.GOOD if done else None
    tpot = course.tpot_s if done else None
    slow = tpot is not None and tpot > slo.tpot_s
    if not done and course.max_tokens and course.max_tokens > 1:  # with one token TPOT holds
        slow = at - course.first_token_s > (course.max_tokens - 1) * slo.tpot_s
    if late or slow:
        return Verdict.BOTH if late and slow else Verdict.TTFT if late else Verdict.TPOT
    return Verdict.GOOD if done else None
