"""One class's requests as few weighted lengths, from the histograms that Prometheus has of them.

A bucket is a handful of lengths spread evenly in the logarithm, then all moved towards their buckets' upper or lower
bounds until their mean is the measured one. Invariant: a length stays within its bucket, shares sum to 1. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

from paceline_api.slo import SLOClass

from paceline_router.autoscale.signals import ClassSignals, Lengths

PROMPTS_PER_BUCKET, OUTPUTS_PER_BUCKET = 8, 4

Points = tuple[tuple[float, float], ...]  # (tokens, share)


def points(lengths: Lengths, per_bucket: int) -> Points:
    """Weighted lengths; the mean alone where no histogram is known, nothing where no mean is known either."""
    if not lengths.buckets:
        return ((max(lengths.mean_tokens, 1.0), 1.0),) if lengths.mean_tokens > 0 else ()
    spread: list[tuple[float, float, float, float]] = []  # tokens, share, and the bucket's bounds
    low = 0.5
    for bound, share in lengths.buckets:
        high = bound if isfinite(bound) else 2 * low
        for i in range(per_bucket if share > 0 else 0):
            at = low * (high / low) ** ((i + 0.5) / per_bucket)
            spread.append((max(at, 1.0), share / per_bucket, max(low, 1.0), max(high, 1.0)))
        low = high
    missing = lengths.mean_tokens - sum(tokens * share for tokens, share, _, _ in spread)
    room = sum(share * ((high if missing > 0 else low) - tokens) for tokens, share, low, high in spread)
    move = min(max(missing / room, 0.0), 1.0) if room else 0.0
    return tuple((t + move * ((high if missing > 0 else low) - t), share) for t, share, low, high in spread)


def moment(of: Points, power: int) -> float:
    """E[tokens ^ power]."""
    return sum(share * tokens**power for tokens, share in of)


@dataclass(frozen=True, slots=True)
class Load:
    """One class with traffic. `rate_rps` is as measured."""

    slo: SLOClass
    rate_rps: float
    prompts: Points
    outputs: Points

    @property
    def output_mean(self) -> float:
        return moment(self.outputs, 1)

    @property
    def emitted_mean(self) -> float:
        """Tokens that a running request has emitted already, on average over time: long answers run longer."""
        return moment(self.outputs, 2) / (2 * self.output_mean)

    @property
    def tokens_per_s(self) -> float:
        return self.rate_rps * self.output_mean


def loads(classes: Sequence[ClassSignals]) -> tuple[Load, ...]:
    """The classes of which there is anything to predict."""
    found = (
        Load(c.slo, c.arrivals_rps, points(c.prompt, PROMPTS_PER_BUCKET), points(c.output, OUTPUTS_PER_BUCKET))
        for c in classes
        if c.arrivals_rps > 0
    )
    return tuple(load for load in found if load.prompts and load.outputs)


@dataclass(frozen=True, slots=True)
class Context:
    """What one decode holds in KV, tokens: on average over all that run, and how much that varies."""

    mean: float
    deviation: float


def context(of: Sequence[Load], emitted: float = 1.0) -> Context:
    """Of running requests, over all classes; `emitted` multiplies what they have emitted."""
    total = sum(load.tokens_per_s for load in of)
    mean = square = 0.0
    for load in of:
        weight, prompt = load.tokens_per_s / total, moment(load.prompts, 1)
        answer = emitted * load.emitted_mean
        answer_square = emitted**2 * moment(load.outputs, 3) / (3 * load.output_mean)
        mean += weight * (prompt + answer)
        square += weight * (moment(load.prompts, 2) + 2 * prompt * answer + answer_square)
    return Context(mean, sqrt(max(square - mean * mean, 0.0)))
