"""How many output tokens a request still has to come: an empirical survival curve per class over recent requests.

True lengths are unknown in production; what the class's last requests did is the best guess that needs no model. Memory
is bounded: the last `window` lengths of each class. Pure.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence

from paceline_engine.request import Request


class OutputLengths:
    """Observed output lengths, in tokens, by class name. Before `few` observations it answers with `prior_tokens`."""

    __slots__ = ("_few", "_prior", "_recent", "_sorted", "_window")

    def __init__(self, prior_tokens: int = 128, window: int = 512, few: int = 16) -> None:
        self._prior = prior_tokens
        self._window = window
        self._few = few
        self._recent: dict[str, deque[int]] = {}
        self._sorted: dict[str, list[int]] = {}

    def observe(self, class_name: str, output_tokens: int) -> None:
        recent = self._recent.setdefault(class_name, deque())
        ordered = self._sorted.setdefault(class_name, [])
        recent.append(output_tokens)
        insort(ordered, output_tokens)
        if len(recent) > self._window:
            oldest = recent.popleft()
            del ordered[bisect_right(ordered, oldest) - 1]

    def remaining(self, class_name: str, emitted_tokens: int, quantile: float = 0.5) -> int:
        """The given quantile of the tokens still to come after `emitted_tokens`, at least 1."""
        ordered = self._sorted.get(class_name)
        if ordered is None or len(ordered) < self._few:
            return max(1, self._prior - emitted_tokens)
        longer = bisect_right(ordered, emitted_tokens)
        left = len(ordered) - longer
        if left == 0:  # longer than anything seen: as long again as the longest was, at the least one
            return max(1, ordered[-1] // 4)
        return max(1, ordered[longer + min(left - 1, int(quantile * left))] - emitted_tokens)

    def medians(self, requests: Sequence[Request]) -> list[int]:
        """`remaining` of many requests at once, for hot paths."""
        found: list[int] = []
        name: str | None = None
        ordered: list[int] = []
        known = 0
        for r in requests:
            if r.objective.class_name != name:
                name = r.objective.class_name
                ordered = self._sorted.get(name, [])
                known = len(ordered) if len(ordered) >= self._few else 0
            emitted = r.emitted_tokens
            longer = bisect_right(ordered, emitted) if known else 0
            if longer < known:
                found.append(ordered[longer + (known - longer) // 2] - emitted)
            else:
                found.append(max(1, ordered[-1] // 4 if known else self._prior - emitted))
        return found
