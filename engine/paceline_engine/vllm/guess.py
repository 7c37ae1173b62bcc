"""A step-time table where there is none: guessed from the model's shape, then fitted to the steps that are seen.

A guess can be wrong by any factor in each of its parts, so constant, slope and attention of a regime are fitted apart,
none below zero, to samples kept by shape: the controller holds the step time constant, and on its own steps alone a
constant would explain everything. Hence the diverse early ones (a start-up's, steps without objectives) are never
displaced by the later ones. On the fitted table `StepTimeModel` goes on as on any other. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median

import numpy as np
from numpy.typing import NDArray

from paceline_engine.step_time import MAX_STEP_S, Regime, StepShape, StepTable, StepTimeModel

LONGEST_TOKENS, MOST_DECODES = 8192, 256  # where the lines' second knots lie; they go on beyond
PER_SHAPE, SHAPES = 16, 48  # samples kept of a batch shape, and shapes kept of a regime
LEAST = 0.01  # of a first guess's coefficient: what the scale of one that was fitted to less is
FIT_AT = (4, 8, 16, 32, 64, 128)  # observations of a regime, and every 128th
FEW = 16  # below it nothing is said about how late steps are
RIDGE = 1e-3  # what a coefficient's relative distance from the last one weighs beside a sample's relative error
RATIO = 0.05  # of a prediction: what is taken for error of the line rather than disturbance
UNTRIED = 0.2  # the same before there are samples, and of decodes whatever disturbs them
FASTEST_S = 1e-5  # below it a line is no step time


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer: what a token costs follows from it."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int

    @property
    def layer_parameters(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def kv_bytes_per_token(self) -> int:
        """At 16 bits an element."""
        return 4 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Machine:
    """What a device is taken for; `step_s` is the host's part of any step."""

    name: str
    flops_per_s: float
    bytes_per_s: float
    step_s: float


# One AVX-512 core of a Xeon does 54-60 GFLOP/s with vLLM's bf16 kernels (5 M and 94 M models, measured); the GPU is a
# slow one of those that serve LLMs.
CPU_CORE = Machine("cpu core", 50e9, 5e9, 0.004)
GPU = Machine("gpu", 100e12, 1e12, 0.008)


def guess_table(shape: Shape, machine: Machine, model: str, devices: int, kv_tokens: int) -> StepTable:
    """The table of `devices` such machines that share each step."""
    token_s = 2 * shape.layer_parameters / (machine.flops_per_s * devices)
    weights_s = 2 * shape.layer_parameters / (machine.bytes_per_s * devices)
    kv_s = shape.kv_bytes_per_token / (machine.bytes_per_s * devices)
    least_s = machine.step_s + weights_s
    return StepTable(
        name=f"guess: {machine.name}",
        source="guessed from the model's shape",
        gpu=machine.name,
        model=model,
        tensor=devices,
        linear=((1, least_s + token_s), (LONGEST_TOKENS, least_s + LONGEST_TOKENS * token_s)),
        pair_s=4 * shape.layers * shape.heads * shape.head_dim / (machine.flops_per_s * devices),
        mixed_s=0.0,
        decode=((1, least_s + token_s, kv_s), (MOST_DECODES, least_s + MOST_DECODES * token_s, kv_s)),
        kv_tokens=kv_tokens,
        kv_bytes_per_token=shape.kv_bytes_per_token,
    )


Sample = tuple[float, float, float, float]  # x, z, seconds, weight
Line = tuple[float, float, float]


def fit(samples: list[Sample], last: Line, least: Line) -> Line:
    """(k, a, b) ≥ 0 of seconds ≈ k + a·x + b·z, robust, in relative error.

    `last` is what they are drawn to where the samples do not tell: three equations of unit weight, scaled by RIDGE and
    by the coefficient, or by `least` where it is smaller, so that none stays at zero.
    """
    data = np.array(samples)
    scale = np.maximum(np.array(last), np.array(least))
    drawn_to = np.array(last) / scale
    rows = np.column_stack((np.ones(len(data)), data[:, :2])) * scale / data[:, 2:3]
    weight = data[:, 3]
    found = np.ones(3)
    for _ in range(6):
        found = _non_negative(rows, weight, drawn_to)
        error = np.abs(rows @ found - 1.0)
        limit = 1.345 * max(0.02, 1.4826 * float(np.median(error)))
        weight = data[:, 3] * np.minimum(1.0, limit / np.maximum(error, 1e-9)) ** 2
    k, a, b = (found * scale).tolist()
    return k, a, b


Vector = NDArray[np.float64]


def _non_negative(rows: Vector, weight: Vector, drawn_to: Vector) -> Vector:
    """Weighted least squares of rows·c = 1 with c ≥ 0, drawn to some: coefficients that would be negative are 0."""
    weighted = rows * weight[:, None]
    left = weighted.T @ rows + RIDGE * np.eye(3)
    right = weighted.sum(axis=0) + RIDGE * drawn_to
    free = [0, 1, 2]
    found = np.zeros(3)
    while free:
        part = np.linalg.solve(left[np.ix_(free, free)], right[free])
        if (part >= 0).all():
            found[free] = part
            break
        free = [i for i, c in zip(free, part, strict=True) if c > 0]
    return found


