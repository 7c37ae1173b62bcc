"""The quantile of a histogram, as Prometheus' histogram_quantile reads it, so that every page shows the same figure.

Pure. Invariant: the answer lies between 0 and the last finite bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable


def bucket_quantile(buckets: Iterable[tuple[float, float]], q: float) -> float | None:
    """Of (upper bound, count up to it), ascending: linear within its bucket; None where nothing was observed.

    The last finite bound stands for what lies above.
    """
    known = list(buckets)
    if not known or known[-1][1] <= 0:
        return None
    rank = q * known[-1][1]
    below_le, below = 0.0, 0.0
    for le, count in known:
        if count >= rank:
            return (
                below_le if math.isinf(le) else below_le + (le - below_le) * (rank - below) / max(count - below, 1e-9)
            )
        below_le, below = le, count
    return below_le
