"""One alarm clock for a process, finer than the event loop's timers: engine steps and requests are due by it.

uvloop and asyncio count whole milliseconds, as much as a tenth of a decode step; Linux's timerfd counts nanoseconds and
wakes the loop as a readable file. Alarms that are due together are rung in one wake-up, earliest first. Invariant: an
alarm rings once, never early, and not after `cancel`. Times are wall seconds of `time.monotonic()`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

_CLOCK_MONOTONIC = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_ABSOLUTE = 1


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Alarm:
    """A callback at a moment; made by `Alarms.set`."""

    __slots__ = ("ring",)

    def __init__(self, ring: Callable[[], None]) -> None:
        self.ring: Callable[[], None] | None = ring

    def cancel(self) -> None:
        self.ring = None


class Alarms:
    """OSError where the kernel has no timerfd."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._spec = _TimerSpec()
        self._heap: list[tuple[float, int, Alarm]] = []
        self._order = count()
        self._ringing = False
        loop.add_reader(self._fd, self._ring)

    def set(self, when_s: float, ring: Callable[[], None]) -> Alarm:
        """Calls `ring` at `when_s`, or as soon as possible after it; never from inside this call."""
        alarm = Alarm(ring)
        heappush(self._heap, (when_s, next(self._order), alarm))
        if not self._ringing and self._heap[0][2] is alarm:
            self._arm()
        return alarm

    async def wait_until(self, when_s: float) -> None:
        """Returns at `when_s`; at the loop's next round when that has passed."""
        rung = self._loop.create_future()
        alarm = self.set(when_s, lambda: None if rung.done() else rung.set_result(None))
        try:
            await rung
        finally:
            alarm.cancel()

    def close(self) -> None:
        """No alarm rings any more."""
        self._heap.clear()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set anew since it became readable
            return
        self._ringing = True
        heap = self._heap
        now_s = time.monotonic()
        try:
            while heap and heap[0][0] <= now_s:
                ring = heappop(heap)[2].ring
                if ring is not None:
                    ring()
        finally:
            self._ringing = False
            self._arm()

    def _arm(self) -> None:
        """Sets the kernel's timer to the earliest alarm; one that has passed rings in the loop's next round."""
        if not self._heap:
            return
        nanoseconds = max(int(self._heap[0][0] * 1e9) + 1, 1)
        self._spec.value.seconds, self._spec.value.nanoseconds = divmod(nanoseconds, 1_000_000_000)
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(self._spec), None)
