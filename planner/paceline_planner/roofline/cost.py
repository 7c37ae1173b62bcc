"""The work of a step on one GPU of a tensor-parallel group, and the seconds it takes: the roofline itself.

Each matrix multiplication takes the larger of its arithmetic and its traffic, blended where both matter; attention over
prompts is arithmetic, over the KV of decodes traffic; all-reduces and a constant a layer come on top. Invariant: time
never falls when a step has more tokens, more context or more decodes. Arrays have one element a step. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2

import numpy as np
from numpy.typing import NDArray

from paceline_planner.roofline.gpu import Gpu
from paceline_planner.roofline.shape import SIXTEEN_BITS, Experts, Shape

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps to cost: prompt tokens of one sequence, Σ chunk·(context + chunk/2), decodes, Σ their context."""

    prefill: Floats
    pairs: Floats
    decodes: Floats
    context: Floats

    @property
    def tokens(self) -> Floats:
        return self.prefill + self.decodes

    @property
    def outputs(self) -> Floats:
        """Rows for which the vocabulary's scores are computed."""
        return (self.prefill > 0) + self.decodes


@dataclass(frozen=True, slots=True)
class Fractions:
    """What a GPU achieves of its data sheet (shares), and times that no data sheet has (seconds).

    `blend` is the exponent p of (arithmetic^p + traffic^p)^(1/p): 1 adds the two, infinity takes the larger.
    """

    arithmetic: float
    traffic: float
    blend: float
    attention: float
    kv: float
    link: float
    layer_s: float  # kernel starts and element-wise work of one layer
    step_s: float
    hop_s: float  # an all-reduce of nothing, for each doubling of the group


@dataclass(frozen=True, slots=True)
class Work:
    """A GPU's part of some steps. `flops` and `bytes` have one row a kind of multiplication, done `times` a step."""

    flops: Floats
    bytes: Floats
    times: Floats
    attention_flops: Floats
    kv_bytes: Floats
    reduced_bytes: Floats  # sent and received by each GPU over all all-reduces of the step
    hops: float
    layers: int
    tensor: int
    compute: str


def kv_bytes_of_gpu(shape: Shape, tensor: int) -> float:
    """Bytes that one token keeps on one GPU of the group; a KV head is on several GPUs when there are fewer heads."""
    heads = max(shape.kv_heads / tensor, 1.0)
    return 2 * shape.layers * heads * shape.head_dim * shape.precision.kv_bytes


def touched(experts: Experts, tokens: Floats) -> Floats:
    """Experts of a layer that at least one of the tokens takes, each taking its own at random."""
    missed: Floats = (1.0 - experts.per_token / experts.count) ** tokens
    return experts.count * (1.0 - missed)


@dataclass(frozen=True, slots=True)
class _Multiplication:
    """`rows` through a matrix of `inner` x `outer`, `times` a step; to read one of its weights takes `weight_bytes`."""

    rows: Floats
    inner: float
    outer: float
    times: int
    weight_bytes: Floats | float

    @property
    def flops(self) -> Floats:
        return 2.0 * self.rows * self.inner * self.outer

    @property
    def bytes(self) -> Floats:
        return self.weight_bytes * self.inner * self.outer + SIXTEEN_BITS * self.rows * (self.inner + self.outer)


def _multiplications(shape: Shape, tensor: int, steps: Steps) -> Iterator[_Multiplication]:
    """Those of one GPU: attention's, the MLPs', the experts', the output."""
    tokens, hidden, element = steps.tokens, shape.hidden, shape.precision.weight_bytes
    query = shape.heads * shape.head_dim / tensor
    kv = max(shape.kv_heads / tensor, 1.0) * shape.head_dim
    yield _Multiplication(tokens, hidden, query + 2 * kv, shape.layers, element)
    yield _Multiplication(tokens, query, hidden, shape.layers, element)
    mlps: list[tuple[Floats, float, int, Floats | float]] = [(tokens, shape.intermediate, shape.plain_layers, element)]
    if shape.experts:
        e, mixed = shape.experts, shape.layers - shape.plain_layers
        mlps += [(tokens * e.per_token, e.intermediate, mixed, element * touched(e, tokens))]
        mlps += [(tokens, e.shared, mixed, element)]
    for rows, intermediate, times, weight_bytes in mlps:
        if times and intermediate:
            wide = (shape.mlp_matrices - 1) * intermediate / tensor
            yield _Multiplication(rows, hidden, wide, times, weight_bytes)
            yield _Multiplication(rows, intermediate / tensor, hidden, times, weight_bytes)
    yield _Multiplication(steps.outputs, hidden, shape.vocab / tensor, 1, SIXTEEN_BITS)


def work(shape: Shape, tensor: int, steps: Steps) -> Work:
    """What each of `tensor` GPUs has to do; the model's layers are all on them."""
    done = list(_multiplications(shape, tensor, steps))
    reduces = shape.reduces_per_layer * shape.layers if tensor > 1 else 0
    moved = 2.0 * (tensor - 1) / tensor * shape.hidden * SIXTEEN_BITS  # a token's, in a ring
    return Work(
        flops=np.array([m.flops for m in done]),
        bytes=np.array([m.bytes for m in done]),
        times=np.array([m.times for m in done], dtype=np.float64),
        attention_flops=4.0 * shape.layers * shape.heads * shape.head_dim / tensor * steps.pairs,
        kv_bytes=kv_bytes_of_gpu(shape, tensor) * steps.context,
        reduced_bytes=reduces * moved * steps.tokens,
        hops=reduces * log2(tensor),
        layers=shape.layers,
        tensor=tensor,
        compute=shape.precision.compute,
    )


def seconds(of: Work, gpu: Gpu, f: Fractions) -> Floats:
    """Seconds of each step on `gpu`, without what the host adds."""
    arithmetic = of.flops / (f.arithmetic * gpu.peak(of.compute))
    traffic = of.bytes / (f.traffic * gpu.memory_bytes_s)
    total: Floats = of.times @ (arithmetic**f.blend + traffic**f.blend) ** (1.0 / f.blend)
    total = total + of.attention_flops / (f.attention * gpu.peak("bf16"))
    total = total + of.kv_bytes / (f.kv * gpu.memory_bytes_s)
    total = total + of.reduced_bytes / gpu.ring_bytes_s(of.tensor, f.link) + of.hops * f.hop_s
    constant: Floats = total + of.layers * f.layer_s + f.step_s
    return constant
