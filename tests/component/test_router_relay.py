"""The router in one loop with scripted engines, over loopback HTTP: relay, hand-overs, failures, drain, accounts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
import uvloop
from engine_double import KV, EngineDouble, Reply
from paceline_api.config import RouterConfig, StaticDiscovery
from paceline_engine.clock import Clock
from paceline_engine.http1 import ClientError, ClientPool, Response, Server, fetch
from paceline_router.server import Router
from prometheus_client.parser import text_string_to_metric_families

JSON = [(b"content-type", b"application/json")]


@dataclass
class Fleet:
    """A running router, its engines by name, and a client pool."""

    router: Router
    server: Server
    engines: dict[str, EngineDouble]
    pool: ClientPool
    stop: asyncio.Event
    running: asyncio.Task[None] | None = None
    more: dict[str, Any] = field(default_factory=dict)

    async def post(self, path: str, body: object, headers: list[tuple[bytes, bytes]] | None = None) -> Response:
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        return await fetch(self.pool, b"POST", path.encode(), [*JSON, *(headers or [])], raw, timeout_s=5)

    async def get(self, path: str) -> Response:
        return await fetch(self.pool, b"GET", path.encode(), timeout_s=5)

    async def samples(self) -> dict[str, dict[tuple[str, ...], float]]:
        """name → values of its own labels → value."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families((await self.get("/metrics")).body.decode()):
            for s in family.samples:
                own = tuple(v for k, v in sorted(s.labels.items()) if not k.startswith("llmservice"))
                found.setdefault(s.name, {})[own] = s.value
        return found

    async def outcomes(self) -> dict[str, int]:
        """Outcomes that occurred; also checks that arrivals are their sum and what is in flight."""
        samples = await self.samples()
        totals: dict[str, int] = {}
        for (outcome, _), value in samples["paceline_requests_total"].items():
            if value:
                totals[outcome] = totals.get(outcome, 0) + int(value)
        flying = sum(samples["paceline_requests_in_flight"].values())
        assert sum(samples["paceline_requests_received_total"].values()) == sum(totals.values()) + flying
        return totals


def make_config(engines: dict[str, EngineDouble], **over: Any) -> RouterConfig:
    replicas = [
        {"name": name, "url": engine.url, "role": name.rstrip("0123456789"), "pool": "p"}
        for name, engine in engines.items()
    ]
    base: dict[str, Any] = {
        "service": "chat",
        "model": "m",
        "max_context_tokens": 4096,
        "default_class": "interactive",
        "classes": [
            {"name": "interactive", "ttft_s": 0.4, "tpot_s": 0.04},
            {"name": "batch", "ttft_s": 30, "tpot_s": 0.25},
        ],
        "discovery": {"kind": "static", "replicas": replicas},
    }
    return RouterConfig.model_validate({**base, **over})


@asynccontextmanager
async def fleet(*names: str, scale: float = 1.0, **over: Any) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        engines: dict[str, EngineDouble] = {}
        for name in names:
            engines[name] = await EngineDouble().start()
            stack.push_async_callback(engines[name].stop)
        config = make_config(engines, **over)
        assert isinstance(config.discovery, StaticDiscovery)
        router = Router(config, config.discovery, Clock(scale), token="secret")
        server = await router.listen("127.0.0.1", 0)
        stop = asyncio.Event()
        task = asyncio.create_task(router.run(server, stop))
        pool = ClientPool("127.0.0.1", server.port)
        up = Fleet(router, server, engines, pool, stop, task)
        try:
            await eventually(lambda: all(r.ready for r in router.shell.ledger.replicas.values()))
            yield up
        finally:
            pool.close()
            stop.set()
            await asyncio.wait_for(task, 5)


