"""The two engines that DistServe measured on A100-80G, as machines: published fits, and what the fits leave out.

The fits time a forward pass. What a request sees beside it is in `DISTSERVE_ENGINE` and `VLLM_2023`, one set an engine,
used for every run, model and parallelism alike; measured_runs.py replays the real runs on them. Where a constant is not
published its docstring says from which of those runs it was read, and how well it is known. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from paceline_engine.policies.step import Limits
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec
from paceline_engine.step_time import HostTerm, StepTable
from paceline_engine.tables import load_table
from paceline_router.state import Role

from paceline_planner.sim.rides import EngineSpec

# Memory of one GPU for weights and KV in simdistserve's capacities: from 1 to 2 stages OPT-13B gains 96,864 tokens.
GPU_BYTES = 96_864 * 819_200

RAY_HOST = HostTerm(constant_s=0.002, prefill_token_s=1e-7, context_token_s=1e-7)
SEQUENCE_HOST = HostTerm(sequence_s=0.0004)


@dataclass(frozen=True, slots=True)
class DistServeEngine:
    """DistServe's engine (LLMServe/DistServe, 2023–24): two loops in one process, workers behind Ray.

    `host`: the "ray" term of its simulator, unchanged. `front_s`: from the client's send to the prefill queue (HTTP,
    tokenising, a loop that polls every 3 ms); TTFTs of prompts that met no other are 4–8 ms above the fit in every run.
    `handover_s` and `handover_bytes_per_s`: its decode loop copies one prompt's KV after another between its steps and
    waits for each. Answers take 5.0–5.6 ms + 3–7 µs a token longer for each prompt that arrives meanwhile (regression
    on the runs at 3 and 6 requests/s); 4 ms + 6.8 µs a token is what meets their TPOTs best. `prefill_tokens` is its
    server's --context-max-tokens-per-batch.
    """

    table: str = "a100-sxm-80gb.distserve"
    host: HostTerm = RAY_HOST
    front_s: float = 0.005
    handover_s: float = 0.004
    handover_bytes_per_s: float = 120e9
    prefill_tokens: int = 8192
    max_requests: int = 1024


@dataclass(frozen=True, slots=True)
class VLLM2023:
    """vLLM 0.2 as DistServe served it: engine and worker behind Ray, 65,536 tokens a step, 1,024 sequences.

    Read from OPT-13B's runs at 1, 1.5 and 3 requests/s, tried on the other two. `host`: what its Python does for each
    running sequence, 0.3–0.5 ms a step by regression of answer times on the sequences beside them (residual 1 %).
    `prefill_ratio`: prompts stall running answers 0.8–0.9 times as long as the published fit of a prefill says.
    `front_s`: as DistServe's, without its polling.
    `kv_ratio`: its profiling run keeps memory for the activations of 65,536 tokens; prompts queue when about 54,000
    tokens of KV are in use, where the fits' capacity is 66,144.
    """

    table: str = "a100-sxm-80gb.distserve-vllm"
    host: HostTerm = SEQUENCE_HOST
    front_s: float = 0.003
    prefill_ratio: float = 0.88
    kv_ratio: float = 0.82
    max_batched_tokens: int = 65_536
    max_requests: int = 1024


DISTSERVE_ENGINE = DistServeEngine()
VLLM_2023 = VLLM2023()


def machine(table: StepTable, **over: object) -> MachineSpec:
    """`table` itself, without tile steps and noise: it was fitted to steps that have them."""
    fields: dict[str, object] = {"tile_tokens": 1, "noise_ratio": 0.0, "stall_probability": 0.0}
    return MachineSpec(table, **(fields | over))  # type: ignore[arg-type]  # MachineSpec's fields by name


def faster_prefill(table: StepTable, ratio: float) -> StepTable:
    """`table` with every prefill `ratio` times as long."""
    linear = tuple((tokens, ratio * seconds) for tokens, seconds in table.linear)
    return replace(table, linear=linear, pair_s=ratio * table.pair_s)


def kv_tokens(table: StepTable, stages: int) -> int:
    """KV capacity of `stages` pipeline stages: each further one brings its GPUs' memory, and no more weights."""
    return table.kv_tokens + (stages - 1) * table.tensor * GPU_BYTES // table.kv_bytes_per_token


def vllm_engines(model: str, tensor: int, of: VLLM2023 = VLLM_2023) -> tuple[EngineSpec, ...]:
    """vLLM on `tensor` GPUs."""
    table = replace(faster_prefill(load_table(of.table, model, tensor), of.prefill_ratio), host=of.host)
    blocks = int(of.kv_ratio * table.kv_tokens) // 16
    limits = Limits(max_requests=of.max_requests, max_batched_tokens=of.max_batched_tokens)
    return (
        EngineSpec("vllm", Role.MIXED, ReplicaSpec(machine(table), "vllm-v0", None, limits, kv_blocks=blocks), tensor),
    )


def distserve_engines(
    model: str, prefill: tuple[int, int], decode: tuple[int, int], of: DistServeEngine = DISTSERVE_ENGINE
) -> tuple[EngineSpec, ...]:
    """DistServe's engine; `prefill` and `decode` are (tensor, pipeline)."""
    engines = []
    for role, (tensor, stages) in ((Role.PREFILL, prefill), (Role.DECODE, decode)):
        table = replace(load_table(of.table, model, tensor), host=of.host)
        spec = machine(
            table,
            stages=stages,
            one_loop=role is Role.DECODE,
            kv_constant_s=of.handover_s,
            kv_bytes_per_s=of.handover_bytes_per_s * stages,  # each stage copies its own layers
        )
        limits = Limits(max_requests=of.max_requests, max_batched_tokens=of.prefill_tokens)
        replica = ReplicaSpec(
            spec,
            f"{role}-only",
            None,
            limits,
            token_budget=of.prefill_tokens,
            kv_blocks=kv_tokens(table, stages) // 16,
            hands_over=role is Role.PREFILL,
        )
        engines.append(EngineSpec(role, role, replica, tensor * stages))
    return tuple(engines)
