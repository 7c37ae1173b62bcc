"""The client of Prometheus: what it sends, what it makes of answers, and that errors say what to do and no secret."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from paceline_router.kubeconfig import Bearer
from paceline_router.scaling.prometheus import Malformed, Prometheus, PrometheusError, Refused, Unreachable
from paceline_router.scaling.queries import Row

URL = "http://someone:hunter2@prom:9090/prefix/"
Answer = Callable[[httpx.Request], httpx.Response]


def ask(answer: Answer, query: str = "up", auth: httpx.Auth | None = None) -> tuple[Row, ...]:
    async def run() -> tuple[Row, ...]:
        async with Prometheus(httpx.AsyncClient(transport=httpx.MockTransport(answer), auth=auth), URL) as prometheus:
            return await prometheus.vector(query, 12.5)

    return asyncio.run(run())


def answering(result: Any, kind: str = "vector", status: str = "success") -> Answer:
    return lambda _: httpx.Response(200, json={"status": status, "data": {"resultType": kind, "result": result}})


def test_it_posts_the_query_at_its_moment_below_the_urls_path() -> None:
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return answering([])(request)

    assert ask(answer, "sum(up)") == ()
    assert (sent[0].method, sent[0].url.path) == ("POST", "/prefix/api/v1/query")
    assert parse_qs(sent[0].content.decode()) == {"query": ["sum(up)"], "time": ["12.500"], "timeout": ["10s"]}


def test_numbers_are_read_as_prometheus_writes_them() -> None:
    values = ["1.5", "+Inf", "NaN", "-0"]
    rows = ask(answering([{"metric": {"pod": str(i)}, "value": [0, v]} for i, v in enumerate(values)]))
    assert [row.labels["pod"] for row in rows] == ["0", "1", "2", "3"]
    assert [row.value for row in rows[:2]] == [1.5, math.inf]
    assert math.isnan(rows[2].value)


def test_a_scalar_is_read() -> None:
    async def run() -> float:
        transport = httpx.MockTransport(answering([12.5, "12.5"], "scalar"))
        return await Prometheus(httpx.AsyncClient(transport=transport), URL).scalar("time()")

    assert asyncio.run(run()) == 12.5


def down(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("All connection attempts failed")


def slow(_: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("")


FAULTS = [
    pytest.param(down, Unreachable, "prom:9090: ConnectError", id="nobody listens"),
    pytest.param(slow, Unreachable, "ReadTimeout", id="no answer in time"),
    pytest.param(lambda _: httpx.Response(503, text="starting"), Unreachable, "503", id="it starts"),
    pytest.param(lambda _: httpx.Response(401), Refused, "prometheus.tokenSecret", id="401"),
    pytest.param(lambda _: httpx.Response(403), Refused, "403", id="403"),
    pytest.param(lambda _: httpx.Response(200, text="<html>"), Malformed, "no answer of Prometheus", id="another site"),
    pytest.param(lambda _: httpx.Response(404, text="not found"), Malformed, "no answer", id="another path"),
    pytest.param(
        lambda _: httpx.Response(422, json={"status": "error", "errorType": "execution", "error": "too many samples"}),
        Malformed,
        "too many samples",
        id="it cannot evaluate the query",
    ),
    pytest.param(answering([], "matrix"), Malformed, "a matrix", id="a matrix"),
    pytest.param(answering([1, "1"], "scalar"), Malformed, "no vector", id="a scalar for a vector"),
    pytest.param(answering([{"metric": {}, "value": [0, "x"]}]), Malformed, "no answer", id="a value that is none"),
    pytest.param(answering([{"metric": {}}]), Malformed, "no answer", id="no value"),
    pytest.param(lambda _: httpx.Response(200, json=[]), Malformed, "no answer", id="a list"),
]


@pytest.mark.parametrize(("answer", "kind", "says"), FAULTS)
def test_an_error_says_which_when(answer: Answer, kind: type[PrometheusError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        ask(answer)
    assert "hunter2" not in str(caught.value)


def test_the_token_is_sent_and_a_file_that_is_gone_is_an_error_without_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    sent: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["authorization"])
        return httpx.Response(401)

    with pytest.raises(Refused) as caught:
        ask(answer, auth=Bearer(lambda: file.read_text().strip()))
    assert sent == ["Bearer s3cret"]
    assert "s3cret" not in str(caught.value)
    file.unlink()
    with pytest.raises(Unreachable, match="cannot be read: No such file"):
        ask(answer, auth=Bearer(lambda: file.read_text().strip()))


@pytest.mark.parametrize("url", ["prom:9090", "ftp://prom", "http://"])
def test_a_url_that_is_none_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        Prometheus.connect(url)