async def eventually(holds: Callable[[], bool], timeout_s: float = 3.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - any state of the router may be waited for
            await asyncio.sleep(0.005)


def run(test: Coroutine[Any, Any, None]) -> None:
    uvloop.run(test)


def events(response: Response) -> list[Any]:
    return [
        part[6:] if part == b"data: [DONE]" else orjson.loads(part[6:]) for part in response.body.split(b"\n\n") if part
    ]


def ask(**over: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": [1, 2, 3], "max_tokens": 5, **over}


def words(response: Response) -> str:
    return "".join(e["choices"][0].get("text", "") for e in events(response) if isinstance(e, dict) and e["choices"])


EXPECTED = " w0 w1 w2 w3 w4"


def test_a_stream_is_relayed_whole_and_the_usage_event_is_hidden_unless_asked_for() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            hidden = await up.post("/v1/completions", ask(stream=True))
            shown = await up.post("/v1/completions", ask(stream=True, stream_options={"include_usage": True}))
            assert words(hidden) == words(shown) == EXPECTED
            assert not any("usage" in e for e in events(hidden) if isinstance(e, dict))
            assert events(shown)[-2]["usage"]["completion_tokens"] == 5
            assert events(hidden)[-1] == b"[DONE]"
            assert hidden.header(b"x-paceline-simulated") == b"1"
            assert hidden.header(b"x-request-id")
            assert up.engines["mixed0"].asked[0].body["stream_options"] == {"include_usage": True}
            assert await up.outcomes() == {"completed": 2}
            samples = await up.samples()
            assert samples["paceline_slo_decided_total"][("good", "interactive")] == 2
            assert samples["paceline_output_tokens_sum"][("interactive",)] == 10
            assert samples["paceline_legs_total"][("completed", "mixed")] == 2
            assert samples["paceline_fleet_info"][("1", "1")] == 1

    run(body())


def test_an_answer_that_is_not_streamed_is_relayed_whole() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            answer = await up.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
            assert answer.status == 200
            assert orjson.loads(answer.body)["usage"]["completion_tokens"] == 4
            assert up.engines["mixed0"].asked[0].path == "/v1/chat/completions"
            assert await up.outcomes() == {"completed": 1}

    run(body())


def test_the_openai_client_works_against_the_router() -> None:
    from openai import AsyncOpenAI

    async def body() -> None:
        async with fleet("prefill0", "decode0") as up:
            url = f"http://127.0.0.1:{up.server.port}/v1"
            async with AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
                models = await client.models.list()
                assert [model.id for model in models.data] == ["m"]
                stream = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "hi"}], max_tokens=5, stream=True
                )
                text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
                assert text == EXPECTED
                whole = await client.completions.create(model="m", prompt="hello", max_tokens=2)
                assert whole.choices[0].text == " w0 w1"
            assert await up.outcomes() == {"completed": 2}

    run(body())


def test_both_legs_carry_the_hand_over_verbatim_and_a_forged_one_is_dropped() -> None:
    async def body() -> None:
        async with fleet("prefill0", "decode0") as up:
            forged = ask(stream=True, stop=["x"], kv_transfer_params={"remote_host": "evil", "do_remote_prefill": True})
            headers = [
                (b"x-slo-class", b"batch"),
                (b"x-prefiller-host-port", b"evil:1"),
                (b"x-paceline-token", b"guess"),
                (b"x-request-id", b"mine-1"),
                (b"traceparent", b"00-abc-def-01"),
            ]
            answer = await up.post("/v1/completions", forged, headers)
            assert words(answer) == EXPECTED
            assert answer.header(b"x-request-id") == b"mine-1"
            (first,), (second,) = up.engines["prefill0"].asked, up.engines["decode0"].asked
            assert first.body["kv_transfer_params"] == {"do_remote_decode": True}
            assert (first.body["max_tokens"], first.body["min_tokens"], first.body["stream"]) == (1, 1, False)
            assert "stop" not in first.body
            assert second.body["kv_transfer_params"] == KV
            assert (second.body["max_tokens"], second.body["stop"]) == (5, ["x"])
            for leg in (first, second):
                assert leg.headers["x-paceline-token"] == "secret"
                assert leg.headers["x-slo-class"] == "batch"
                assert leg.headers["x-slo-tpot-ms"] == "250"
                assert leg.headers["x-slo-max-stall-ms"] == "750"
                assert leg.headers["x-request-id"] == "mine-1"
                assert leg.headers["traceparent"] == "00-abc-def-01"
                assert "x-prefiller-host-port" not in leg.headers
            left = [float(leg.headers["x-slo-ttft-remaining-ms"]) for leg in (first, second)]
            assert 30_000 > left[0] > left[1] > 29_000

    run(body())


