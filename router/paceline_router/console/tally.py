"""The router's counters at a moment, and their increase since an earlier one.

The numbers are those that /metrics exposes, read from the same objects. `History` keeps one sample every few seconds,
so that "the last minute" and the trend need no sum over requests. Pure. Invariant: an increase is never negative,
because the counters of one process never fall. Times are model seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from paceline_api.slo import Verdict

from paceline_router.quantile import bucket_quantile

WINDOW_S = 60.0
EVERY_S = 5.0  # between two samples
KEPT = 61  # samples: five minutes of trend


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram: how many up to each bound, not cumulative, and above the last. Empty: nothing observed."""

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    def since(self, earlier: Distribution) -> Distribution:
        """Empty where the bounds moved meanwhile with an edited objective: the two cannot be compared."""
        if not earlier.counts:
            return self
        if earlier.bounds != self.bounds:
            return Distribution()
        return Distribution(self.bounds, tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True)))

    def quantile(self, q: float) -> float | None:
        """Interpolated; None before the first observation."""
        return bucket_quantile(zip((*self.bounds, float("inf")), accumulate(self.counts), strict=False), q)


@dataclass(frozen=True, slots=True)
class Tally:
    """One class: requests by verdict, outcome and cause of a miss."""

    arrivals: int = 0
    verdicts: Mapping[str, int] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)
    misses: Mapping[str, int] = field(default_factory=dict)
    ttft: Distribution = Distribution()
    tpot: Distribution = Distribution()

    @property
    def good(self) -> int:
        return self.verdicts.get(Verdict.GOOD, 0)

    @property
    def decided(self) -> int:
        return sum(self.verdicts.values())

    @property
    def attainment(self) -> float | None:
        """Share of good requests among the decided; None before a verdict."""
        return self.good / self.decided if self.decided else None

    def since(self, earlier: Tally) -> Tally:
        return Tally(
            self.arrivals - earlier.arrivals,
            _since(self.verdicts, earlier.verdicts),
            _since(self.outcomes, earlier.outcomes),
            _since(self.misses, earlier.misses),
            self.ttft.since(earlier.ttft),
            self.tpot.since(earlier.tpot),
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """All classes at `at_s`, by name."""

    at_s: float
    tallies: Mapping[str, Tally]

    def since(self, earlier: Sample) -> Sample:
        """The increase; `at_s` is the time that it took."""
        none = Tally()
        increase = {name: tally.since(earlier.tallies.get(name, none)) for name, tally in self.tallies.items()}
        return Sample(self.at_s - earlier.at_s, increase)


class History:
    """Samples of the last minutes, oldest first; the first is taken when the router starts."""

    def __init__(self, first: Sample) -> None:
        self._samples = deque([first], maxlen=KEPT)
        self._steps: deque[Sample] = deque(maxlen=KEPT - 1)

    def add(self, sample: Sample) -> None:
        self._steps.append(sample.since(self._samples[-1]))
        self._samples.append(sample)

    def recent(self, now: Sample) -> Sample:
        """The increase over the last minute, or over all that is kept where that is less."""
        old = (sample for sample in reversed(self._samples) if sample.at_s <= now.at_s - WINDOW_S)
        return now.since(next(old, self._samples[0]))

    def trend(self) -> list[Sample]:
        """The increase from each sample to the next."""
        return list(self._steps)


def _since(now: Mapping[str, int], earlier: Mapping[str, int]) -> dict[str, int]:
    return {name: count - earlier.get(name, 0) for name, count in now.items()}
