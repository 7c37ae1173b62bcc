"""The StepTable of a model on a GPU that nobody has measured: the roofline at the knots of a measured table.

Invariants: the table names the data sheet, whose constants it uses and the error that was found on models or GPUs left
out; it holds a model that fits, or DoesNotFit says by how much it does not. Seconds and bytes. Pure.
"""

from __future__ import annotations

import numpy as np
from paceline_api.catalog import ACCELERATORS, GIB
from paceline_engine.step_time import StepTable

from paceline_planner.fit.grid import DECODE_KNOTS, TOKEN_KNOTS
from paceline_planner.fit.tables import ACTIVATIONS_BYTES, GPU_MEMORY_UTILISATION, KV_BLOCK_TOKENS
from paceline_planner.roofline.cost import Steps, kv_bytes_of_gpu, seconds, work
from paceline_planner.roofline.fractions import achieved
from paceline_planner.roofline.gpu import Gpu
from paceline_planner.roofline.shape import SIXTEEN_BITS, Shape
from paceline_planner.step_tables import PREFIX

SOURCE = "roofline: {}; shares of it as {} achieve, fitted to aiconfigurator-core 0.12.0 (backend vllm, bf16)"
UNMEASURED = "its {} has no measured step to compare with"


class DoesNotFit(ValueError):
    """The model cannot be on these GPUs; the message says why."""


def kv_capacity_tokens(shape: Shape, gpu: Gpu, tensor: int, pipeline: int) -> int:
    """Tokens of KV of one replica, by its fullest stage: 90 % of each GPU less its weights and 2 GiB; 0 for none."""
    layers = -(-shape.layers // pipeline)
    share = layers / shape.layers
    memory = GPU_MEMORY_UTILISATION * ACCELERATORS[gpu.memory_of].memory_gib * GIB
    left = memory - shape.weight_bytes * share / tensor - ACTIVATIONS_BYTES
    blocks = int(left // (kv_bytes_of_gpu(shape, tensor) * share * KV_BLOCK_TOKENS))
    return max(blocks, 0) * KV_BLOCK_TOKENS


def roofline_table(
    shape: Shape, gpu: Gpu, tensor: int = 1, pipeline: int = 1, stage_bytes_s: float | None = None
) -> StepTable:
    """T of a pass through all `pipeline` stages of `tensor` GPUs each, without a host's part; raises DoesNotFit.

    `stage_bytes_s` is the rate between stages, that of the GPUs' links if None (another node is slower).
    """
    kv_tokens = _check_fit(shape, gpu, tensor, pipeline)
    found = achieved(gpu)
    f = found.fractions
    send_s = (pipeline - 1) * shape.hidden * SIXTEEN_BITS / (stage_bytes_s or f.link * gpu.link_bytes_s)
    kv_s = kv_bytes_of_gpu(shape, tensor) / (f.kv * gpu.memory_bytes_s)
    tokens, decodes = (np.array(knots, dtype=np.float64) for knots in (TOKEN_KNOTS, DECODE_KNOTS))
    prefill_s = seconds(work(shape, tensor, Steps(tokens, 0 * tokens, 0 * tokens, 0 * tokens)), gpu, f)
    decode_s = seconds(work(shape, tensor, Steps(0 * decodes, 0 * decodes, decodes, 0 * decodes)), gpu, f)
    return StepTable(
        name=PREFIX + gpu.name,
        source=_source(shape, gpu, found.basis),
        gpu=gpu.name,
        model=shape.name,
        tensor=tensor,
        linear=tuple((n, float(s) + n * send_s) for n, s in zip(TOKEN_KNOTS, prefill_s, strict=True)),
        pair_s=4.0 * shape.layers * shape.heads * shape.head_dim / tensor / (f.attention * gpu.peak("bf16")),
        mixed_s=0.0,
        decode=tuple((n, float(s) + n * send_s, kv_s) for n, s in zip(DECODE_KNOTS, decode_s, strict=True)),
        kv_tokens=kv_tokens,
        kv_bytes_per_token=shape.kv_bytes_per_token,
        error=found.error,
    )


def _check_fit(shape: Shape, gpu: Gpu, tensor: int, pipeline: int) -> int:
    """The KV capacity, tokens; raises DoesNotFit."""
    if shape.heads % tensor:
        raise DoesNotFit(f"{shape.name}: {shape.heads} heads cannot be split over {tensor} GPUs")
    kv_tokens = kv_capacity_tokens(shape, gpu, tensor, pipeline)
    if not kv_tokens:
        weights = shape.weight_bytes / GIB
        raise DoesNotFit(f"{shape.name}: {weights:.0f} GiB of weights leave no KV on {tensor * pipeline} x {gpu.name}")
    return kv_tokens


def _source(shape: Shape, gpu: Gpu, basis: str) -> str:
    """What the table rests on, and what of it nothing was measured for."""
    parts = [SOURCE.format(gpu.source, basis)]
    if shape.experts:
        parts.append(UNMEASURED.format("mixture of experts"))
    if not shape.precision.weight_bytes == shape.precision.kv_bytes == SIXTEEN_BITS:
        parts.append(UNMEASURED.format("precision"))
    return "; ".join(parts)