@dataclass(frozen=True)
class Failure:
    says: str
    engines: tuple[str, ...]
    scripts: dict[str, list[Reply]]  # replies in order; then good ones
    status: int
    outcomes: dict[str, int]
    legs: dict[str, int]  # asked of each role
    over: dict[str, Any] = field(default_factory=dict)


BUSY, DEAD, CUT = Reply(status=503), Reply(status=500), Reply(break_after=0)
FAIL_KV = {"kv_transfer": {"on_failure": "fail"}}
FAILURES = [
    Failure(
        "a refusal is retried on another replica",
        ("mixed0", "mixed1"),
        {"mixed": [BUSY]},
        200,
        {"completed": 1},
        {"mixed": 2},
    ),
    Failure(
        "an error before the first byte is retried",
        ("mixed0", "mixed1"),
        {"mixed": [DEAD]},
        200,
        {"completed": 1},
        {"mixed": 2},
    ),
    Failure(
        "a cut before the first content is retried",
        ("mixed0", "mixed1"),
        {"mixed": [CUT]},
        200,
        {"completed": 1},
        {"mixed": 2},
    ),
    Failure(
        "an error event before the first content is retried",
        ("mixed0", "mixed1"),
        {"mixed": [Reply(error_after=0)]},
        200,
        {"completed": 1},
        {"mixed": 2},
    ),
    Failure(
        "with nowhere left to go it has failed upstream",
        ("mixed0",),
        {"mixed": [DEAD]},
        502,
        {"upstream_failed": 1},
        {"mixed": 1},
    ),
    Failure(
        "an engine's 400 is the client's own fault",
        ("mixed0",),
        {"mixed": [Reply(status=400)]},
        400,
        {"rejected": 1},
        {"mixed": 1},
    ),
    Failure(
        "an engine's 403 is not the client's fault",
        ("mixed0",),
        {"mixed": [Reply(status=403)]},
        502,
        {"upstream_failed": 1},
        {"mixed": 1},
    ),
    Failure(
        "a failed prefill is done by another prefill replica",
        ("prefill0", "prefill1", "decode0"),
        {"prefill": [DEAD]},
        200,
        {"completed": 1},
        {"prefill": 2, "decode": 1},
    ),
    Failure(
        "a second failed prefill is recomputed by the decode replica",
        ("prefill0", "prefill1", "decode0"),
        {"prefill": [DEAD, DEAD]},
        200,
        {"completed": 1},
        {"prefill": 2, "decode": 1},
    ),
    Failure(
        "or fails where the service says so",
        ("prefill0", "prefill1", "decode0"),
        {"prefill": [DEAD, DEAD]},
        502,
        {"upstream_failed": 1},
        {"prefill": 2, "decode": 0},
        FAIL_KV,
    ),
    Failure(
        "a prefill answer without KV parameters is a failed prefill",
        ("prefill0", "decode0"),
        {"prefill": [Reply(without_kv=True)]},
        200,
        {"completed": 1},
        {"prefill": 1, "decode": 1},
    ),
    Failure(
        "a failed transfer is prefilled again",
        ("prefill0", "prefill1", "decode0", "decode1"),
        {"decode": [DEAD]},
        200,
        {"completed": 1},
        {"prefill": 2, "decode": 2},
    ),
    Failure(
        "a failed transfer is prefilled elsewhere for the same decode replica",
        ("prefill0", "prefill1", "decode0"),
        {"decode": [DEAD]},
        200,
        {"completed": 1},
        {"prefill": 2, "decode": 2},
    ),
    Failure(
        "a failed transfer from the only prefill replica is recomputed",
        ("prefill0", "decode0"),
        {"decode": [DEAD]},
        200,
        {"completed": 1},
        {"prefill": 1, "decode": 2},
    ),
    Failure(
        "a decode replica that dies over its fetch is left for another, and the prompt computed again",
        ("prefill0", "decode0", "decode1"),
        {"decode": [CUT]},
        200,
        {"completed": 1},
        {"prefill": 2, "decode": 2},
    ),
    Failure(
        "a decode replica that refuses leaves the KV to another",
        ("prefill0", "decode0", "decode1"),
        {"decode": [BUSY]},
        200,
        {"completed": 1},
        {"prefill": 1, "decode": 2},
    ),
]


