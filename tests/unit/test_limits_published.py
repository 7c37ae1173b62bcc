"""The limits that a router publishes are those that a client judges by: nothing of a class is lost between them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.slo import SLOClass
from paceline_planner.fleet import parse_fleet
from paceline_router.gauges import StateGauges
from prometheus_client import CollectorRegistry, generate_latest


def published(*slos: SLOClass) -> str:
    """The router's page."""
    shell = SimpleNamespace(
        config=SimpleNamespace(service="chat", namespace="llm"),
        classes={slo.name: slo for slo in slos},
        ledger=SimpleNamespace(replicas={}),
        jobs=[],
        clock=SimpleNamespace(scale=1.0),
    )
    fleet = SimpleNamespace(simulated=True, lateness_p99_s=None, step_p50_s=None)
    registry = CollectorRegistry()
    registry.register(StateGauges(cast(Any, shell), cast(Any, fleet)))
    return generate_latest(registry).decode()


seconds = st.floats(0.001, 100.0)


@given(seconds, seconds, seconds, st.floats(0.0, 10.0), st.integers(1, 100_000))
def test_a_client_judges_by_the_very_limits_of_the_router(
    ttft_s: float, tpot_s: float, stall_s: float, per_1k_s: float, prompt_tokens: int
) -> None:
    slo = SLOClass("a", ttft_s, tpot_s, 0.95, stall_s, per_1k_s)
    read = parse_fleet(published(slo)).slos["a"]
    assert read.ttft_limit_s(prompt_tokens) == pytest.approx(slo.ttft_limit_s(prompt_tokens))
    assert (read.tpot_s, read.stall_s, read.target_ratio) == (tpot_s, stall_s, 0.95)


def test_a_limit_that_does_not_grow_is_not_published_as_one_that_does() -> None:
    assert "per_1k" not in published(SLOClass("a", 0.4, 0.04))
