"""How long a step may be for the sake of those who are not here yet: whoever comes during it waits until it ends.

Of each class that came lately the longest time to a first token is remembered (a request that waited at a router brings
less); a step may take a share of the shortest of these. Invariant: classes that are no longer seen are forgotten. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from paceline_engine.request import Request

TTFT_SHARE = 0.5
LATELY_S = 60.0


@dataclass(slots=True)
class Newcomers:
    """`_classes`: by name, the TTFT limit in seconds and when one of that class last came."""

    _classes: dict[str, tuple[float, float]] = field(default_factory=dict, init=False)

    def note(self, waiting: Iterable[Request], now: float) -> None:
        """Those among the waiting that no plan has seen."""
        for r in waiting:
            if r.urgency_s != r.urgency_s:
                name, ttft_s = r.objective.class_name, r.objective.ttft_s
                self._classes[name] = max(ttft_s, self._classes.get(name, (0.0, 0.0))[0]), now

    def most_s(self, now: float) -> float:
        """Seconds of a step."""
        for name in [name for name, (_, seen_s) in self._classes.items() if now - seen_s > LATELY_S]:
            del self._classes[name]
        return TTFT_SHARE * min([ttft_s for ttft_s, _ in self._classes.values() if ttft_s > 0.0], default=inf)
