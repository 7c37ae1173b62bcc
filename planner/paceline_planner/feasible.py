"""What keeps one pool of an LLMService from running, or from meeting a class even with a single request.

Each check yields obstacles that name the field, the cause and what exists instead. Bounds are certain ones: weights
above the GPUs' memory, a whole context above the KV room, a limit below the time of a request alone on an idle replica
(by the step-time table, DESIGN §5; what a roofline says binds only the engines that it simulates). A pool that passes
may still miss its objectives under load. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from paceline_api.catalog import ACCELERATORS, GIB, Accelerator
from paceline_api.conditions import Reason
from paceline_api.slo import SLOClass
from paceline_api.v1alpha1 import LLMService, Parallelism, PoolSpec, Role, Runtime
from paceline_engine.step_time import StepTable
from paceline_engine.tables import available

from paceline_planner.step_tables import Model, Tables, is_roofline, largest_error, roofline_name


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a plan is not feasible: the field to change, the cause and what exists."""

    path: str
    cause: Reason
    message: str


def check_context(service: LLMService, tables: Tables) -> Iterator[Obstacle]:
    model = service.spec.model
    shape = tables.model(model.uri)
    if shape and model.max_context_tokens > shape.max_context_tokens:
        message = (
            f"maxContextTokens {model.max_context_tokens} is more than {shape.name} was trained for; "
            f"lower it to at most {shape.max_context_tokens}"
        )
        yield Obstacle("spec.model.maxContextTokens", Reason.MODEL_DOES_NOT_FIT, message)


def no_table(service: LLMService, accelerator: Accelerator, shape: Model | None, path: str) -> Obstacle:
    """A simulated engine needs a table: names the models that this accelerator has, or the accelerators with any."""
    uri = service.spec.model.uri
    models = sorted({m for name, m, _ in available() if name in (accelerator.table, roofline_name(accelerator))})
    if models and shape is None:
        message = f"no step-time table for {uri} on {accelerator.name}; there are: {', '.join(models)}"
        return Obstacle("spec.model.uri", Reason.UNKNOWN_MODEL, message)
    if models and shape is not None:
        weights = f"{shape.weight_bytes / GIB:.0f} GiB of weights"
        message = f"{uri}: {weights} leave no room for KV on a node of {accelerator.name}; take a larger accelerator"
        return Obstacle(f"{path}.accelerator", Reason.MODEL_DOES_NOT_FIT, message)
    having = sorted({name for name, _, _ in available() if name in ACCELERATORS})
    message = f"no step-time tables for accelerator {accelerator.name}; there are some for: {', '.join(having)}"
    return Obstacle(f"{path}.accelerator", Reason.UNKNOWN_ACCELERATOR, message)


def check_pool(
    service: LLMService,
    pool: PoolSpec,
    path: str,
    accelerator: Accelerator,
    parallelism: Parallelism,
    tables: Tables,
) -> Iterator[Obstacle]:
    """What keeps a replica of this parallelism from running or from meeting a class even when idle."""
    tensor, pipeline = parallelism.tensor, parallelism.pipeline
    at = f"{path}.parallelism"
    if parallelism.gpus > accelerator.gpus_per_node:
        message = (
            f"tensor {tensor} × pipeline {pipeline} = {parallelism.gpus} GPUs, and a node with {accelerator.name} has "
            f"{accelerator.gpus_per_node}; lower them"
        )
        yield Obstacle(at, Reason.PARALLELISM_TOO_LARGE, message)
        return
    simulated = service.spec.engine.runtime is Runtime.SIMULATED
    if simulated and pipeline > 1:
        message = "simulated engines have no pipeline parallelism; set pipeline to 1 and use tensor"
        yield Obstacle(f"{at}.pipeline", Reason.PARALLELISM_TOO_LARGE, message)
        return
    uri = service.spec.model.uri
    shape = tables.model(uri)
    memory = accelerator.memory_gib * parallelism.gpus
    if shape and shape.weight_bytes >= memory * GIB:
        message = (
            f"{shape.name} has {shape.weight_bytes / GIB:.0f} GiB of weights, and {parallelism.gpus} × "
            f"{accelerator.name} {memory} GiB; raise tensor"
        )
        yield Obstacle(at, Reason.MODEL_DOES_NOT_FIT, message)
        return
    if shape and shape.heads % tensor and not simulated:
        fit = ", ".join(str(t) for t in range(1, accelerator.gpus_per_node + 1) if shape.heads % t == 0)
        message = f"{shape.name} has {shape.heads} attention heads, which tensor {tensor} does not divide; {fit} do"
        yield Obstacle(f"{at}.tensor", Reason.PARALLELISM_TOO_LARGE, message)
        return
    table = tables.find(accelerator, uri, tensor)
    if simulated and table is None:
        there_are = ", ".join(f"tensor {t}" for t in tables.tensors(accelerator, uri))
        message = (
            f"no step-time table for this model on {accelerator.name} with tensor {tensor}; there are: {there_are}"
        )
        yield Obstacle(f"{at}.tensor", Reason.UNKNOWN_MODEL, message)
        return
    if table is not None and pipeline == 1:
        yield from _check_kv(service, at, accelerator, table)
        if simulated or not is_roofline(table.name):
            yield from check_limits(service, pool, table)


