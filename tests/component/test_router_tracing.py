"""What reaches an OTLP collector from a router: a span a request, a span a leg, and nothing that requests wait for."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import paceline_router.tracing
import pytest
from engine_double import Reply
from otlp_collector import Got, OtlpCollector, collector
from paceline_api.config import RouterConfig, TracingConfig
from paceline_engine.http1 import ClientPool
from paceline_router.tracing import FLUSH_S, Tracing, resource
from router_fleet import JSON, Fleet, Listener, ask, fleet, run
from router_processes import Asked, engines, router
from waiting import until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())
UNSAMPLED = (b"traceparent", f"00-{TRACE}-{PARENT}-00".encode())
SECRET = "the-clients-own-words"
ON_CLUSTER = {"kind": "kubernetes", "namespace": "llm", "service": "chat"}
CONFIG = {
    "service": "chat",
    "model": "m",
    "max_context_tokens": 64,
    "default_class": "c",
    "classes": [{"name": "c", "ttft_s": 1, "tpot_s": 1}],
    "discovery": {"kind": "static"},
    "tracing": {"endpoint": "http://127.0.0.1:1"},
}


@asynccontextmanager
async def traced(up: Fleet, url: str, ratio: float = 1.0) -> AsyncIterator[Tracing]:
    """The fleet's router sends its traces there; all of them have been sent when the block ends."""
    tracing = Tracing(up.router.shell.config, TracingConfig(endpoint=url, sample_ratio=ratio))
    up.router.shell.tracer = tracing
    try:
        yield tracing
    finally:
        await until(lambda: not up.router.shell.jobs)
        await tracing.close()


def counted(tracing: Tracing) -> dict[str, int]:
    return {result: count for (result,), count in tracing.counts.spans.values.items() if count}


def check_tree(found: OtlpCollector) -> Got:
    """Every leg is a child of the one request, and lies within it."""
    request = found.server_span
    for leg in found.legs:
        assert (leg.trace_id, leg.parent_id) == (request.trace_id, request.span_id)
        assert request.start_ns <= leg.start_ns <= leg.end_ns <= request.end_ns
    return request


def test_a_request_and_its_leg_by_the_conventions() -> None:
    async def body() -> None:
        async with fleet("mixed0", namespace="llm") as up, collector() as found:
            async with traced(up, found.url):
                before_ns = time.time_ns()
                answer = await up.post("/v1/completions", ask(stream=True), [(b"x-request-id", b"mine-1")])
                assert answer.status == 200
            request, (leg,) = check_tree(found), found.legs
            assert before_ns <= request.start_ns <= request.events["first_token"] <= request.end_ns <= time.time_ns()
            assert (request.name, leg.name, request.parent_id) == ("text_completion m", "whole m", "")
            measured = {name: request.attributes.pop(f"paceline.{name}_seconds") for name in ("ttft", "tpot", "queue")}
            assert all(isinstance(value, float) and 0 <= value < 5 for value in measured.values())
            assert request.attributes.pop("paceline.predicted_ttft_seconds") > 0  # type: ignore[operator]  # a float
            assert request.attributes == {
                "gen_ai.operation.name": "text_completion",
                "gen_ai.provider.name": "vllm",
                "gen_ai.request.model": "m",
                "gen_ai.request.max_tokens": 5,
                "gen_ai.usage.input_tokens": 3,
                "gen_ai.usage.output_tokens": 5,
                "http.request.method": "POST",
                "http.response.status_code": 200,
                "url.path": "/v1/completions",
                "paceline.request_id": "mine-1",
                "paceline.slo_class": "interactive",
                "paceline.outcome": "completed",
                "paceline.slo.result": "good",
                "paceline.simulated": True,
            }
            assert leg.attributes == {
                "gen_ai.operation.name": "text_completion",
                "gen_ai.provider.name": "vllm",
                "gen_ai.request.model": "m",
                "server.address": "127.0.0.1",
                "server.port": up.engines["mixed0"].port,
                "paceline.leg": "whole",
                "paceline.leg.result": "completed",
                "paceline.replica": "mixed0",
                "paceline.role": "mixed",
                "paceline.pool": "p",
            }
            assert not request.failed
            assert not leg.failed
            assert {
                "service.name": "paceline-router",
                "service.namespace": "llm",
                "k8s.namespace.name": "llm",
                "paceline.llmservice": "chat",
            }.items() <= found.resource.items()

    run(body())


