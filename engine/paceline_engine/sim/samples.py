"""The counters and gauges of one simulated engine at the moment of a scrape, under vLLM's names and DESIGN §9's.

Read from the replica and its fit; nothing is kept here. The step-time scale is that of the table that the labels name:
a prior that was scaled on purpose is part of it. Gauges and counters only; the histograms are in `metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable

from paceline_engine.sim.engine import Engine
from paceline_engine.sim.metrics import Sample, labels
from paceline_engine.step_time import Regime
from paceline_engine.work import CONTEXT_TOKENS, PACE, PACED_REQUESTS, QUEUED_TOKENS, work_of


def samples(engine: Engine) -> Iterable[Sample]:
    """Samples of one name together."""
    yield from _vllm(engine)
    yield from _step_time(engine)
    yield from _paceline(engine)
    yield from _work(engine)


def _vllm(engine: Engine) -> Iterable[Sample]:
    counters, metrics, kv = engine.replica.counters, engine.metrics, engine.replica.view.kv
    yield "gauge", "vllm:num_requests_running", "", engine.running
    yield "gauge", "vllm:num_requests_waiting", "", engine.waiting
    yield "gauge", "vllm:kv_cache_usage_perc", "", kv.usage
    yield "counter", "vllm:prompt_tokens", "", counters.prompt_tokens
    yield "counter", "vllm:generation_tokens", "", counters.generation_tokens
    yield "counter", "vllm:prefix_cache_queries", "", counters.prefix_queried_tokens
    yield "counter", "vllm:prefix_cache_hits", "", counters.prefix_hit_tokens
    yield "counter", "vllm:num_preemptions", "", counters.preemptions
    for reason, count in metrics.success.items():
        yield "counter", "vllm:request_success", f'finished_reason="{reason}"', count
    config = {"block_size": kv.block_size, "num_gpu_blocks": kv.capacity}
    yield "gauge", "vllm:cache_config_info", labels(config), 1


def _step_time(engine: Engine) -> Iterable[Sample]:
    options, model = engine.options, engine.replica.model
    table = labels({"table": options.prior.name, "model": options.prior.model, "tensor": options.prior.tensor})
    own = {regime: f'regime="{regime}",{table}' for regime in Regime}
    for regime in Regime:
        yield "gauge", "paceline_step_time_scale", own[regime], model.scale(regime) * options.prior_scale
    for regime in Regime:
        yield "gauge", "paceline_step_time_offset_seconds", f'regime="{regime}"', model.offset_s(regime)
    for regime in Regime:
        yield "gauge", "paceline_step_time_error_ratio", f'regime="{regime}"', model.error_ratio(regime)
    for regime in Regime:
        yield "gauge", "paceline_step_time_trusted", f'regime="{regime}"', int(model.trusted(regime))


def _paceline(engine: Engine) -> Iterable[Sample]:
    options, metrics, replica = engine.options, engine.metrics, engine.replica
    counters = replica.counters
    info = {
        "llmservice": options.service,
        "llmservice_namespace": options.namespace,
        "pool": options.pool,
        "role": options.role,
        "revision": options.revision,
    }
    yield "gauge", "paceline_engine_info", labels(info), 1
    yield "gauge", "paceline_engine_start_seconds", "", engine.start_s
    yield "gauge", "paceline_token_budget_tokens", "", replica.budget_tokens or replica.view.limits.max_batched_tokens
    yield "counter", "paceline_stalls", "", counters.stalls
    yield "counter", "paceline_engine_misses", 'cause="ttft"', counters.missed_ttft
    yield "counter", "paceline_engine_misses", 'cause="tpot"', counters.missed_tpot
    yield "gauge", "paceline_kv_parked_requests", "", len(replica.parked)
    yield "counter", "paceline_kv_leases_expired", "", counters.leases_expired
    for cause, count in metrics.kv_failures.items():
        yield "counter", "paceline_kv_transfer_failures", f'cause="{cause}"', count
    yield "counter", "paceline_engine_legs_received", "", sum(metrics.legs.values()) + engine.in_progress
    for result, count in metrics.legs.items():
        yield "counter", "paceline_engine_legs", f'result="{result}"', count
    yield "gauge", "paceline_engine_legs_in_progress", "", engine.in_progress


def _work(engine: Engine) -> Iterable[Sample]:
    work = work_of(engine.replica.residents)
    yield "gauge", QUEUED_TOKENS, "", work.queued_tokens
    yield "gauge", CONTEXT_TOKENS, "", work.context
    for tpot_s, count in work.paces.items():
        yield "gauge", PACED_REQUESTS, labels({PACE: tpot_s}), count
