"""An engine's work in hand as it tells of it, so that routers that share the engine know of each other's requests.

TPOT limits are told to two digits, which bounds how many there can be: at most 90 a decade, whatever clients ask for.
Invariant: whoever rounds, engine or router, gets the same limit. Lengths are tokens, limits seconds. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from paceline_engine.request import Leg, Request

# Of every engine's /metrics.
QUEUED_TOKENS = "paceline_queued_prompt_tokens"
CONTEXT_TOKENS = "paceline_context_tokens"
PACED_REQUESTS, PACE = "paceline_paced_requests", "tpot_seconds"  # a gauge, and its label


@dataclass(frozen=True, slots=True)
class Work:
    """Requests in an engine: prompt tokens to be computed; of those that decode or will, context and TPOT limits."""

    queued_tokens: int = 0
    context: int = 0
    paces: Mapping[float, int] = field(default_factory=dict)


NO_WORK = Work()


def work_of(requests: Iterable[Request]) -> Work:
    """Of all requests that an engine has: those that run, wait, or wait for their KV."""
    queued = context = 0
    paces: Counter[float] = Counter()
    for r in requests:
        if not r.emitted_tokens and r.leg is not Leg.DECODE:
            queued += r.prompt_tokens - r.computed_tokens
        if r.leg is not Leg.PREFILL:
            context += r.prompt_tokens + r.emitted_tokens
            paces[r.objective.tpot_s] += 1
    return Work(queued, context, told(paces))


def told(paces: Mapping[float, int]) -> Mapping[float, int]:
    """Requests by TPOT limit, as they are told: limits that look alike together."""
    found: dict[float, int] = {}
    for tpot_s, count in paces.items():
        rounded = float(f"{tpot_s:.1e}")
        found[rounded] = found.get(rounded, 0) + count
    return found
