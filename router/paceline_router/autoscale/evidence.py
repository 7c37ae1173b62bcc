"""How high the load is for sure, from the rates of one tick after another: what growth and shrinking are judged by.

A rate over a span in which n requests came is known to a factor of 1 + z/√n, arrivals taken as Poisson's. Spans that
end now are looked at from the shortest to the longest that does not contradict a shorter one: beyond it the load was
another. Invariant: of each class, what is there at least is never more than what is there at most. Rates are per
second, times seconds. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf, sqrt

from paceline_router.autoscale.signals import ServiceSignals

LONGEST_S = 300.0  # rates are remembered for so long, as lengths are
# Standard deviations of a rate:
CHANGED = 2.0  # that two spans' rates contradict each other by
SURE = 2.0  # by which it is above what a size holds that is too small
SPARE = 1.0  # by which it may be higher where a smaller size is enough


@dataclass(frozen=True, slots=True)
class Known:
    """One class's rate: the least that no span contradicts, over the longest span, and that and a deviation more."""

    low: float
    mean: float
    high: float


@dataclass(slots=True)
class Rates:
    """Arrivals per second by class at each tick, over the window that ends there."""

    ticks: deque[tuple[float, Mapping[str, float]]] = field(default_factory=deque)

    def add(self, signals: ServiceSignals, now: float) -> None:
        self.ticks.append((now, {c.slo.name: c.arrivals_rps for c in signals.classes}))
        while len(self.ticks) > 1 and self.ticks[0][0] < now - LONGEST_S + signals.window_s:
            self.ticks.popleft()

    def known(self, signals: ServiceSignals) -> Mapping[str, Known]:
        """By class, at the last tick."""
        return {c.slo.name: self._known(c.slo.name, signals.window_s) for c in signals.classes}

    def _known(self, name: str, window_s: float) -> Known:
        low, high = 0.0, inf
        least = mean = most = 0.0
        for span_s, rate in self._spans(name, window_s):
            bounds = _bounds(rate, span_s, CHANGED)
            if bounds[0] > high or bounds[1] < low:
                break
            # An empty span still allows a low rate; `most` is 0 after one all the same, or no idle pool could empty.
            low, high = max(low, bounds[0]), min(high, bounds[1] if rate else CHANGED**2 / span_s)
            mean, (sure, most) = rate, (_bounds(rate, span_s, SURE)[0], _bounds(rate, span_s, SPARE)[1])
            least = max(least, sure)
        return Known(least, mean, max(least, most))

    def _spans(self, name: str, window_s: float) -> Iterator[tuple[float, float]]:
        """Spans that end now, each twice as long as the one before, the last of all that is remembered; their rates."""
        now = self.ticks[-1][0]
        seen_s = now - self.ticks[0][0] + window_s
        span_s = window_s
        while True:
            span_s = min(span_s, seen_s)
            rates = [tick.get(name, 0.0) for at, tick in self.ticks if at >= now - span_s + window_s]
            yield span_s, sum(rates) / len(rates)
            if span_s >= seen_s:
                return
            span_s *= 2


def with_rates(signals: ServiceSignals, rates: Mapping[str, float]) -> ServiceSignals:
    """The signals at other arrivals per second by class."""
    return replace(signals, classes=tuple(replace(c, arrivals_rps=rates[c.slo.name]) for c in signals.classes))


def _bounds(rate: float, span_s: float, deviations: float) -> tuple[float, float]:
    """Between which a rate may be that was measured over a span."""
    doubt = 1.0 + deviations / sqrt(rate * span_s) if rate > 0 else 1.0
    return rate / doubt, rate * doubt
