"""How wrong predicted times to the first token were: on the median, and by what one in ten exceeds.

The median is a replica's own: its engine may compute prompts faster than an even pace of its decodes allows, on slack
that they have saved; slower never counts, or chance would tell replicas apart. The tenth goes by age of what was known:
the longer ago an engine's last scrape was, the less a prediction made from it is worth. A quantile is followed by a
step up for each error above it and one down for each below, a ninth as long for the tenth, so it needs no history.
Invariants: quantiles stay within their bounds, and before any observation those of errors grow with age. Pure.
"""

from __future__ import annotations

from bisect import bisect_right

AGES_S = (1.0, 2.0, 4.0, 8.0)  # upper ends; the last range is open
PRIOR = (0.25, 0.3, 0.4, 0.5, 0.7)  # of the predicted time
LEAST, MOST = 0.1, 1.5
STEP = 0.02
DRIFT_STEP = 1.02
DRIFT = (0.4, 1.0)  # bounds of a replica's pace
LINK = (0.25, 16.0)  # and of its hand-overs, over those of a fast network
FLOOR_S = 0.02  # a prediction below this is a step, whose phase nobody knows


def followed(drift: float, predicted_s: float, observed_s: float, bounds: tuple[float, float] = DRIFT) -> float:
    """A replica's median of observed over foreseen times, after one more; `predicted_s` was made with `drift`."""
    moved = drift * DRIFT_STEP if observed_s > predicted_s else drift / DRIFT_STEP
    return min(max(moved, bounds[0]), bounds[1])


class PredictionErrors:
    """p90 of (observed - predicted) / predicted, by age of the state in model seconds."""

    __slots__ = ("_p90",)

    def __init__(self) -> None:
        self._p90 = list(PRIOR)

    def p90(self, age_s: float) -> float:
        """As a share of the predicted time."""
        return self._p90[bisect_right(AGES_S, age_s)]

    def observe(self, age_s: float, predicted_s: float, observed_s: float) -> None:
        """A first token came `observed_s` after its choice, which had said `predicted_s`."""
        error = (observed_s - predicted_s) / max(predicted_s, FLOOR_S)
        i = bisect_right(AGES_S, age_s)
        moved = self._p90[i] + (STEP if error > self._p90[i] else -STEP / 9)
        self._p90[i] = min(max(moved, LEAST), MOST)