def test_two_legs_are_one_trace_and_each_engine_is_told_its_own_leg() -> None:
    async def body() -> None:
        async with fleet("prefill0", "decode0") as up, collector() as found:
            async with traced(up, found.url):
                messages = [{"role": "user", "content": SECRET}]
                await up.post("/v1/chat/completions", {"messages": messages, "max_tokens": 4, "stream": True})
            assert check_tree(found).name == "chat m"
            assert [leg.name for leg in found.legs] == ["prefill m", "fetch m"]
            told = [up.engines[name].asked[0].headers["traceparent"] for name in ("prefill0", "decode0")]
            assert [parent.rpartition("-")[0] for parent in told] == [leg.context for leg in found.legs]
            assert all(int(parent.rpartition("-")[2], 16) & 1 for parent in told)

    run(body())


def test_a_leg_that_failed_says_how_and_the_next_one_is_in_the_same_trace() -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1") as up, collector() as found:
            refused: list[object] = []

            def once(body: dict[str, Any]) -> Reply:
                refused.append(body)
                return Reply(status=503) if len(refused) == 1 else Reply()

            for engine in up.engines.values():
                engine.script = once
            async with traced(up, found.url):
                assert (await up.post("/v1/completions", ask())).status == 200
            assert not check_tree(found).failed
            assert "error.type" not in found.server_span.attributes
            first, second = found.legs
            assert (first.failed, first.attributes["error.type"]) == (True, "refused")
            assert (second.failed, second.attributes["paceline.leg.result"]) == (False, "completed")
            assert first.attributes["paceline.replica"] != second.attributes["paceline.replica"]
            assert first.end_ns <= second.start_ns

    run(body())


def test_a_request_that_failed_is_an_error_without_the_engines_words() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up, collector() as found:
            up.engines["mixed0"].script = lambda body: Reply(status=500, message=SECRET)
            async with traced(up, found.url):
                messages = [{"role": "user", "content": SECRET}]
                answer = await up.post("/v1/chat/completions", {"messages": messages}, [(b"authorization", b"k-123")])
            request = check_tree(found)
            assert answer.status == request.attributes["http.response.status_code"] == 502
            assert (request.failed, request.attributes["error.type"]) == (True, "upstream_failed")
            assert {leg.attributes["error.type"] for leg in found.legs} == {"errored"}
            assert SECRET.encode() not in found.raw
            assert b"k-123" not in found.raw

    run(body())


@pytest.mark.parametrize(
    ("over", "script", "legs"),
    [
        pytest.param({"max_tokens": 0}, Reply(), [], id="by the router"),
        pytest.param({}, Reply(status=400), ["rejected"], id="by the engine"),
    ],
)
def test_a_clients_own_fault_is_no_error_of_the_service(over: dict[str, Any], script: Reply, legs: list[str]) -> None:
    async def body() -> None:
        async with fleet("mixed0") as up, collector() as found:
            up.engines["mixed0"].script = lambda body: script
            async with traced(up, found.url):
                await up.post("/v1/completions", ask(**over))
            request = check_tree(found)
            assert (request.failed, request.attributes["error.type"]) == (False, "rejected")
            assert request.attributes["http.response.status_code"] == 400
            assert [leg.attributes["error.type"] for leg in found.legs] == legs

    run(body())


def test_a_client_that_leaves_ends_its_spans() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up, collector() as found:
            up.engines["mixed0"].script = lambda body: Reply(gap_s=0.02)
            async with traced(up, found.url):
                seen: list[bytes] = []
                pool = ClientPool("127.0.0.1", up.server.port)
                call = pool.request(
                    b"POST", b"/v1/completions", JSON, b'{"prompt":[1],"max_tokens":99,"stream":true}', Listener(seen)
                )
                await until(lambda: seen)
                call.abort()
                pool.close()
            request, (leg,) = check_tree(found), found.legs
            assert (request.attributes["paceline.outcome"], request.failed) == ("client_gone", False)
            assert "gen_ai.usage.output_tokens" not in request.attributes
            assert (leg.attributes["paceline.leg.result"], leg.failed) == ("aborted", False)

    run(body())


