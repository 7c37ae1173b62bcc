"""Decides verdicts as early as they can be: when a limit passes, or with the end of a request.

A heap of moments at which something may be decided; `tick` looks at those that have passed. Invariant: each followed
request is reported at most once, and one that ends without having been reported has no verdict (DESIGN §1).
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from paceline_api.slo import Course, SLOClass, Verdict, judge

OnDecided = Callable[[Verdict], None]


class Followed:
    """One request under one objective."""

    __slots__ = ("course", "decided", "on_decided", "slo")

    def __init__(self, course: Course, slo: SLOClass, on_decided: OnDecided) -> None:
        self.course = course
        self.slo = slo
        self.on_decided = on_decided
        self.decided: Verdict | None = None


class Tracker:
    """All requests whose verdict is open. Times are model seconds."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Followed]] = []
        self._count = 0

    def follow(self, course: Course, slo: SLOClass, on_decided: OnDecided) -> Followed:
        """From its arrival on; first decided on when TTFT, or an unstreamed answer as a whole, is late."""
        followed = Followed(course, slo, on_decided)
        due = course.arrival_s + slo.ttft_limit_s(course.prompt_tokens)
        if not course.streamed:
            due += _pace_s(followed)
        self._push(due, followed)
        return followed

    def first_token(self, followed: Followed) -> None:
        """Its first token has come: `course.first_token_s` is set."""
        self.look(followed, followed.course.first_token_s or 0.0)
        if followed.decided is None and followed.course.streamed and followed.course.first_token_s is not None:
            self._push(followed.course.first_token_s + _pace_s(followed), followed)

    def look(self, followed: Followed, now: float) -> None:
        """Decides if it can be decided at `now`."""
        if followed.decided is None:
            followed.decided = verdict = judge(followed.slo, followed.course, now)
            if verdict is not None:
                followed.on_decided(verdict)

    def tick(self, now: float) -> None:
        """Looks at everything that was due before `now`."""
        while self._due and self._due[0][0] < now:
            _, _, followed = heappop(self._due)
            if followed.course.outcome is None:
                self.look(followed, now)

    def _push(self, due_s: float, followed: Followed) -> None:
        self._count += 1
        heappush(self._due, (due_s, self._count, followed))


def _pace_s(followed: Followed) -> float:
    """The time in which `max_tokens` must have come, after the first."""
    return max((followed.course.max_tokens or 1) - 1, 0) * followed.slo.tpot_s
