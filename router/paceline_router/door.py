"""Where admitted requests wait until serving them harms hardly anyone: a waiting room, looked at in time.

waiting.py decides who leaves and how; the room is looked at whenever somebody comes, and again and again while somebody
waits. Without rules nobody waits. Before `open` everybody does, in the order of arrival. Invariant: a request is here
until it is started, shed, or ends by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol, assert_never

from paceline_engine.clock import Clock

from paceline_router.waiting import LOOK_EVERY_S, Claim, Fate, Prospect, Rule, WaitingRoom

SHORTEST_LOOK_S = 0.005  # wall: what a fast time scale may not go below


class Waiting(Protocol):
    """A request that may wait. Times are model seconds."""

    @property
    def claim(self) -> Claim: ...
    def prospect(self, now: float) -> Prospect: ...
    def start(self) -> None: ...
    def shed(self, retry_after_s: int) -> None: ...


class Door:
    """Of one router. `rules` by class, None without a waiting room; `shut` until `open`."""

    def __init__(
        self, clock: Clock, loop: asyncio.AbstractEventLoop, rules: Mapping[str, Rule] | None, *, shut: bool = False
    ) -> None:
        self._outside: dict[Waiting, None] | None = {} if shut else None
        self._clock = clock
        self._loop = loop
        self._room: WaitingRoom[Waiting] | None = None if rules is None else WaitingRoom(rules)
        self._inside: dict[Waiting, str] = {}  # and their classes
        self._next_look: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        return self._outside is None

    def open(self) -> None:
        """From now on requests are judged one by one, those that came before first."""
        outside, self._outside = self._outside or {}, None
        for request in outside:
            self.arrive(request)

    def arrive(self, request: Waiting) -> None:
        """It starts now, or when it may."""
        if self._outside is not None:
            self._outside[request] = None
            return
        if self._room is None:
            request.start()
            return
        claim = request.claim
        self._inside[request] = claim.class_name
        self._room.enter(request, claim)
        self._look(self._room)

    def leave(self, request: Waiting) -> None:
        """It has ended, whether it was here or not."""
        if self._outside is not None:
            self._outside.pop(request, None)
        class_name = self._inside.pop(request, None)
        if self._room is not None and class_name is not None:
            self._room.leave(request, class_name)

    def adopt(self, rules: Mapping[str, Rule]) -> None:
        """These are the rules from now on, for those that wait too."""
        if self._room is not None:
            self._room.adopt(rules)

    def _look(self, room: WaitingRoom[Waiting]) -> None:
        now = self._clock.now()
        while (left := room.release(lambda request: request.prospect(now), now)) is not None:
            del self._inside[left.what]
            match left.fate:
                case Fate.SERVE:
                    left.what.start()
                case Fate.SHED:
                    left.what.shed(left.retry_after_s)
                case Fate.WAIT:
                    raise AssertionError("one that waits has not left")
                case _ as never:
                    assert_never(never)
        if self._inside and self._next_look is None:
            wait_s = max(self._clock.wall(LOOK_EVERY_S), SHORTEST_LOOK_S)
            self._next_look = self._loop.call_later(wait_s, self._look_again, room)

    def _look_again(self, room: WaitingRoom[Waiting]) -> None:
        self._next_look = None
        self._look(room)
