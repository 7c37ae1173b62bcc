"""The two engines that DistServe measured on A100-80G, as machines: published fits, and what the fits leave out.

The fits time a forward pass. What a request sees beside it is in `DISTSERVE_ENGINE` and `VLLM_2023`, one set an engine,
used for every run, model and parallelism alike; measured_runs.py replays the real runs on them. Where a constant is not
published its docstring says from which of those runs it was read, and how well it is known. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from paceline_engine.policies.step import Limits
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec, scaled
from paceline_engine.step_time import HostTerm, StepTable
from paceline_engine.tables import load_table
from paceline_router.facts import Role

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

    Its runs are of two versions (`packs` in measured_runs.py tells them apart). These constants are the later one's,
    read from OPT-13B's runs at 1, 1.5, 2.5 and 3 requests/s. `host`: what its Python does for each running sequence;
    regression of answer times on the sequences and the context beside them says 0.3 ms a step (residual 2.5 %), 0.4
    meets TPOTs best. `prefill_ratio`: by that regression, prompts stall running answers 0.87 times as long as the
    published fit of a prefill says. `front_s`: as DistServe's, without its polling. `kv_ratio`: its profiling run keeps
    memory for the activations of 65,536 tokens; prompts queue when about 55,000 tokens of KV are in use, where the
    fits' capacity is 66,144 (read from the run at 3/s, the only one that fills it).
    `time_ratio`: of every step to the later version's.
    """

    table: str = "a100-sxm-80gb.distserve-vllm"
    policy: str = "vllm-v0-padded"
    host: HostTerm = SEQUENCE_HOST
    front_s: float = 0.003
    prefill_ratio: float = 0.87
    kv_ratio: float = 0.83
    time_ratio: float = 1.0
    max_batched_tokens: int = 65_536
    max_requests: int = 1024


DISTSERVE_ENGINE = DistServeEngine()
VLLM_2023 = VLLM2023()


@dataclass(frozen=True, slots=True)
class Constants:
    """Both engines'."""

    distserve: DistServeEngine = DISTSERVE_ENGINE
    vllm: VLLM2023 = VLLM_2023


CONSTANTS = Constants()


def packed(later: VLLM2023) -> VLLM2023:
    """The version before, up to 0.2.1, whose prompts lie end to end.

    Nothing is read from its run (2 requests/s): the published fit of a prefill is taken to be this version's, and what
    the later one gains on prefills it is taken to gain on every step.
    """
    return replace(later, policy="vllm-v0", time_ratio=1.0 / later.prefill_ratio)


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


Tables = Callable[[str, str, int, int], StepTable]


def published_table(name: str, model: str, tensor: int, stages: int) -> StepTable:
    """The fit as published, with the KV of all stages; TableMissing where there is none."""
    table = load_table(name, model, tensor)
    return replace(table, kv_tokens=kv_tokens(table, stages))


def vllm_engines(
    model: str, tensor: int, of: VLLM2023 = VLLM_2023, tables: Tables = published_table
) -> tuple[EngineSpec, ...]:
    """vLLM on `tensor` GPUs."""
    later = replace(faster_prefill(tables(of.table, model, tensor, 1), of.prefill_ratio), host=of.host)
    table = scaled(later, of.time_ratio)
    blocks = int(of.kv_ratio * table.kv_tokens) // 16
    limits = Limits(max_requests=of.max_requests, max_batched_tokens=of.max_batched_tokens)
    return (
        EngineSpec("vllm", Role.MIXED, ReplicaSpec(machine(table), of.policy, None, limits, kv_blocks=blocks), tensor),
    )


def distserve_engines(
    model: str,
    prefill: tuple[int, int],
    decode: tuple[int, int],
    of: DistServeEngine = DISTSERVE_ENGINE,
    tables: Tables = published_table,
) -> tuple[EngineSpec, ...]:
    """DistServe's engine; `prefill` and `decode` are (tensor, pipeline)."""
    engines = []
    for role, (tensor, stages) in ((Role.PREFILL, prefill), (Role.DECODE, decode)):
        table = replace(tables(of.table, model, tensor, stages), host=of.host)
        spec = machine(
            table,
            stages=stages,
            one_loop=role is Role.DECODE,
            kv_constant_s=of.handover_s,
            kv_bytes_per_s=of.handover_bytes_per_s * tensor * stages,  # each GPU copies its own heads and layers
        )
        limits = Limits(max_requests=of.max_requests, max_batched_tokens=of.prefill_tokens)
        replica = ReplicaSpec(
            spec,
            f"{role}-only",
            None,
            limits,
            token_budget=of.prefill_tokens,
            kv_blocks=table.kv_tokens // 16,
        )
        engines.append(EngineSpec(role, role, replica, tensor * stages))
    return tuple(engines)
