"""The scheduler's metrics of work in hand: what is there, and zero for what no longer is."""

from __future__ import annotations

from paceline_engine.policies.step import Limits
from paceline_engine.vllm.metrics import SchedulerMetrics
from paceline_engine.vllm.settings import Settings
from paceline_engine.work import Work
from prometheus_client import CollectorRegistry

OWN = {"model_name": "m", "engine": "0"}


def make() -> tuple[SchedulerMetrics, CollectorRegistry]:
    registry = CollectorRegistry()
    return SchedulerMetrics(Settings(service="s"), Limits(), OWN, registry), registry


def test_a_new_engine_says_that_it_has_nothing_to_do() -> None:
    _, registry = make()
    for name in ("paceline_queued_prompt_tokens", "paceline_context_tokens", "paceline_kv_parked_requests"):
        assert registry.get_sample_value(name, OWN) == 0


def test_work_is_told_by_pace_and_a_pace_that_is_gone_is_zero() -> None:
    metrics, registry = make()
    metrics.in_hand(Work(300, 900, {0.03: 2, 0.25: 1}), 4)

    def paced(tpot: str) -> float | None:
        return registry.get_sample_value("paceline_paced_requests", {**OWN, "tpot_seconds": tpot})

    assert (paced("0.03"), paced("0.25"), paced("0.1")) == (2, 1, None)
    assert registry.get_sample_value("paceline_kv_parked_requests", OWN) == 4
    metrics.in_hand(Work(0, 100, {0.25: 1}), 0)
    assert (paced("0.03"), paced("0.25")) == (0, 1)


def test_kv_that_was_lost_is_counted() -> None:
    metrics, registry = make()
    metrics.on_lost_kv(0)
    metrics.on_lost_kv(2)
    assert registry.get_sample_value("paceline_kv_transfer_failures_total", {**OWN, "cause": "unread"}) == 2