class GuessedModel(StepTimeModel):
    """A `StepTimeModel` on a guess. Memory is bounded; deterministic in the order of its observations.

    On such a machine (a CPU shared with the HTTP server) what disturbs a step is a time, not a share of it. So a step
    with prefills is predicted late by that time, the p95 of what the fit left unexplained, though never by more than
    itself: noise that no choice of ours avoids must not keep prompts waiting for ever.
    """

    def __init__(self, table: StepTable) -> None:
        super().__init__(table)
        self._kept: dict[Regime, dict[tuple[int, ...], deque[tuple[StepShape, float]]]] = {r: {} for r in Regime}
        self._least = {regime: _scaled(_line(table, regime), LEAST) for regime in Regime}
        self._latest: deque[tuple[StepShape, float]] = deque(maxlen=FIT_AT[-1])  # steps with prefills
        self._observed = dict.fromkeys(Regime, 0)
        self.late_s = 0.0

    def predict4(self, prefill_tokens: int, prefill_pairs: float, decodes: int, decode_context: int) -> float:
        """Seconds that a step will hardly exceed."""
        expected = super().predict4(prefill_tokens, prefill_pairs, decodes, decode_context)
        return expected + min(self.late_s, expected) if prefill_tokens else expected

    def expect(self, shape: StepShape) -> float:
        """Seconds that a step of this shape takes."""
        return super().predict4(shape.prefill_tokens, shape.prefill_pairs, shape.decodes, shape.decode_context)

    def margin_ratio(self, regime: Regime) -> float:
        """What `late_s` leaves; never as wide as for the untrusted, or no prompt would run to learn from."""
        if regime is Regime.DECODE:
            return min(super().margin_ratio(regime), UNTRIED)
        return RATIO if self._observed[regime] >= FIT_AT[1] else UNTRIED

    def observe(self, shape: StepShape, measured_s: float) -> None:
        if not 0.0 < measured_s < MAX_STEP_S or not (shape.prefill_tokens or shape.decodes):
            self.ignored += 1
            return
        regime = Regime.MIXED if shape.prefill_tokens else Regime.DECODE
        self._keep(regime, shape, measured_s)
        self._observed[regime] += 1
        count = self._observed[regime]
        super().observe(shape, measured_s)
        if count in FIT_AT or count % FIT_AT[-1] == 0:
            self._fit(regime)
        if regime is Regime.MIXED:
            self._latest.append((shape, measured_s))
            if count % FEW == 0:
                self._judge()

    def _keep(self, regime: Regime, shape: StepShape, measured_s: float) -> None:
        """Shapes differ by powers of two in tokens, and in the context of a chunk or of a decode."""
        key: tuple[int, ...]
        if regime is Regime.MIXED:
            depth = int(shape.prefill_pairs / shape.prefill_tokens)
            key = (shape.prefill_tokens.bit_length(), depth.bit_length(), shape.decodes.bit_length())
        else:
            key = (shape.decodes.bit_length(), (shape.decode_context // shape.decodes).bit_length())
        kept = self._kept[regime]
        if key in kept or len(kept) < SHAPES:
            kept.setdefault(key, deque(maxlen=PER_SHAPE)).append((shape, measured_s))

    def _judge(self) -> None:
        """How late small steps are; large ones would pass off an error of the line as disturbance."""
        steps = [(self.expect(shape), y) for shape, y in self._latest]
        small = median(expected for expected, _ in steps)
        late = sorted(y - (1 + RATIO) * expected for expected, y in steps if expected <= small)
        self.late_s = max(late[len(late) * 95 // 100], 0.0)

    def _fit(self, regime: Regime) -> None:
        """A new table for the regime, fitted on everything that is kept."""
        table, last, least = self.table, _line(self.table, regime), self._least[regime]
        if regime is Regime.DECODE:
            rows = [(float(x.decodes), float(x.decode_context), y, w) for x, y, w in self._samples(regime)]
            k, a, kv_s = fit(rows, last, least)
            table = replace(table, decode=tuple((n, max(k + n * a, FASTEST_S), kv_s) for n in (1, MOST_DECODES)))
        else:
            kv_s = table.decode[0][2]
            rows = [
                (float(x.prefill_tokens + x.decodes), x.prefill_pairs, max(y - kv_s * x.decode_context, FASTEST_S), w)
                for x, y, w in self._samples(regime)
            ]
            k, a, pair_s = fit(rows, last, least)
            linear = tuple((n, max(k + n * a, FASTEST_S)) for n in (1, LONGEST_TOKENS))
            table = replace(table, linear=linear, pair_s=pair_s)
        self.restart(table, chain.from_iterable(chain(*(shapes.values() for shapes in self._kept.values()))))

    def _samples(self, regime: Regime) -> Iterator[tuple[StepShape, float, float]]:
        """(shape, seconds, weight): a batch shape weighs as the root of its samples, lest the frequent one be all."""
        for kept in self._kept[regime].values():
            for shape, measured_s in kept:
                yield shape, measured_s, len(kept) ** -0.5


def _line(table: StepTable, regime: Regime) -> Line:
    """Constant, slope and what the context costs."""
    if regime is Regime.DECODE:
        (_, first, kv_s), (_, last, _) = table.decode
        slope = (last - first) / (MOST_DECODES - 1)
        return first - slope, slope, kv_s
    (_, first), (_, last) = table.linear
    slope = (last - first) / (LONGEST_TOKENS - 1)
    return first - slope, slope, table.pair_s


def _scaled(line: Line, factor: float) -> Line:
    k, a, b = line
    return factor * k, factor * a, factor * b
