"""How much arrives at this router: requests and prompt tokens per second, as exponential averages.

A lone request counts as one in LOAD_FROM_S. Times are model seconds. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

LOAD_OVER_S = 30.0  # model time: long against one request, short against a change of the hour
LOAD_FROM_S = 1.0  # a shorter time says nothing of a rate


@dataclass(slots=True)
class Load:
    """What arrives, per second, over about the last LOAD_OVER_S or since the first: requests, and prompt tokens."""

    requests_rps: float = 0.0
    tokens_per_s: float = 0.0
    _seen_s: float = 0.0  # how long the averages reach back, at most LOAD_OVER_S
    _at_s: float | None = None

    def note(self, new_tokens: int, now: float) -> None:
        """One request arrived."""
        since_s = 0.0 if self._at_s is None else max(now - self._at_s, 0.0)
        kept = exp(-since_s / LOAD_OVER_S)
        before_s = max(self._seen_s, LOAD_FROM_S)
        self._seen_s = kept * self._seen_s + (1.0 - kept) * LOAD_OVER_S
        reach_s = max(self._seen_s, LOAD_FROM_S)
        self.requests_rps = (kept * self.requests_rps * before_s + 1.0) / reach_s
        self.tokens_per_s = (kept * self.tokens_per_s * before_s + new_tokens) / reach_s
        self._at_s = now
