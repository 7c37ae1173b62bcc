"""Non-negative least squares (Lawson and Hanson, Solving Least Squares Problems, 1974, ch. 23), with numpy only.

Physical cost models are sums of non-negative terms: a step never gets faster by having more to do. Invariant: the
result is non-negative and meets the Kuhn-Tucker conditions within the tolerance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def nnls(a: Floats, b: Floats) -> Floats:
    """x ≥ 0 that minimises |a·x − b|; `a` has one row an equation. Columns are scaled to unit length first."""
    lengths = np.linalg.norm(a, axis=0)
    lengths[lengths == 0.0] = 1.0
    unit = a / lengths
    n = unit.shape[1]
    x = np.zeros(n)
    free = np.zeros(n, dtype=bool)
    tolerance = 1e-10 * float(np.linalg.norm(unit.T @ b))
    for _ in range(10 * n):
        gradient = unit.T @ (b - unit @ x)
        candidates = np.where(free, -np.inf, gradient)
        best = int(np.argmax(candidates))
        if candidates[best] <= tolerance:
            break
        free[best] = True
        while True:
            trial = np.zeros(n)
            trial[free] = np.linalg.lstsq(unit[:, free], b, rcond=None)[0]
            if np.all(trial[free] > 0.0):
                break
            falling = free & (trial <= 0.0)
            step = float(np.min(x[falling] / (x[falling] - trial[falling])))
            x = x + step * (trial - x)
            free &= x > 1e-14
            x[~free] = 0.0
        x = trial
    scaled: Floats = x / lengths
    return scaled