@pytest.mark.parametrize("case", FAILURES, ids=lambda case: case.says.replace(" ", "-"))
def test_before_the_first_byte(case: Failure) -> None:
    async def body() -> None:
        async with fleet(*case.engines, **case.over) as up:
            for role, replies in case.scripts.items():
                queue = list(replies)
                for name, engine in up.engines.items():
                    if name.startswith(role):
                        engine.script = lambda _, queue=queue: queue.pop(0) if queue else Reply()  # type: ignore[misc]  # the default binds
            answer = await up.post("/v1/completions", ask(stream=True))
            assert answer.status == case.status, answer.body
            if case.status == 200:
                assert words(answer) == EXPECTED
            elif case.status != 400:
                assert orjson.loads(answer.body)["error"]["code"] in case.outcomes
            assert await up.outcomes() == case.outcomes
            for role, legs in case.legs.items():
                assert sum(len(e.asked) for n, e in up.engines.items() if n.startswith(role)) == legs
            replicas = up.router.shell.ledger.replicas.values()
            assert all(r.legs == r.kv_reserved == r.decodes == r.incoming == r.prefill_queue == 0 for r in replicas)

    run(body())


def test_a_dead_prefill_pool_is_stood_in_for_by_decode_replicas() -> None:
    async def body() -> None:
        async with fleet("prefill0", "decode0") as up:
            await up.engines["prefill0"].stop()
            for _ in range(2):
                assert words(await up.post("/v1/completions", ask(stream=True))) == EXPECTED
            assert "kv_transfer_params" not in up.engines["decode0"].asked[-1].body
            assert await up.outcomes() == {"completed": 2}

    run(body())


def test_after_the_first_byte_an_error_event_ends_the_stream_and_nothing_is_retried() -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1") as up:
            for engine in up.engines.values():
                engine.script = lambda _: Reply(break_after=2)
            seen: list[bytes] = []
            with pytest.raises(ClientError):
                await _listen(up, seen)
            parts = b"".join(seen).split(b"\n\n")
            assert orjson.loads(parts[-2][6:])["error"]["code"] == "upstream_failed"
            assert sum(b'"text"' in part for part in parts) == 2
            assert sum(len(engine.asked) for engine in up.engines.values()) == 1
            assert await up.outcomes() == {"upstream_failed": 1}
            samples = await up.samples()
            assert samples["paceline_slo_decided_total"][("unserved", "interactive")] == 1
            assert samples["paceline_miss_total"][("failure", "interactive")] == 1

    run(body())


class _Listener:
    def __init__(self, seen: list[bytes]) -> None:
        self.seen = seen
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_head(self, status: int, headers: object) -> None: ...
    def on_body(self, data: bytes) -> None:
        self.seen.append(data)

    def on_end(self) -> None:
        self.over.set_result(None)

    def on_error(self, error: ClientError) -> None:
        self.over.set_exception(error)


async def _listen(up: Fleet, seen: list[bytes]) -> None:
    listener = _Listener(seen)
    up.pool.request(b"POST", b"/v1/completions", JSON, orjson.dumps(ask(stream=True)), listener)
    await listener.over


