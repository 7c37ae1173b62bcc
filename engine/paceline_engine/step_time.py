"""How long one engine step takes: the table T of a (GPU, model, tensor parallelism), and its online correction.

`StepTable` is T of DESIGN §5: lin(tokens rounded up to the tile) + pair·Σ chunk·(context + chunk/2) + kv·Σ decode
context for a step with prefills, dec(decodes) + kv·Σ decode context for one without. `StepTimeModel` predicts s·T + h
and fits only s and h, per regime, on what the engine measures. Invariants: a step with prefills never takes less than
its decodes alone; a prediction is finite and positive; without enough evidence, or with s outside [0.5, 3], it is the
table itself with a wide margin. Times are seconds. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from math import isfinite


@dataclass(frozen=True, slots=True)
class StepShape:
    """The work of one step, summed over its requests."""

    prefill_tokens: int  # Σ chunk
    prefill_pairs: float  # Σ chunk·(context before it + chunk/2), tokens²
    decodes: int
    decode_context: int  # Σ context of the decodes, tokens


@dataclass(frozen=True, slots=True)
class HostTerm:
    """Time that the host adds to a step, seconds: constant, per prefill token, per token of decode context, per decode.

    `sequence_s` is what an engine's Python does for each running sequence after the forward pass (sampling,
    detokenising, handing over the output).
    """

    constant_s: float = 0.0
    prefill_token_s: float = 0.0
    context_token_s: float = 0.0
    sequence_s: float = 0.0

    def seconds(self, prefill_tokens: int, decodes: int, decode_context: int) -> float:
        """The host's part of a step that is not empty."""
        per_token = self.prefill_token_s * prefill_tokens + self.context_token_s * decode_context
        return self.constant_s + per_token + self.sequence_s * decodes


Lines = tuple[tuple[float, float], ...]  # value at 0 and slope of each segment


def _lines(knots: tuple[tuple[int, float], ...]) -> Lines:
    """The segments between knots; the last one goes on beyond its end, a single knot is a constant."""
    pairs = list(pairwise(knots))
    slopes = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in pairs] or [0.0]
    return tuple((y - slope * x, slope) for (x, y), slope in zip(knots, slopes, strict=False))