def test_the_clients_trace_goes_on() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up, collector() as found:
            async with traced(up, found.url, ratio=0.0):  # the client has decided
                await up.post("/v1/completions", ask(), [SAMPLED, (b"tracestate", b"vendor=1")])
            request, (leg,) = check_tree(found), found.legs
            assert (request.trace_id, request.parent_id, request.state) == (TRACE, PARENT, "vendor=1")
            headers = up.engines["mixed0"].asked[0].headers
            assert (headers["traceparent"], headers["tracestate"]) == (f"{leg.context}-01", "vendor=1")

    run(body())


@pytest.mark.parametrize(
    ("ratio", "given", "same_trace"),
    [
        pytest.param(1.0, [UNSAMPLED], True, id="by the client"),
        pytest.param(0.0, [], False, id="by the ratio"),
        pytest.param(
            0.0, [(b"traceparent", b"00-abc-def-01")], False, id="by the ratio, as the client's makes no sense"
        ),
    ],
)
def test_what_is_not_sampled_leaves_nothing_and_engines_are_told_so(
    ratio: float, given: list[tuple[bytes, bytes]], same_trace: bool
) -> None:
    async def body() -> None:
        async with fleet("prefill0", "decode0") as up, collector() as found:
            async with traced(up, found.url, ratio) as tracing:
                assert (await up.post("/v1/completions", ask(stream=True), given)).status == 200
            assert (found.spans, counted(tracing)) == ([], {})
            told = {up.engines[name].asked[0].headers["traceparent"] for name in ("prefill0", "decode0")}
            (context,) = told
            version, trace, _, flags = context.split("-")
            assert (version, int(flags, 16) & 1, trace == TRACE) == ("00", 0, same_trace)

    run(body())


def test_whoever_has_no_key_decides_nothing_about_spans(tmp_path: Path) -> None:
    """Neither that there is one, whatever the client's context says, nor how large."""
    (tmp_path / "acme").write_text("sk-acme")

    async def body() -> None:
        async with fleet("mixed0", api_keys_dir=str(tmp_path)) as up, collector() as found:
            async with traced(up, found.url, ratio=0.0):
                assert (await up.post("/v1/completions", ask(), [SAMPLED])).status == 401
                assert (await up.post("/v1/" + "x" * 5000, ask(), [SAMPLED])).status == 401
                named = [SAMPLED, (b"authorization", b"Bearer sk-acme"), (b"x-request-id", b"mine")]
                assert (await up.post("/v1/completions", ask(), named)).status == 200
            assert found.server_span.attributes["paceline.request_id"] == "mine"

    run(body())


async def _refusing() -> str:
    """Where nobody listens any more."""
    async with collector() as gone:
        return gone.url


@pytest.mark.parametrize(
    ("status", "spans"),
    [
        pytest.param(None, {}, id="that never answers"),
        pytest.param(503, {"failed": 40}, id="that is overloaded"),
        pytest.param(400, {"failed": 40}, id="that takes nothing"),
    ],
)
def test_a_sick_collector_costs_spans_and_no_request(status: int | None, spans: dict[str, int]) -> None:
    async def body() -> None:
        async with fleet("mixed0") as up, collector(status) as found:
            async with traced(up, found.url) as tracing:
                for _ in range(20):
                    assert (await up.post("/v1/completions", ask())).status == 200
                begun = time.monotonic()
            assert time.monotonic() - begun < FLUSH_S + 1
            assert found.posted.is_set()
            await until(lambda: counted(tracing) == spans)
            assert await up.outcomes() == {"completed": 20}

    run(body())


def test_a_collector_that_is_away_costs_spans_and_no_request() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            async with traced(up, await _refusing()) as tracing:
                for _ in range(20):
                    assert (await up.post("/v1/completions", ask())).status == 200
                begun = time.monotonic()
            assert time.monotonic() - begun < FLUSH_S + 1
            await until(lambda: counted(tracing) == {"failed": 40})

    run(body())


def test_a_full_queue_drops_the_newest_spans_and_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paceline_router.tracing, "QUEUE_SPANS", 10)
    monkeypatch.setattr(paceline_router.tracing, "BATCH_SPANS", 10)

    async def body() -> None:
        async with fleet("mixed0") as up, collector(None) as found, traced(up, found.url) as tracing:
            for _ in range(5):  # two spans each: ten are on their way
                await up.post("/v1/completions", ask())
            await found.posted.wait()
            for _ in range(5):  # and ten wait
                await up.post("/v1/completions", ask())
            assert counted(tracing) == {}
            for _ in range(3):
                assert (await up.post("/v1/completions", ask())).status == 200
            assert counted(tracing) == {"dropped": 6}

    run(body())


