"""The autoscaler without figures to believe in: whatever is wrong, sizes stay, and the condition says why."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from autoscaler_rig import CHAT, Rig, down, rig
from paceline_router.scaling.queries import Signal
from prometheus_client import CollectorRegistry
from prometheus_double import bend, healthy


def refusing(code: int) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(code)


def dated(r: Rig) -> None:
    r.prometheus.rows["chat"] = bend(r.prometheus.rows["chat"], Signal.ROUTER_AGES, 7.0)


def emptied(r: Rig) -> None:
    r.prometheus.rows["chat"] = {signal: [] for signal in Signal}


def not_a_number(r: Rig) -> None:
    r.prometheus.rows["chat"] = bend(r.prometheus.rows["chat"], Signal.ARRIVALS, float("nan"))


def contradicting(r: Rig) -> None:
    r.prometheus.rows["chat"] = healthy(pools={"mixed": 1})


def fault(answer: Callable[[httpx.Request], httpx.Response]) -> Callable[[Rig], None]:
    def bring(r: Rig) -> None:
        r.prometheus.fault = answer

    return bring


def skewed(r: Rig) -> None:
    r.prometheus.skew_s = -60.0


FAULTS = [
    pytest.param(fault(down), "MetricsUnreachable", "ConnectError", id="Prometheus is down"),
    pytest.param(fault(refusing(401)), "MetricsUnreachable", "tokenSecret", id="it refuses us with 401"),
    pytest.param(fault(refusing(503)), "MetricsUnreachable", "503", id="it starts"),
    pytest.param(fault(lambda _: httpx.Response(200, text="hi")), "MetricsInvalid", "no answer of", id="it is another"),
    pytest.param(emptied, "MetricsStale", "sees no router", id="it is cut off from routers and engines"),
    pytest.param(dated, "MetricsStale", "younger than 6 s", id="its samples are old"),
    pytest.param(not_a_number, "MetricsInvalid", "arrivals of interactive", id="a figure is no number"),
    pytest.param(contradicting, "MetricsInvalid", "2 of 3 are missing", id="it sees one engine of three"),
    pytest.param(skewed, "MetricsInvalid", "NTP", id="its clock is a minute behind"),
]


@pytest.mark.parametrize(("bring", "reason", "says"), FAULTS)
def test_no_size_changes_and_the_condition_says_so_when(bring: Callable[[Rig], None], reason: str, says: str) -> None:
    async def act(r: Rig) -> None:
        r.add_service(size=3)
        await r.tick()
        assert r.condition("MetricsAvailable")[0] == "True"
        rows = r.prometheus.rows["chat"]
        r.law.wanted = {"mixed": 1}
        bring(r)
        for _ in range(5):
            assert all(path == f"{CHAT}/status" for _, path in await r.tick())
        assert (r.size(), r.drain_first()) == (3, None)
        status, found, message = r.condition("MetricsAvailable")
        assert (status, found) == ("False", reason)
        assert says in message
        assert r.condition("ScalingActive")[:2] == ("False", reason)
        assert r.law.blinds == 5
        assert 'paceline_autoscaler_metrics_available{llmservice="chat",llmservice_namespace="llm"} 0.0' in r.metrics()
        r.prometheus.fault, r.prometheus.skew_s, r.prometheus.rows["chat"] = None, 0.0, rows
        await r.tick()
        assert r.condition("MetricsAvailable")[0] == "True"
        assert r.size() == 1

    rig(act)


def test_without_a_prometheus_it_says_what_to_set() -> None:
    async def act(r: Rig) -> None:
        r.add_service(size=3)
        r.registry = CollectorRegistry()
        r.loop = r.make_loop(None)
        await r.tick()
        assert r.condition("MetricsAvailable")[:2] == ("False", "MetricsUnreachable")
        assert "prometheus.url" in r.condition("MetricsAvailable")[2]
        assert r.prometheus.asked == []
        assert await r.tick() == []

    rig(act)


def test_a_clock_that_jumps_restarts_what_was_seen() -> None:
    async def act(r: Rig) -> None:
        r.add_service()
        await r.tick()
        await r.tick()
        assert r.law.restarts == 0
        await r.tick(jump_s=-6.0)
        assert r.law.restarts == 1
        await r.tick(jump_s=4.0)
        assert r.law.restarts == 1

    rig(act)