@dataclass(frozen=True, slots=True)
class StepTable:
    """T for one replica. Knots are piecewise linear in tokens (`linear`) or decodes (`decode`), ascending from 1.

    `linear`: (tokens, seconds); `decode`: (decodes, seconds at no context, seconds per token of context); `pair_s`:
    seconds per token² of prefill attention; `mixed_s`: what joining decodes to a prefill costs once. `kv_tokens` is the
    KV capacity of one replica. `error` holds the fit's relative errors, by phase and quantile. `host` is part of
    `seconds`. With `dataclasses.replace(table, tile_tokens=128)` the table has the steps of a real GPU's tiles.
    """

    name: str
    source: str
    gpu: str
    model: str
    tensor: int
    linear: tuple[tuple[int, float], ...]
    pair_s: float
    mixed_s: float
    decode: tuple[tuple[int, float, float], ...]
    kv_tokens: int
    kv_bytes_per_token: int
    tile_tokens: int = 1
    host: HostTerm = HostTerm()
    error: Mapping[str, Mapping[str, float]] = field(default_factory=dict, hash=False)
    _lin_from: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _lin: Lines = field(init=False, repr=False, compare=False)
    _dec_from: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _dec: tuple[tuple[float, float, float, float], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        dec = _lines(tuple((b, s + self.host.constant_s + self.host.sequence_s * b) for b, s, _ in self.decode))
        kv = _lines(tuple((b, k) for b, _, k in self.decode))
        lin = _lines(tuple((n, s + self.host.constant_s) for n, s in self.linear))
        put = object.__setattr__
        put(self, "_lin", lin)
        put(self, "_lin_from", tuple(n for n, _ in self.linear[1 : len(lin)]))
        put(self, "_dec", tuple((*line, *kv_line) for line, kv_line in zip(dec, kv, strict=True)))
        put(self, "_dec_from", tuple(b for b, _, _ in self.decode[1 : len(dec)]))

    def seconds(self, shape: StepShape) -> float:
        """Seconds of a step; 0 for an empty one."""
        return self.seconds4(shape.prefill_tokens, shape.prefill_pairs, shape.decodes, shape.decode_context)

    def seconds4(self, prefill_tokens: int, prefill_pairs: float, decodes: int, decode_context: int) -> float:
        """`seconds` of the four numbers of a StepShape, for hot paths."""
        host = self.host
        kv_s = only_decodes = 0.0
        if decodes:
            at_0, slope, kv_at_0, kv_slope = self._dec[bisect_right(self._dec_from, decodes)]
            kv_s = (kv_at_0 + kv_slope * decodes + host.context_token_s) * decode_context
            only_decodes = at_0 + slope * decodes + kv_s
            if not prefill_tokens:
                return only_decodes
            kv_s += self.mixed_s + host.sequence_s * decodes
        elif not prefill_tokens:
            return 0.0
        tokens = prefill_tokens + decodes
        tile = self.tile_tokens
        if tile > 1:
            tokens = -(-tokens // tile) * tile
        at_0, slope = self._lin[bisect_right(self._lin_from, tokens)]
        step = at_0 + slope * tokens + self.pair_s * prefill_pairs + kv_s + host.prefill_token_s * prefill_tokens
        return step if step > only_decodes else only_decodes


class Regime(StrEnum):
    """Steps that are fitted apart; the metric label `regime`."""

    DECODE = "decode"  # no prefill in the step
    MIXED = "mixed"  # prefills, with or without decodes


MIN_SCALE, MAX_SCALE = 0.5, 3.0  # DESIGN §5: outside, the table is not believed to be this machine's
MIN_OFFSET_S, MAX_OFFSET_S = -0.01, 0.05
# Beyond these a published fit is none, whoever reads it: the bounds above times a table of another GPU.
LEAST_SCALE, GREATEST_SCALE, LARGEST_OFFSET_S = 0.05, 20.0, 1.0
# How much the prior weighs beside samples with 5 % noise: tables are expected within 25 % and 3 ms of a machine. It is
# not scaled with the noise that is found, which the shrinking itself would raise.
PRIOR_S, PRIOR_H = (0.05 / 0.25) ** 2, (0.05 / 0.003) ** 2
EARLY_REFITS, REFIT_EVERY, MAX_AGE = (16, 32, 64), 128, 8192  # counted in observations of a regime
PER_STRATUM, STRATA = 8, 32  # samples kept for a batch shape, and shapes kept
WIDE_MARGIN, NARROWEST_MARGIN = 0.5, 0.02  # shares of the prediction
MAX_STEP_S, MAX_RATIO = 60.0, 100.0  # a measurement beyond either is no step time


@dataclass(slots=True)
class _RegimeFit:
    """s and h of one regime, fitted to the latest samples of each stratum; a new stratum may evict the stalest."""

    scale: float = 1.0
    offset_s: float = 0.0
    trusted: bool = False
    margin_ratio: float = WIDE_MARGIN
    error_ratio: float = 0.0
    seen: int = 0
    strata: dict[tuple[int, int], deque[tuple[int, float, float]]] = field(default_factory=dict)
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=REFIT_EVERY))

    def add(self, stratum: tuple[int, int], table_s: float, measured_s: float, *, refit: bool = True) -> None:
        ring = self.strata.get(stratum)
        if ring is None:
            if len(self.strata) == STRATA:
                del self.strata[min(self.strata, key=lambda key: self.strata[key][-1][0])]
            ring = self.strata[stratum] = deque(maxlen=PER_STRATUM)
        ring.append((self.seen, table_s, measured_s))
        self.recent.append((table_s, measured_s))
        self.seen += 1
        if refit and (self.seen % REFIT_EVERY == 0 or self.seen in EARLY_REFITS):
            self.refit()

    def refit(self) -> None:
        oldest = self.seen - MAX_AGE
        scale, offset_s = fit_scale_and_offset(
            [(t, y) for ring in self.strata.values() for seen, t, y in ring if seen >= oldest]
        )
        self.trusted = MIN_SCALE <= scale <= MAX_SCALE
        self.scale, self.offset_s = (scale, offset_s) if self.trusted else (1.0, 0.0)
        errors = sorted(y / self.predict(t) - 1.0 for t, y in self.recent)
        self.error_ratio = sorted(map(abs, errors))[len(errors) // 2]
        self.margin_ratio = max(NARROWEST_MARGIN if self.trusted else WIDE_MARGIN, errors[len(errors) * 95 // 100])

    def predict(self, table_s: float) -> float:
        predicted = self.scale * table_s + self.offset_s
        lowest = MIN_SCALE * table_s
        return predicted if predicted > lowest else lowest


def fit_scale_and_offset(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """s and h of measured ≈ s·table + h by Huber's regression on relative errors, shrunk to s = 1, h = 0.

    `samples` are (table seconds > 0, measured seconds). h is bounded; s is not, so that a caller can see it run away.
    Iterated reweighting, each pass solving two normal equations that the prior keeps regular for samples of one shape.
    """
    ratios = sorted(y / t for t, y in samples)
    s, h = ratios[len(ratios) // 2], 0.0
    for _ in range(8):
        residuals = [(y - s * t - h) / t for t, y in samples]
        spread = max(0.005, 1.4826 * sorted(map(abs, residuals))[len(residuals) // 2])
        limit = 1.345 * spread
        a, b, c, p, q = PRIOR_S, 0.0, PRIOR_H, PRIOR_S, 0.0  # [[a, b], [b, c]] · (s, h) = (p, q)
        for (t, y), r in zip(samples, residuals, strict=True):
            weight = 1.0 if -limit <= r <= limit else limit / abs(r)
            per_t = weight / t
            a += weight
            b += per_t
            c += per_t / t
            p += per_t * y
            q += per_t * y / t
        before_s, before_h = s, h
        h = min(max((a * q - b * p) / (a * c - b * b), MIN_OFFSET_S), MAX_OFFSET_S)
        s = (p - b * h) / a
        if abs(s - before_s) < 1e-4 and abs(h - before_h) < 1e-6:
            break
    return s, h


class StepTimeModel:
    """What a scheduler believes of its machine: a prior table, maybe another GPU's, corrected by s and h per regime.

    `observe` takes the interval between the results of two steps. `ignored` counts the measurements that cannot be step
    times. Deterministic in the order of its observations; memory is bounded.
    """

    def __init__(self, table: StepTable) -> None:
        self.ignored = 0
        self.restart(table, ())

    def restart(self, table: StepTable, samples: Iterable[tuple[StepShape, float]]) -> None:
        """Believes `table` from now on, fitted once to `samples`, which `observe` has taken before."""
        self.table = table
        self._fits = {regime: _RegimeFit() for regime in Regime}
        self._decode, self._mixed = self._fits[Regime.DECODE], self._fits[Regime.MIXED]
        for shape, measured_s in samples:
            self._learn(shape, measured_s, refit=False)
        for fit in self._fits.values():
            if fit.seen >= EARLY_REFITS[0]:
                fit.refit()

    def predict(self, shape: StepShape) -> float:
        """Seconds that a step of this shape will take."""
        return self.predict4(shape.prefill_tokens, shape.prefill_pairs, shape.decodes, shape.decode_context)

    def predict4(self, prefill_tokens: int, prefill_pairs: float, decodes: int, decode_context: int) -> float:
        """`predict` of the four numbers of a StepShape, for hot paths."""
        table_s = self.table.seconds4(prefill_tokens, prefill_pairs, decodes, decode_context)
        return (self._mixed if prefill_tokens else self._decode).predict(table_s)

    def attention_s(self, prefill_pairs: float) -> float:
        """The part of a step that grows with the square of its prompts."""
        return self._mixed.scale * self.table.pair_s * prefill_pairs

    def margin_ratio(self, regime: Regime) -> float:
        """p95 of measured above predicted, as a share of it; a wide one while the regime is not trusted."""
        return self._fits[regime].margin_ratio

    def observe(self, shape: StepShape, measured_s: float) -> None:
        """Learn from one step; what cannot be a step time is counted and otherwise ignored."""
        self.ignored += not self._learn(shape, measured_s, refit=True)

    def _learn(self, shape: StepShape, measured_s: float, *, refit: bool) -> bool:
        """Whether it can be a step time."""
        table_s = self.table.seconds(shape)
        if not (table_s > 0.0 and isfinite(measured_s) and 0.0 < measured_s < min(MAX_STEP_S, MAX_RATIO * table_s)):
            return False
        if shape.prefill_tokens:
            key = shape.prefill_tokens.bit_length(), shape.decodes.bit_length()
            self._mixed.add(key, table_s, measured_s, refit=refit)
        else:
            key = shape.decodes.bit_length(), (shape.decode_context // shape.decodes).bit_length()
            self._decode.add(key, table_s, measured_s, refit=refit)
        return True

    def trusted(self, regime: Regime) -> bool:
        return self._fits[regime].trusted

    def scale(self, regime: Regime) -> float:
        """s; 1 while the regime is not trusted."""
        return self._fits[regime].scale

    def offset_s(self, regime: Regime) -> float:
        """h, seconds; 0 while the regime is not trusted."""
        return self._fits[regime].offset_s

    def error_ratio(self, regime: Regime) -> float:
        """Median relative error of the latest predictions at the last refit; 0 before it."""
        return self._fits[regime].error_ratio
