"""How many legs may be tried again over all requests, so that failures are not multiplied into more load.

A bucket: each request that begins adds a part of a retry, time adds some, a retry takes one. It holds as many as there
are requests in flight, so that a replica's sudden death, with all that it had, can be made good. Invariant: in any span
the retries are at most what it held + RATIO × requests + REFILL_RPS × seconds. Times are model seconds. Pure.
"""

from __future__ import annotations

RATIO = 0.2  # of the requests that begin (Finagle's and Envoy's default share)
REFILL_RPS = 10.0  # for services with few requests (Finagle's default)
LEAST_HELD = 100.0  # retries at once, however few are in flight


class RetryBudget:
    """Of one router; full at first."""

    __slots__ = ("_at_s", "_held")

    def __init__(self) -> None:
        self._held = LEAST_HELD
        self._at_s: float | None = None

    def add(self, in_flight: int) -> None:
        """A request begins."""
        self._held = min(self._held + RATIO, max(LEAST_HELD, in_flight))

    def take(self, in_flight: int, now: float) -> bool:
        """Whether a leg may be tried again at `now`; it is counted if so."""
        since_s = 0.0 if self._at_s is None else max(now - self._at_s, 0.0)
        self._at_s = now
        self._held = min(self._held + REFILL_RPS * since_s, max(LEAST_HELD, in_flight))
        if self._held < 1.0:
            return False
        self._held -= 1.0
        return True
