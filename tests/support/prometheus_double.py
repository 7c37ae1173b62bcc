"""A Prometheus in memory: rows by signal for services that a test describes, over its HTTP API, with its faults.

`healthy` makes what a service's routers and engines would have said; a test bends it. The double knows the queries of
the autoscaler by their text and evaluates nothing: whether they say what they mean is tested on a real Prometheus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import parse_qs

import httpx
from paceline_api.slo import Verdict
from paceline_router.scaling.queries import CLOCK, Row, Signal, queries

SCRAPE_S = 2.0
Rows = dict[Signal, list[Row]]


def row(value: float, service: str = "chat", **labels: str) -> Row:
    return Row({"namespace": "llm", "llmservice_namespace": "llm", "llmservice": service, **labels}, value)


def histogram(count: float, tokens: float, service: str = "chat", **labels: str) -> list[Row]:
    """`count` requests, all of them just below or at `tokens`."""
    bounds = [float(2**n) for n in range(18)]
    rows = [row(count if le >= tokens else 0.0, service, le=repr(le), **labels) for le in bounds]
    return [*rows, row(count, service, le="+Inf", **labels)]


def healthy(
    service: str = "chat",
    rates: Mapping[str, float] | None = None,
    pools: Mapping[str, int] | None = None,
    routers: int = 1,
    good: float = 0.98,
) -> Rows:
    """Of classes by rate and pools by ready engines, whose pods are SERVICE-POOL-0, -1, …"""
    rates, pools = {"interactive": 4.0} if rates is None else rates, {"mixed": 1} if pools is None else pools
    rows: Rows = {signal: [] for signal in Signal}
    for name, rate in rates.items():
        rows[Signal.ARRIVALS].append(row(rate, service, slo_class=name))
        for signal, seconds in ((Signal.VERDICTS, 30), (Signal.REPORTED_VERDICTS, 300)):
            for verdict, share in ((Verdict.GOOD, good), (Verdict.TTFT, 1 - good)):
                rows[signal].append(row(rate * seconds * share, service, slo_class=name, result=verdict))
        if rate:
            rows[Signal.PROMPT_BUCKETS] += histogram(rate * 300, 1024, service, slo_class=name)
            rows[Signal.PROMPT_SUM].append(row(rate * 300 * 1000, service, slo_class=name))
            rows[Signal.OUTPUT_BUCKETS] += histogram(rate * 300, 256, service, slo_class=name)
            rows[Signal.OUTPUT_SUM].append(row(rate * 300 * 200, service, slo_class=name))
            rows[Signal.TTFT_P90].append(row(0.31, service, slo_class=name))
            rows[Signal.TPOT_P90].append(row(0.033, service, slo_class=name))
    for router in range(routers):
        rows[Signal.ROUTER_AGES].append(row(1.0, service, pod=f"{service}-router-{router}"))
    if routers:
        rows[Signal.COVERAGE].append(row(15, service))
    for pool, ready in pools.items():
        _add_pool(rows, service, pool, ready)
    return rows


def _add_pool(rows: Rows, service: str, pool: str, ready: int) -> None:
    if not ready:
        return
    table = {"table": "a100-sxm-80gb", "model": "llama-3.1-8b", "tensor": "1"}
    rows[Signal.TABLES].append(row(2.0 * ready, service, pool=pool, **table))
    rows[Signal.SCALES].append(row(1.1, service, pool=pool, regime="mixed"))
    rows[Signal.OFFSETS].append(row(0.002, service, pool=pool, regime="mixed"))
    rows[Signal.KV].append(row(ready, service, pool=pool, block_size="16", num_gpu_blocks="27720"))
    for engine in range(ready):
        rows[Signal.ENGINE_AGES].append(row(1.0, service, pool=pool, pod=f"{service}-{pool}-{engine}"))
        rows[Signal.RUNNING].append(row(float(engine), service, pool=pool, pod=f"{service}-{pool}-{engine}"))


def bend(rows: Rows, signal: Signal, value: float) -> Rows:
    """Every row of one signal has another value."""
    return rows | {signal: [replace(one, value=value) for one in rows[signal]]}


class PrometheusDouble:
    """`rows` are what it says of each service; `fault` answers instead of it."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.rows: dict[str, Rows] = {}
        self.fault: Callable[[httpx.Request], httpx.Response] | None = None
        self.skew_s = 0.0
        self.asked: list[str] = []
        self.transport = httpx.MockTransport(self._handle)
        self._now_s = now_s
        self._signals = {query: signal for signal, query in queries(SCRAPE_S).items()}

    def _handle(self, request: httpx.Request) -> httpx.Response:
        form = {key: values[0] for key, values in parse_qs(request.content.decode()).items()}
        self.asked.append(form["query"])
        if self.fault:
            return self.fault(request)
        now_s = self._now_s() + self.skew_s
        if form["query"] == CLOCK:
            return _success("scalar", [now_s, str(now_s)])
        found = [one for rows in self.rows.values() for one in rows[self._signals[form["query"]]]]
        return _success("vector", [{"metric": dict(one.labels), "value": [now_s, str(one.value)]} for one in found])


def _success(kind: str, result: object) -> httpx.Response:
    return httpx.Response(200, json={"status": "success", "data": {"resultType": kind, "result": result}})
