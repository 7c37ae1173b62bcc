"""Token lengths of a class: from the routers' histograms, or from what a person expects of them.

Invariant: shares are not negative and sum to 1, and the mean lies within the histogram. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from paceline_router.autoscale.signals import Lengths
from paceline_router.scaling.views import Hint

BOUNDS = tuple(float(2**n) for n in range(18))
Z90 = 1.2816  # the normal distribution's 90th percentile


def measured(buckets: Iterable[tuple[float, float]], total_tokens: float) -> Lengths:
    """Of cumulative counts by upper bound, +Inf among them, and the sum of all lengths; empty lengths for no counts.

    Counts from several routers may be a hair apart (Prometheus extrapolates each): they are taken as never falling.
    What lies above the last finite bound is taken to end at twice that.
    """
    known = sorted(buckets)
    counts = list(accumulate((count for _, count in known), max))
    if not counts or counts[-1] <= 0:
        return Lengths()
    finite = [le for le, _ in known if math.isfinite(le)]
    last = 2 * finite[-1] if finite else 1.0
    shares = [(b - a) / counts[-1] for a, b in pairwise((0.0, *counts))]
    bounds = [le if math.isfinite(le) else last for le, _ in known]
    merged = tuple(zip(bounds, shares, strict=True))
    lowest = (0.0, *bounds[:-1])
    least = sum(low * share for low, share in zip(lowest, shares, strict=True))
    most = sum(le * share for le, share in merged)
    return Lengths(min(max(total_tokens / counts[-1], least), most), merged)


def expected(hint: Hint) -> Lengths:
    """The lognormal of that mean and p90; where none has both, the one with this mean and the longest tail."""
    excess = math.log(max(hint.p90_tokens, hint.mean_tokens) / hint.mean_tokens)
    sigma = Z90 - math.sqrt(max(0.0, Z90**2 - 2 * excess))  # ln(p90 / mean) = Z90 σ − σ²/2
    mu = math.log(hint.mean_tokens) - sigma**2 / 2
    below = [_normal((math.log(le) - mu) / sigma) if sigma else float(le >= hint.mean_tokens) for le in BOUNDS]
    shares = [b - a for a, b in pairwise((0.0, *below))]
    return Lengths(hint.mean_tokens, _whole(BOUNDS, shares))


def together(lengths: Sequence[tuple[float, Lengths]]) -> Lengths:
    """Several weighted by their number; empty where nothing is known."""
    known = [(weight, one) for weight, one in lengths if one.buckets and weight > 0]
    total = sum(weight for weight, _ in known)
    if not known:
        return Lengths()
    shares: dict[float, float] = {}
    for weight, one in known:
        for le, share in one.buckets:
            shares[le] = shares.get(le, 0.0) + share * weight / total
    return Lengths(sum(w * one.mean_tokens for w, one in known) / total, tuple(sorted(shares.items())))


def _whole(bounds: Sequence[float], shares: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """The last bucket takes what is left of 1."""
    return (*zip(bounds[:-1], shares[:-1], strict=False), (bounds[-1], 1.0 - sum(shares[:-1])))


def _normal(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2