@pytest.mark.parametrize(
    "script", [Reply(hang=True), Reply(gap_s=0.02)], ids=["before the first token", "amid a stream"]
)
def test_a_client_that_leaves_has_its_request_aborted_at_the_engine(script: Reply) -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            engine = up.engines["mixed0"]
            engine.script = lambda _: script
            seen: list[bytes] = []
            listener = _Listener(seen)
            long = orjson.dumps(ask(stream=True, max_tokens=500))
            call = up.pool.request(b"POST", b"/v1/completions", JSON, long, listener)
            await eventually(lambda: bool(engine.asked) and (script.hang or bool(seen)))
            assert sum((await up.samples())["paceline_requests_in_flight"].values()) == 1
            call.abort()
            await eventually(lambda: len(engine.aborted) == 1)
            assert await up.outcomes() == {"client_gone": 1}
            samples = await up.samples()
            assert samples["paceline_legs_total"][("aborted", "mixed")] == 1
            assert not any(samples["paceline_slo_decided_total"].values())  # it left in time: left out

    run(body())


def test_a_ttft_miss_is_decided_when_its_limit_passes() -> None:
    async def body() -> None:
        async with fleet("mixed0", scale=20.0) as up:
            up.engines["mixed0"].script = lambda _: Reply(hang=True)
            call = up.pool.request(b"POST", b"/v1/completions", JSON, orjson.dumps(ask(stream=True)), _Listener([]))
            await eventually(lambda: up.router.shell.metrics.decided.values[("interactive", "ttft")] == 1)
            call.abort()
            await eventually(lambda: not up.router.shell.jobs)
            assert up.router.shell.metrics.decided.values[("interactive", "ttft")] == 1

    run(body())


def test_a_request_beyond_its_time_limit_gets_504() -> None:
    async def body() -> None:
        async with fleet("mixed0", limits={"request_timeout_s": 0.1}) as up:
            up.engines["mixed0"].script = lambda _: Reply(hang=True)
            answer = await up.post("/v1/completions", ask())
            assert (answer.status, orjson.loads(answer.body)["error"]["code"]) == (504, "timed_out")
            await eventually(lambda: len(up.engines["mixed0"].aborted) == 1)
            assert await up.outcomes() == {"timed_out": 1}

    run(body())


def test_a_service_without_a_ready_replica_answers_503_and_says_so_at_readyz() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            assert (await up.get("/readyz")).status == 200
            up.engines["mixed0"].ready = False
            await eventually(lambda: not up.router.shell.is_ready)
            assert (await up.get("/readyz")).status == 503
            assert (await up.get("/healthz")).status == 200
            answer = await up.post("/v1/completions", ask())
            assert (answer.status, orjson.loads(answer.body)["error"]["code"]) == (503, "no_endpoint")
            assert await up.outcomes() == {"no_endpoint": 1}
            samples = await up.samples()
            assert samples["paceline_prompt_tokens_sum"][("interactive",)] == 3  # of arrivals, served or not

    run(body())


REFUSED = [
    ("no JSON", b"{", [], 400),
    ("a negative length", ask(max_tokens=-5), [], 400),
    ("longer than the context", ask(prompt=[1] * 4096), [], 400),
    ("another model", ask(model="gpt-5"), [], 404),
    ("an unknown class", ask(), [(b"x-slo-class", b"gold")], 400),
    ("a limit that is no number", ask(), [(b"x-llm-d-slo-ttft-ms", b"nan")], 400),
    ("a body above the limit", b"x" * (17 * 2**20), [], 413),
]


