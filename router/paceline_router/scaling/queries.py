"""What the autoscaler asks Prometheus: one instant query for each signal, over all services at once (DESIGN §9).

Rates and verdicts are over `window_s`, lengths and what is reported over `report_s`. Every row carries `namespace`,
where Prometheus attaches it: it must be the one that the metric itself names, or else anyone could speak for another's
service. Engines say whose they are in paceline_engine_info only; the rest of what they say is joined to it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from paceline_router.autoscale.evidence import LONGEST_S

LEAST_WINDOW_S, INTERVALS = 30.0, 4  # DESIGN §9: at least 30 s and four scrape intervals
MEASURED_LENGTHS = 10  # requests within `report_s`; with fewer, all that the routers have counted say more


class Signal(StrEnum):
    """One query."""

    ARRIVALS = "arrivals"  # by class, per second, without rejected ones
    PROMPT_BUCKETS = "prompt_buckets"  # by class and le
    PROMPT_SUM = "prompt_sum"  # by class
    OUTPUT_BUCKETS = "output_buckets"  # of completed requests
    OUTPUT_SUM = "output_sum"
    VERDICTS = "verdicts"  # by class and result, over the window
    REPORTED_VERDICTS = "reported_verdicts"  # over `report_s`
    TTFT_P90 = "ttft_p90"  # by class, seconds, over `report_s`
    TPOT_P90 = "tpot_p90"
    ROUTER_AGES = "router_ages"  # by pod: seconds since the scrape of its last sample
    ENGINE_AGES = "engine_ages"  # by pool and pod
    COVERAGE = "coverage"  # samples of the window, of the router that has most
    TABLES = "tables"  # by pool, table, model, tensor: regimes that use it
    SCALES = "scales"  # by pool and regime: median over the engines whose fit is trusted
    OFFSETS = "offsets"
    KV = "kv"  # by pool, block_size, num_gpu_blocks: engines
    RUNNING = "running"  # by pool and pod: requests on the engine


CLOCK = "time()"


@dataclass(frozen=True, slots=True)
class Row:
    """One element of an answer. `value` may be NaN or infinite."""

    labels: Mapping[str, str]
    value: float


_SERVICE = "namespace, llmservice_namespace, llmservice"
_TARGET = "job, namespace, pod, instance"
_INFO = f"max by ({_TARGET}, llmservice_namespace, llmservice, pool) (paceline_engine_info)"
_ENGINES = f"topk by ({_TARGET}) (1, {_INFO})"  # a second one of a target would fail the query for everybody
_JOIN = f"* on ({_TARGET}) group_left (llmservice_namespace, llmservice, pool) {_ENGINES}"
_TRUSTED = f"and on ({_TARGET}, engine, regime) (paceline_step_time_trusted == 1)"


def window_s(scrape_interval_s: float) -> float:
    return max(LEAST_WINDOW_S, INTERVALS * scrape_interval_s)


def report_s(scrape_interval_s: float) -> float:
    return max(LONGEST_S, window_s(scrape_interval_s))


def queries(scrape_interval_s: float) -> dict[Signal, str]:
    """PromQL by signal."""
    window, report = _duration(window_s(scrape_interval_s)), _duration(report_s(scrape_interval_s))
    by_class = f"sum by ({_SERVICE}, slo_class)"
    by_result = f"sum by ({_SERVICE}, slo_class, result)"
    return {
        Signal.ARRIVALS: f"{by_class} (rate(paceline_requests_received_total[{window}]))"
        f' - {by_class} (rate(paceline_requests_total{{outcome="rejected"}}[{window}]))',
        **_lengths(report),
        Signal.VERDICTS: f"{by_result} (increase(paceline_slo_decided_total[{window}]))",
        Signal.REPORTED_VERDICTS: f"{by_result} (increase(paceline_slo_decided_total[{report}]))",
        Signal.TTFT_P90: _p90("paceline_ttft_seconds", report),
        Signal.TPOT_P90: _p90("paceline_tpot_seconds", report),
        Signal.ROUTER_AGES: f"min by ({_SERVICE}, pod, instance) (time() - timestamp(paceline_fleet_info))",
        Signal.ENGINE_AGES: f"min by ({_SERVICE}, pool, pod, instance) (time() - timestamp(paceline_engine_info))",
        Signal.COVERAGE: f"max by ({_SERVICE}) (count_over_time(paceline_fleet_info[{window}]))",
        **_engines(),
    }


def _engines() -> dict[Signal, str]:
    pool = f"{_SERVICE}, pool"
    running = "(vllm:num_requests_running + vllm:num_requests_waiting)"
    return {
        Signal.TABLES: f"count by ({pool}, table, model, tensor) (paceline_step_time_scale {_JOIN})",
        Signal.SCALES: f"quantile by ({pool}, regime) (0.5, (paceline_step_time_scale {_TRUSTED}) {_JOIN})",
        Signal.OFFSETS: f"quantile by ({pool}, regime) (0.5, (paceline_step_time_offset_seconds {_TRUSTED}) {_JOIN})",
        Signal.KV: f"count by ({pool}, block_size, num_gpu_blocks) (vllm:cache_config_info {_JOIN})",
        Signal.RUNNING: f"sum by ({pool}, pod) ({running} {_JOIN})",
    }


def _lengths(report: str) -> dict[Signal, str]:
    found = {}
    for buckets, sums, name in (
        (Signal.PROMPT_BUCKETS, Signal.PROMPT_SUM, "paceline_prompt_tokens"),
        (Signal.OUTPUT_BUCKETS, Signal.OUTPUT_SUM, "paceline_output_tokens"),
    ):
        by_class = f"{_SERVICE}, slo_class"
        enough = f"sum by ({by_class}) (increase({name}_count[{report}])) >= {MEASURED_LENGTHS}"
        for signal, by, series in ((buckets, f"{by_class}, le", f"{name}_bucket"), (sums, by_class, f"{name}_sum")):
            recent = f"sum by ({by}) (increase({series}[{report}]))"
            found[signal] = f"({recent} and on ({by_class}) ({enough})) or sum by ({by}) ({series})"
    return found


def _p90(name: str, report: str) -> str:
    """Without a row where nothing was observed."""
    return f"histogram_quantile(0.9, sum by ({_SERVICE}, slo_class, le) (rate({name}_bucket[{report}]))) >= 0"


def _duration(seconds: float) -> str:
    return f"{round(seconds)}s" if seconds == round(seconds) else f"{round(seconds * 1000)}ms"
