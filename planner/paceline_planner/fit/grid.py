"""Fits one step-time table to the points of a calibration grid: decodes first, then prefills and mixed steps on top.

Decides the knots and the form; `StepTable` is what they mean. Least squares on relative errors over terms that are all
non-negative, so that T never falls when a step has more to do: one more token, one more token², or one more decode at
the same total context (up to the model's own context for each decode).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from paceline_engine.step_time import StepShape, StepTable

from paceline_planner.fit.nnls import nnls

TOKEN_KNOTS = (1, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
DECODE_KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PHASES = ("prefill", "decode", "mixed")


@dataclass(frozen=True, slots=True)
class Point:
    """One measured step: `prefill_tokens` of one prompt after `prefix_tokens`, and `decodes` at `context` each."""

    phase: str
    prefill_tokens: int
    prefix_tokens: int
    decodes: int
    context: int
    seconds: float

    @property
    def shape(self) -> StepShape:
        pairs = self.prefill_tokens * (self.prefix_tokens + self.prefill_tokens / 2)
        return StepShape(self.prefill_tokens, pairs, self.decodes, self.decodes * self.context)


@dataclass(frozen=True, slots=True)
class Fit:
    """The constants of a StepTable, in its units."""

    linear: tuple[tuple[int, float], ...]
    pair_s: float
    mixed_s: float
    decode: tuple[tuple[int, float, float], ...]


def fit(points: Sequence[Point], max_context_tokens: int) -> Fit:
    """The table nearest to `points`; decodes beyond the model's context are left out, for no engine runs them."""
    decode = _fit_decode(
        [p for p in points if p.phase == "decode" and p.context <= max_context_tokens], max_context_tokens
    )
    linear, pair_s, mixed_s = _fit_prefill([p for p in points if p.phase != "decode"], decode)
    return Fit(linear, pair_s, mixed_s, decode)


def errors(table: StepTable, points: Sequence[Point], max_context_tokens: int) -> Mapping[str, Mapping[str, float]]:
    """Relative errors by phase, as median, p90 and max over those points that an engine can run, if any."""
    found: dict[str, Mapping[str, float]] = {}
    for phase in PHASES:
        chosen = [p for p in points if p.phase == phase and p.context <= max_context_tokens]
        if not chosen:
            continue
        off = np.array([abs(table.seconds(p.shape) / p.seconds - 1.0) for p in chosen])
        quantiles = {"median": np.median(off), "p90": np.quantile(off, 0.9), "max": np.max(off)}
        found[phase] = {name: round(float(value), 4) for name, value in quantiles.items()}
    return found


def _rises(knots: Sequence[int], x: float) -> list[float]:
    """The share of each rise between knots that is reached at x; the last goes on beyond its end."""
    shares = [max((x - low) / (high - low), 0.0) for low, high in pairwise(knots)]
    return [min(share, 1.0) for share in shares[:-1]] + shares[-1:]


def _fit_decode(points: Sequence[Point], max_context_tokens: int) -> tuple[tuple[int, float, float], ...]:
    """dec and kv at the knots. Their unknowns are the rise from knot to knot at no context and at the fullest one.

    At total contexts between these two the rise is between them, so both being non-negative makes T rise with the
    number of decodes, though a token of context may cost less then (few sequences leave attention units idle).
    """
    full = [knot * max_context_tokens for knot in DECODE_KNOTS[1:]]
    rows = []
    for p in points:
        total = p.decodes * p.context
        row = [1.0, float(total)]
        for share, most in zip(_rises(DECODE_KNOTS, p.decodes), full, strict=True):
            row += [share * (1.0 - total / most), share * total / most]
        rows.append([value / p.seconds for value in row])
    x = nnls(np.array(rows), np.ones(len(rows)))
    base_s, kv_s = float(x[0]), float(x[1])
    knots = [(DECODE_KNOTS[0], base_s, kv_s)]
    for i, most in enumerate(full):
        empty, filled = float(x[2 + 2 * i]), float(x[3 + 2 * i])
        base_s += empty
        kv_s += (filled - empty) / most
        knots.append((DECODE_KNOTS[i + 1], base_s, max(kv_s, 0.0)))
    return tuple(knots)


def _fit_prefill(
    points: Sequence[Point], decode: tuple[tuple[int, float, float], ...]
) -> tuple[tuple[tuple[int, float], ...], float, float]:
    """lin at the knots, pair and the cost of mixing, given the decodes' cost per token of context.

    The grid has no step below 128 tokens: one token is taken to cost what one decode without context costs.
    """
    rows, rights = [[1.0, *[0.0] * (len(TOKEN_KNOTS) - 1), 0.0, 0.0]], [decode[0][1]]
    weights = [1.0 / decode[0][1]]
    batches, kv = [b for b, _, _ in decode], [k for _, _, k in decode]
    for p in points:
        shape = p.shape
        kv_s = float(np.interp(p.decodes, batches, kv)) * shape.decode_context
        tokens = p.prefill_tokens + p.decodes
        rows.append([1.0, *_rises(TOKEN_KNOTS, tokens), shape.prefill_pairs, float(p.decodes > 0)])
        rights.append(p.seconds - kv_s)
        weights.append(1.0 / p.seconds)
    weight = np.array(weights)
    x = nnls(np.array(rows) * weight[:, None], np.array(rights) * weight)
    at_knots = np.cumsum(x[: len(TOKEN_KNOTS)])
    linear = tuple((n, float(s)) for n, s in zip(TOKEN_KNOTS, at_knots, strict=True))
    return linear, float(x[-2]), float(x[-1])
