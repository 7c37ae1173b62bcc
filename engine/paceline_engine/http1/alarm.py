"""A deadline that moves often and passes rarely: one loop timer that is armed again only when it fires too early.

Moving the deadline is an assignment, so a connection may do it on every read. Invariant: while a deadline is set, a
timer is armed at or before it; the callback runs once for each deadline that passes, never early.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable


class Alarm:
    """Calls `on_due` once `time.monotonic()` has reached the deadline last set."""

    __slots__ = ("_armed_for", "_due", "_loop", "_on_due", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_due: Callable[[], None]) -> None:
        self._loop = loop
        self._on_due = on_due
        self._due = math.inf
        self._armed_for = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, due: float) -> None:
        """Moves the deadline to `due`, seconds of `time.monotonic()`."""
        self._due = due
        if due < self._armed_for:
            self._arm()

    def clear(self) -> None:
        """No deadline for now; an armed timer stays and finds nothing to do."""
        self._due = math.inf

    def cancel(self) -> None:
        """No deadline and no timer: for good."""
        self._due = self._armed_for = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = self._due
        self._timer = self._loop.call_later(max(0.0, self._due - time.monotonic()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._armed_for = math.inf
        if self._due == math.inf:
            return
        if time.monotonic() < self._due:
            self._arm()
            return
        self._due = math.inf
        self._on_due()
