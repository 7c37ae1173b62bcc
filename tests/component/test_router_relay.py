"""The router in one loop with scripted engines, over loopback HTTP: relay, hand-overs, drain, accounts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import orjson
import pytest
from engine_double import KV, Reply
from paceline_engine.http1 import Response
from router_fleet import EXPECTED, JSON, Listener, ask, events, fleet, run, words
from waiting import until


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
            assert all(29_000 < ms < 30_000 for ms in left)
            began, ended = left[0], left[1] + 1000 * (second.at_s - first.at_s)  # as of leg 1
            assert began < ended - 20  # leg 1 has what the hand-over takes less: two decode steps of 10 ms and more

    run(body())


@pytest.mark.parametrize(
    "script", [Reply(hang=True), Reply(gap_s=0.02)], ids=["before the first token", "amid a stream"]
)
def test_a_client_that_leaves_has_its_request_aborted_at_the_engine(script: Reply) -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            engine = up.engines["mixed0"]
            engine.script = lambda _: script
            seen: list[bytes] = []
            listener = Listener(seen)
            long = orjson.dumps(ask(stream=True, max_tokens=500))
            call = up.pool.request(b"POST", b"/v1/completions", JSON, long, listener)
            await until(lambda: bool(engine.asked) and (script.hang or bool(seen)))
            assert sum((await up.samples())["paceline_requests_in_flight"].values()) == 1
            call.abort()
            await until(lambda: len(engine.aborted) == 1)
            assert await up.outcomes() == {"client_gone": 1}
            samples = await up.samples()
            assert samples["paceline_legs_total"][("aborted", "mixed")] == 1
            assert not any(samples["paceline_slo_decided_total"].values())  # it left in time: left out

    run(body())


def test_a_ttft_miss_is_decided_when_its_limit_passes() -> None:
    async def body() -> None:
        async with fleet("mixed0", scale=20.0) as up:
            up.engines["mixed0"].script = lambda _: Reply(hang=True)
            call = up.pool.request(b"POST", b"/v1/completions", JSON, orjson.dumps(ask(stream=True)), Listener([]))
            await until(lambda: up.router.shell.metrics.decided.values[("interactive", "ttft")] == 1)
            call.abort()
            await until(lambda: not up.router.shell.jobs)
            assert up.router.shell.metrics.decided.values[("interactive", "ttft")] == 1

    run(body())


def test_a_request_beyond_its_time_limit_gets_504() -> None:
    async def body() -> None:
        async with fleet("mixed0", limits={"request_timeout_s": 0.1}) as up:
            up.engines["mixed0"].script = lambda _: Reply(hang=True)
            answer = await up.post("/v1/completions", ask())
            assert (answer.status, orjson.loads(answer.body)["error"]["code"]) == (504, "timed_out")
            await until(lambda: len(up.engines["mixed0"].aborted) == 1)
            assert await up.outcomes() == {"timed_out": 1}

    run(body())


def test_a_service_without_a_ready_replica_answers_503_and_says_so_at_readyz() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            assert (await up.get("/readyz")).status == 200
            up.engines["mixed0"].ready = False
            await until(lambda: not up.router.shell.is_ready)
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
            assert (await up.get("/v1/audio/speech")).status == 404
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
            await until(lambda: bool(up.router.shell.jobs))
            up.stop.set()
            await until(lambda: up.router.shell.draining)
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
            await until(lambda: bool(up.router.shell.jobs))
            up.stop.set()
            assert (await asked).status == 504

    run(body())


def test_a_slow_reader_holds_its_engine_back() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            seen: list[bytes] = []
            listener = Listener(seen)
            long = orjson.dumps(ask(stream=True, prompt=[1], max_tokens=4000))
            call = up.pool.request(b"POST", b"/v1/completions", JSON, long, listener)
            call.pause()
            await until(lambda: bool(up.router.shell.jobs))
            await asyncio.sleep(0.05)
            call.resume()
            await listener.over
            assert b"".join(seen).count(b'"text"') == 4000
            assert b"".join(seen).endswith(b"data: [DONE]\n\n")

    run(body())
