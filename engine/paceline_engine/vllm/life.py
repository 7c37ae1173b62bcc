"""How an engine ends: a drain that is asked for, or a process that is told to end, up to the last open request.

First a notice, in which `/readyz` says no and requests are still served, then refusal of what is new, and after the
drain's time the cut of what is still open. Told to end by a signal, it drains without a notice: vLLM would answer new
requests with 500, and leave streams without an end once it has stopped its engine. Invariant: phases go one way, and
nothing is open for longer than notice and timeout after the first of them was left. Wall seconds.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from enum import Enum
from types import FrameType

from paceline_engine.vllm.rules import Rules


class Phase(Enum):
    """Where an engine is in its life. There is no loading: vLLM listens only when it has loaded."""

    READY = "ready"
    NOTICE = "notice"  # /readyz says 503, requests are still served until everyone has noticed
    DRAINING = "draining"  # new requests are refused


class Life:
    """`cut` ends what is open; it may be called more than once."""

    def __init__(self, rules: Rules, cut: Callable[[], None]) -> None:
        self._rules = rules
        self._cut = cut
        self._timers: list[asyncio.TimerHandle] = []
        self.phase = Phase.READY

    def drain(self) -> bool:
        """Begins to, once; whether it began now."""
        if self.phase is not Phase.READY:
            return False
        self.phase = Phase.NOTICE
        self._end_after(self._rules.drain_notice_s)
        return True

    def mind_sigterm(self) -> None:
        """Drains when the process is told to end. The handler that was set before goes on working: event loops are
        woken by the signal's number, whoever else hears of it."""
        before = signal.getsignal(signal.SIGTERM)
        if not callable(before):  # nobody minds it
            return
        loop = asyncio.get_running_loop()

        def on_sigterm(number: int, frame: FrameType | None) -> None:
            before(number, frame)
            loop.call_soon_threadsafe(self._terminate)

        signal.signal(signal.SIGTERM, on_sigterm)

    def _terminate(self) -> None:
        self._refuse()
        self._end_after(0.0)

    def _end_after(self, notice_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(notice_s, self._refuse))
        self._timers.append(loop.call_later(notice_s + self._rules.drain_timeout_s, self._cut))

    def _refuse(self) -> None:
        self.phase = Phase.DRAINING
