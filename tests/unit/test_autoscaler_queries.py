"""What the autoscaler's queries mean, by promtool's own evaluation over samples that a test writes down.

Two scrapes a window are not enough for a rate, so each case runs for ten minutes, a sample each 15 s.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from paceline_router.scaling.queries import Signal, queries, report_s, window_s

CHAT = {"namespace": "llm", "llmservice_namespace": "llm", "llmservice": "chat"}
ROUTER = {**CHAT, "job": "llm/paceline", "instance": "10.0.0.1:8000", "pod": "router-0"}
OTHER = {**ROUTER, "instance": "10.0.0.2:8000", "pod": "router-1"}
INTERACTIVE = {**CHAT, "slo_class": "interactive"}


def engine(number: int) -> dict[str, str]:
    """What Prometheus attaches, and what every series of an engine bears."""
    target = {"namespace": "llm", "job": "llm/paceline", "instance": f"10.0.1.{number}:8000", "pod": f"engine-{number}"}
    return {**target, "engine": "0", "model_name": "m"}


def info(number: int, pool: str = "mixed", service: str = "chat") -> tuple[str, str]:
    owner = {"llmservice": service, "llmservice_namespace": "llm", "pool": pool, "role": pool, "revision": "r1"}
    return series("paceline_engine_info", engine(number) | owner), "1x40"


def series(name: str, labels: Mapping[str, str], **more: str) -> str:
    return f"{name}{{{','.join(f'{k}={json.dumps(v)}' for k, v in {**labels, **more}.items())}}}"


@dataclass(frozen=True)
class Case:
    """`given`: series and its values, one each 15 s; `found`: rows after ten minutes."""

    sentence: str
    signal: Signal
    given: Mapping[str, str]
    found: Mapping[str, float]


def scale(number: int, regime: str, table: str = "a100") -> str:
    labels = {"regime": regime, "table": table, "model": "m", "tensor": "1"}
    return series("paceline_step_time_scale", engine(number), **labels)


def trusted(number: int, regime: str) -> str:
    return series("paceline_step_time_trusted", engine(number), regime=regime)


def received(router: Mapping[str, str]) -> str:
    return series("paceline_requests_received_total", router, slo_class="interactive")


def prompts(name: str, **more: str) -> str:
    return series(f"paceline_prompt_tokens_{name}", ROUTER, slo_class="interactive", **more)


MIXED = {**CHAT, "pool": "mixed"}
CASES = [
    Case(
        "arrivals are of all routers, without the rejected",
        Signal.ARRIVALS,
        {
            received(ROUTER): "0+30x40",
            received(OTHER): "0+15x40",
            series("paceline_requests_total", ROUTER, slo_class="interactive", outcome="rejected"): "0+15x40",
            series("paceline_requests_total", ROUTER, slo_class="interactive", outcome="completed"): "0+15x40",
        },
        {series("", INTERACTIVE): 2.0},
    ),
    Case(
        "what a pod of another namespace says comes in a row of its own",
        Signal.ARRIVALS,
        {
            received({**ROUTER, "namespace": "elsewhere"}): "0+15x40",
            series(
                "paceline_requests_total",
                {**ROUTER, "namespace": "elsewhere"},
                slo_class="interactive",
                outcome="rejected",
            ): "0x40",
        },
        {series("", {**INTERACTIVE, "namespace": "elsewhere"}): 1.0},
    ),
    Case(
        "lengths are those of the last minutes, where ten or more came",
        Signal.PROMPT_BUCKETS,
        {
            prompts("bucket", le="64.0"): "100x40",
            prompts("bucket", le="+Inf"): "100+1x40",
            prompts("count"): "100+1x40",
        },
        {series("", INTERACTIVE, le="64.0"): 0.0, series("", INTERACTIVE, le="+Inf"): 20.0},
    ),
    Case(
        "lengths are those of all the time, where fewer came",
        Signal.PROMPT_BUCKETS,
        {prompts("bucket", le="64.0"): "90x40", prompts("bucket", le="+Inf"): "100x40", prompts("count"): "100x40"},
        {series("", INTERACTIVE, le="64.0"): 90.0, series("", INTERACTIVE, le="+Inf"): 100.0},
    ),
    Case(
        "so are their sums",
        Signal.PROMPT_SUM,
        {prompts("sum"): "5000x40", prompts("count"): "100x40"},
        {series("", INTERACTIVE): 5000.0},
    ),
    Case(
        "nothing observed has no latency, rather than one that is no number",
        Signal.TTFT_P90,
        {series("paceline_ttft_seconds_bucket", ROUTER, slo_class="interactive", le="+Inf"): "7x40"},
        {},
    ),
    Case(
        "ages are of the last sample",
        Signal.ROUTER_AGES,
        {series("paceline_fleet_info", ROUTER): "1x38 _ _", series("paceline_fleet_info", OTHER): "1x40"},
        {
            series("", CHAT, pod="router-0", instance="10.0.0.1:8000"): 30.0,
            series("", CHAT, pod="router-1", instance="10.0.0.2:8000"): 0.0,
        },
    ),
    Case(
        "a target that says it is two engines counts as one, and costs the others nothing",
        Signal.KV,
        {
            **dict([info(1), info(2), info(2, service="other")]),
            series("vllm:cache_config_info", engine(1), block_size="16", num_gpu_blocks="100"): "1x40",
        },
        {series("", CHAT, pool="mixed", block_size="16", num_gpu_blocks="100"): 1.0},
    ),
    Case(
        "a router that is gone from Prometheus has no age",
        Signal.ROUTER_AGES,
        {series("paceline_fleet_info", ROUTER): "1x38 stale"},
        {},
    ),
    Case(
        "coverage is that of the router seen longest",
        Signal.COVERAGE,
        {series("paceline_fleet_info", ROUTER): "1x40", series("paceline_fleet_info", OTHER): "_x39 1"},
        {series("", CHAT): 5.0},
    ),
    Case(
        "the fit of a pool is the median of those that are trusted",
        Signal.SCALES,
        {
            **dict(info(n) for n in range(4)),
            **{scale(n, "mixed"): f"{value}x40" for n, value in enumerate((1.1, 1.2, 1.3, 9.9))},
            **{trusted(n, "mixed"): "1x40" for n in range(3)},
            trusted(3, "mixed"): "0x40",
            scale(0, "decode"): "5x40",
            trusted(0, "decode"): "0x40",
        },
        {series("", MIXED, regime="mixed"): 1.2},
    ),
    Case(
        "tables are told also by those that are not trusted yet",
        Signal.TABLES,
        {**dict([info(0)]), scale(0, "mixed"): "1x40", scale(0, "decode"): "1x40"},
        {series("", MIXED, table="a100", model="m", tensor="1"): 2.0},
    ),
    Case(
        "requests are those that run and wait, by pod, of the service that the engine belongs to",
        Signal.RUNNING,
        {
            **dict([info(0), info(1, "decode")]),
            series("vllm:num_requests_running", engine(0)): "3x40",
            series("vllm:num_requests_waiting", engine(0)): "2x40",
            series("vllm:num_requests_running", engine(1)): "1x40",
            series("vllm:num_requests_waiting", engine(1)): "0x40",
            series("vllm:num_requests_running", engine(2)): "9x40",
            series("vllm:num_requests_waiting", engine(2)): "9x40",
        },
        {series("", MIXED, pod="engine-0"): 5.0, series("", {**CHAT, "pool": "decode"}, pod="engine-1"): 1.0},
    ),
    Case(
        "an address that another pod had a moment ago confuses nothing",
        Signal.KV,
        {
            **dict([info(0)]),
            series("vllm:cache_config_info", engine(0), block_size="16", num_gpu_blocks="100"): "1x40",
            series("paceline_engine_info", {**engine(0), "pod": "engine-9", **CHAT, "pool": "old"}): "1x40",
        },
        {series("", MIXED, block_size="16", num_gpu_blocks="100"): 1.0},
    ),
]


@pytest.mark.requires("prometheus")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)
def test_a_query_says_that(case: Case, tmp_path: Path) -> None:
    found = shutil.which("promtool")
    assert found
    expected = [{"labels": labels, "value": value} for labels, value in case.found.items()]
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in case.given.items()],
        "promql_expr_test": [{"expr": queries(15.0)[case.signal], "eval_time": "10m", "exp_samples": expected}],
    }
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps({"tests": [test]}))
    done = subprocess.run([found, "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("scrape_s", "window", "report"),
    [(1.0, 30.0, 300.0), (7.5, 30.0, 300.0), (15.0, 60.0, 300.0), (60.0, 240.0, 300.0), (120.0, 480.0, 480.0)],
)
def test_a_window_is_half_a_minute_and_four_scrapes_at_least(scrape_s: float, window: float, report: float) -> None:
    assert (window_s(scrape_s), report_s(scrape_s)) == (window, report)
    assert f"[{window:.0f}s]" in queries(scrape_s)[Signal.ARRIVALS]


def test_a_window_of_no_whole_seconds_is_written_in_milliseconds() -> None:
    assert "[30500ms]" in queries(7.625)[Signal.ARRIVALS]
