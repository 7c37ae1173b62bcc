"""Why an objective was missed: the part of a request's course that took the most of it.

Pure. Invariant: every verdict but GOOD has exactly one cause; times are model seconds, none negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from paceline_api.slo import Verdict


class Cause(StrEnum):
    """`cause` of paceline_miss_total."""

    QUEUE = "queue"
    PREFILL = "prefill"
    TRANSFER = "transfer"
    DECODE = "decode"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Phases:
    """What the time to the first token went to, so far. `waited_s`: what computing the prompt alone leaves over."""

    waited_s: float
    computed_s: float
    transferred_s: float
    failures: int


def cause(verdict: Verdict, phases: Phases) -> Cause | None:
    """None for a good request."""
    match verdict:
        case Verdict.GOOD:
            return None
        case Verdict.UNSERVED:
            return Cause.FAILURE
        case Verdict.TPOT:
            return Cause.DECODE
        case Verdict.TTFT | Verdict.BOTH:
            if phases.failures:
                return Cause.FAILURE
            longest = max(phases.waited_s, phases.computed_s, phases.transferred_s)
            if longest == phases.transferred_s and phases.transferred_s > 0:
                return Cause.TRANSFER
            return Cause.PREFILL if longest == phases.computed_s else Cause.QUEUE
        case _ as never:
            assert_never(never)