def check_limits(service: LLMService, pool: PoolSpec, table: StepTable) -> Iterator[Obstacle]:
    """Classes that not even a request alone meets."""
    for i in range(len(service.spec.slo.classes)):
        yield from _check_class(service, pool, i, table)


def _check_kv(service: LLMService, at: str, accelerator: Accelerator, table: StepTable) -> Iterator[Obstacle]:
    context = service.spec.model.max_context_tokens
    if context > table.kv_tokens:
        message = (
            f"maxContextTokens {context} is more than the {table.kv_tokens} tokens of KV that {table.tensor} × "
            f"{accelerator.name} hold beside the weights; lower it or raise tensor"
        )
        yield Obstacle(at, Reason.MODEL_DOES_NOT_FIT, message)


def _check_class(service: LLMService, pool: PoolSpec, index: int, table: StepTable) -> Iterator[Obstacle]:
    """Limits below what a request alone on an idle replica takes.

    The workload's mean prompt counts when there is one class; with several it is nobody's in particular, and one token
    is the prompt that none can beat.
    """
    spec = service.spec
    workload = spec.workload if len(spec.slo.classes) == 1 else None
    prompt = workload.prompt_tokens.mean if workload else 1
    text = f"the mean prompt of {prompt} tokens" if workload else "a prompt of one token"
    slo = spec.slo.classes[index].to_slo()
    field = f"spec.slo.classes[{index}]"
    if pool.role is not Role.DECODE and (lone := lone_prefill_s(table, prompt)) > slo.ttft_limit_s(prompt):
        message = _beyond(slo.name, "TTFT", slo.ttft_limit_s(prompt), f"prefill of {text}", lone, pool, table)
        yield Obstacle(f"{field}.ttftMs", Reason.OBJECTIVE_UNATTAINABLE, message)
    if pool.role is not Role.PREFILL and (lone := table.seconds4(0, 0.0, 1, prompt)) > slo.tpot_s:
        message = _beyond(slo.name, "TPOT", slo.tpot_s, f"decode step after {text}", lone, pool, table)
        yield Obstacle(f"{field}.tpotMs", Reason.OBJECTIVE_UNATTAINABLE, message)


def lone_prefill_s(table: StepTable, prompt_tokens: int) -> float:
    """Seconds of one whole prompt in a step of its own."""
    return table.seconds4(prompt_tokens, prompt_tokens**2 / 2, 0, 0)


def _beyond(name: str, objective: str, limit_s: float, what: str, lone_s: float, pool: PoolSpec, t: StepTable) -> str:
    return (
        f"class {name}: {objective} {limit_s * 1e3:.4g} ms is below a lone {what}, {lone_s * 1e3:.4g} ms on pool "
        f"{pool.name} ({t.tensor} × {t.gpu}); raise it, raise tensor or take a faster accelerator"
    )


def warn_pool(service: LLMService, pool: PoolSpec, tensor: int, table: StepTable | None) -> Iterator[str]:
    """What does not keep the pool from running but should be known; `table` is None where there is none."""
    uri = service.spec.model.uri
    if pool.replicas == 0:
        yield f"pool {pool.name} is fixed at 0 replicas"
    if table is None:
        yield f"pool {pool.name}: no step-time table for {uri} on {tensor} × {pool.accelerator}, limits unchecked"
        return
    if is_roofline(table.name):
        median, p90 = (100 * largest_error(table.error, quantile) for quantile in ("median", "p90"))
        yield (
            f"pool {pool.name}: step times of {table.model} on {tensor} × {pool.accelerator} are a roofline's, not "
            f"measured (error up to {median:.0f} % median, {p90:.0f} % p90)"
        )
        if pool.parallelism is None or pool.parallelism.pipeline == 1:
            yield from (obstacle.message for obstacle in check_limits(service, pool, table))
    workload = service.spec.workload
    if workload is None or pool.role is Role.DECODE:
        return
    lone_s = lone_prefill_s(table, workload.prompt_tokens.p90)
    for slo in service.slo_classes().values():
        if lone_s > slo.ttft_limit_s(workload.prompt_tokens.p90):
            yield _slow_p90(slo, workload.prompt_tokens.p90, lone_s, pool.name)


def _slow_p90(slo: SLOClass, prompt_tokens: int, lone_s: float, pool: str) -> str:
    return (
        f"class {slo.name}: the p90 prompt of {prompt_tokens} tokens alone takes {lone_s * 1e3:.4g} ms on pool {pool}, "
        f"above its TTFT of {slo.ttft_limit_s(prompt_tokens) * 1e3:.4g} ms: a tenth of the requests will miss it"
    )
