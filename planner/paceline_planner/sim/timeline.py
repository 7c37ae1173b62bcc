"""A virtual clock: actions at moments, done in order; those of one moment in the order in which they were asked for.

Invariant: time never goes back, and nothing but `play` moves it. Times are seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

Action = Callable[[], None]


class Timeline:
    """`awaited` actions are those that a request may wait for; others only look on, or change what there is."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, bool, Action]] = []
        self._order = count()

    def at(self, when_s: float, action: Action, *, awaited: bool = False) -> None:
        """Have `action` done at that moment, should the run last so long."""
        heapq.heappush(self._heap, (when_s, next(self._order), awaited, action))

    @property
    def is_awaited(self) -> bool:
        """Whether anything is to come that a request may wait for."""
        return any(awaited for _, _, awaited, _ in self._heap)

    def play(self, stopped: Callable[[], bool]) -> None:
        """Until nothing is left to do, or it is `stopped`."""
        heap = self._heap
        while heap and not stopped():
            self.now, _, _, action = heapq.heappop(heap)
            action()