@pytest.mark.parametrize(("body", "headers", "status"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused_and_counted_as_rejected(body: object, headers: list[tuple[bytes, bytes]], status: int) -> None:
    async def test() -> None:
        async with fleet("mixed0") as up:
            answer = await up.post("/v1/completions", body, headers)
            assert answer.status == status
            assert orjson.loads(answer.body)["error"]["message"]
            assert not up.engines["mixed0"].asked
            assert await up.outcomes() == {"rejected": 1}

    run(test())


def test_what_the_router_does_not_serve() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            assert (await up.get("/v1/embeddings")).status == 404
            assert (await up.get("/v1/completions")).status == 405
            assert await up.outcomes() == {}

    run(body())


def test_limits_of_a_request_tighten_its_class_and_are_reported_apart() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            await up.post("/v1/completions", ask(stream=True), [(b"x-llm-d-slo-ttft-ms", b"0.001")])
            assert up.engines["mixed0"].asked[0].headers["x-slo-tpot-ms"] == "40"
            samples = await up.samples()
            assert samples["paceline_slo_decided_total"][("good", "interactive")] == 1
            assert samples["paceline_slo_tightened_decided_total"][("ttft", "interactive")] == 1

    run(body())


def test_a_drain_serves_what_was_accepted_then_returns() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            up.engines["mixed0"].script = lambda _: Reply(gap_s=0.03)
            asked = asyncio.create_task(up.post("/v1/completions", ask(stream=True)))
            await eventually(lambda: bool(up.router.shell.jobs))
            up.stop.set()
            await eventually(lambda: up.router.shell.draining)
            assert (await up.get("/readyz")).status == 503
            assert words(await asked) == EXPECTED
            assert up.running is not None
            await asyncio.wait_for(up.running, 3)
            assert up.server.open_connections == 0

    run(body())


def test_a_drain_beyond_its_timeout_ends_what_is_left_as_timed_out() -> None:
    async def body() -> None:
        async with fleet("mixed0", limits={"drain_timeout_s": 0.05}) as up:
            up.engines["mixed0"].script = lambda _: Reply(hang=True)
            asked: Awaitable[Response] = asyncio.create_task(up.post("/v1/completions", ask()))
            await eventually(lambda: bool(up.router.shell.jobs))
            up.stop.set()
            assert (await asked).status == 504

    run(body())


def test_what_waits_on_a_replica_that_answers_nobody_goes_elsewhere() -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1") as up:
            for engine in up.engines.values():
                engine.script = lambda _: Reply(hang=True) if not up.more.setdefault("hung", False) else Reply()
            asked = asyncio.create_task(up.post("/v1/completions", ask(stream=True)))
            await eventually(lambda: any(engine.asked for engine in up.engines.values()))
            up.more["hung"] = True
            (name,) = (name for name, engine in up.engines.items() if engine.asked)
            up.router.shell.abandon(name)
            assert words(await asked) == EXPECTED
            assert len(up.engines[name].aborted) == 1
            assert await up.outcomes() == {"completed": 1}

    run(body())


def test_a_slow_reader_holds_its_engine_back() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            seen: list[bytes] = []
            listener = _Listener(seen)
            long = orjson.dumps(ask(stream=True, prompt=[1], max_tokens=4000))
            call = up.pool.request(b"POST", b"/v1/completions", JSON, long, listener)
            call.pause()
            await eventually(lambda: bool(up.router.shell.jobs))
            await asyncio.sleep(0.05)
            call.resume()
            await listener.over
            assert b"".join(seen).count(b'"text"') == 4000
            assert b"".join(seen).endswith(b"data: [DONE]\n\n")

    run(body())


def test_an_engine_that_comes_back_on_its_port_gets_requests_again(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            engine = up.engines["mixed0"]
            await engine.stop()
            assert (await up.post("/v1/completions", ask())).status == 502
            assert (await up.post("/v1/completions", ask())).status == 503
            await eventually(lambda: "replica=mixed0 answers no probe" in caplog.text)
            await engine.start(engine.port)
            await eventually(lambda: up.router.shell.is_ready)
            assert (await up.post("/v1/completions", ask())).status == 200
            assert await up.outcomes() == {"upstream_failed": 1, "no_endpoint": 1, "completed": 1}

    run(body())