def test_spans_are_sent_without_being_asked_for() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up, collector() as found, traced(up, found.url) as tracing:
            for _ in range(3):
                await up.post("/v1/completions", ask())
            await until(lambda: counted(tracing) == {"sent": 6})
            assert len(found.spans) == 6

    run(body())


def test_a_request_that_no_replica_can_take_has_no_leg() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up, collector() as found:
            async with traced(up, found.url):
                up.router.shell.ledger.set_ready("mixed0", False)
                assert (await up.post("/v1/completions", ask())).status == 503
            request = check_tree(found)
            assert (request.failed, request.attributes["error.type"], found.legs) == (True, "no_endpoint", [])

    run(body())


@pytest.mark.parametrize(
    ("discovery", "environ", "pod"),
    [
        pytest.param(ON_CLUSTER, {"POD_NAME": "chat-router-0", "HOSTNAME": "h"}, "chat-router-0", id="by POD_NAME"),
        pytest.param(ON_CLUSTER, {"HOSTNAME": "chat-router-0"}, "chat-router-0", id="by its host name"),
        pytest.param({"kind": "static"}, {"HOSTNAME": "laptop"}, None, id="without a cluster there is none"),
    ],
)
def test_who_sends_names_its_pod(discovery: dict[str, str], environ: dict[str, str], pod: str | None) -> None:
    config = RouterConfig.model_validate({**CONFIG, "discovery": discovery})
    assert resource(config, environ).attributes.get("k8s.pod.name") == pod


async def _asked_and_stopped(folder: Path, url: str) -> Asked:
    """A router process over a prefill and a decode engine serves one stream, is told to stop, and does so well."""
    async with (
        engines(folder, "prefill0", "decode0") as fleet,
        router(folder, fleet, tracing={"endpoint": url}) as made,
    ):
        pool = ClientPool("127.0.0.1", made.port)
        asked = Asked(pool, stream=True, tokens=5)
        assert await asked.ending() == "whole"
        pool.close()
        made.process.terminate()
        async with asyncio.timeout(15):
            assert await made.process.wait() == 0
    return asked


def test_a_router_process_sends_its_last_spans_before_it_stops(tmp_path: Path) -> None:
    async def body() -> None:
        async with collector() as found:
            await _asked_and_stopped(tmp_path, found.url)
        request = check_tree(found)
        assert request.attributes["paceline.simulated"] is True
        assert [(leg.name, leg.attributes["paceline.leg.result"]) for leg in found.legs] == [
            ("prefill m", "completed"),
            ("fetch m", "completed"),
        ]
        assert found.resource["k8s.pod.name"] == "chat-router-0"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POD_NAME", "chat-router-0")
        run(body())


@pytest.mark.parametrize("silent", [False, True], ids=["that is away", "that never answers"])
def test_a_router_process_stops_in_spite_of_a_collector_and_says_so_in_a_line(tmp_path: Path, silent: bool) -> None:
    async def body() -> None:
        async with collector(None) as found:
            await _asked_and_stopped(tmp_path, found.url if silent else await _refusing())

    run(body())
    log = (tmp_path / "router.log").read_text()
    stopped = "WARNING paceline_router.tracing stopped with spans=3 not sent\n" in log
    assert stopped != ("Failed to export spans batch" in log), log


def test_traces_without_opentelemetry_are_refused_in_a_line(tmp_path: Path) -> None:
    hidden = "raise ModuleNotFoundError(name='opentelemetry')"
    (tmp_path / "opentelemetry.py").write_text(hidden)
    path = tmp_path / "router.json"
    path.write_text(json.dumps(CONFIG))
    done = subprocess.run(
        [sys.executable, "-m", "paceline_router", "--config", str(path), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr == (
        "paceline_router: tracing needs opentelemetry, which is not installed; "
        "install paceline[otel], or take tracing out of the configuration\n"
    )


def test_a_router_without_traces_does_not_import_opentelemetry() -> None:
    code = "import sys, paceline_router.__main__; sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 0
