"""What the router serves beside chats and completions: responses, embeddings, and what any engine can answer.

Responses and tokens come from simulated engines, as the official client asks for them; embeddings, and failures, from
scripted ones, because a simulated engine has no model that embeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from engine_double import Reply
from engine_peer import TOKEN
from openai import APIError, AsyncOpenAI, BadRequestError, NotFoundError
from paceline_api.config import StaticDiscovery
from paceline_engine.clock import Clock
from paceline_engine.http1 import ClientPool
from paceline_router import passthrough
from paceline_router.server import Router
from router_fleet import Fleet, fleet, make_config, run
from sim_engine import TIME_SCALE, Client, engines
from waiting import until

EMBEDDING: dict[str, Any] = {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}


def embed(body: dict[str, Any]) -> dict[str, Any]:
    """As vLLM answers: one vector for each text, `usage` without an output."""
    n = len(body["input"]) if isinstance(body["input"], list) else 1
    data = [{**EMBEDDING, "index": i} for i in range(n)]
    return {"object": "list", "model": "m", "data": data, "usage": {"prompt_tokens": 2 * n, "total_tokens": 2 * n}}


@asynccontextmanager
async def simulated(*roles: str, **over: Any) -> AsyncIterator[tuple[Fleet, list[Client]]]:
    """A router before simulated engines of these roles, and a client's way to both."""
    async with engines(*((f"--role={role}",) for role in roles)) as clients:
        replicas = [
            {"name": f"{role}{i}", "url": f"http://127.0.0.1:{client.engine.port}", "role": role, "pool": role}
            for i, (role, client) in enumerate(zip(roles, clients, strict=True))
        ]
        config = make_config({}, discovery={"kind": "static", "replicas": replicas}, **over)
        assert isinstance(config.discovery, StaticDiscovery)
        made = Router(config, config.discovery, Clock(TIME_SCALE), TOKEN)
        server, stop = await made.listen("127.0.0.1", 0), asyncio.Event()
        task = asyncio.create_task(made.run(server, stop))
        up = Fleet(made, server, {}, ClientPool("127.0.0.1", server.port), stop, task)
        try:
            await until(lambda: all(r.ready for r in made.shell.ledger.replicas.values()))
            yield up, clients
        finally:
            up.pool.close()
            stop.set()
            await asyncio.wait_for(task, 5)


def openai(up: Fleet) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"http://127.0.0.1:{up.server.port}/v1", api_key="x", max_retries=0)


# --- responses


@pytest.mark.parametrize("roles", [("mixed",), ("prefill", "decode")], ids="+".join)
def test_the_openai_client_is_answered_with_a_response(roles: tuple[str, ...]) -> None:
    async def body() -> None:
        async with simulated(*roles) as (up, clients), openai(up) as client:
            ask: dict[str, Any] = {"model": "m", "input": "Tell me more. " * 40, "instructions": "Be brief"}
            ask |= {"max_output_tokens": 12, "extra_body": {"ignore_eos": True}}
            whole = await client.responses.create(**ask)
            assert whole.object == "response"
            assert (whole.status, whole.instructions) == ("incomplete", "Be brief")
            assert whole.usage is not None
            assert whole.usage.output_tokens == len(whole.output_text.split()) == 12
            kinds: list[str] = []
            said = ""
            async for event in await client.responses.create(**ask, stream=True):
                kinds.append(event.type)
                if event.type == "response.output_text.delta":
                    said += event.delta
            assert said == whole.output_text
            assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
            assert kinds.count("response.output_text.delta") == 12
            assert await up.outcomes() == {"completed": 2}
            samples = await up.samples()
            assert samples["paceline_output_tokens_sum"][("interactive",)] == 24
            assert samples["paceline_ttft_seconds_count"][("interactive",)] == 1
            assert samples["paceline_itl_seconds_count"][("interactive",)] == 11
            assert sum(samples["paceline_slo_decided_total"].values()) == 2
            legs = {labels: n for labels, n in samples["paceline_legs_total"].items() if n}
            assert legs == {("completed", role): 2 for role in roles}
            if len(roles) == 2:  # the prompt was computed by the prefill engine alone
                assert (await clients[1].metrics())["paceline_step_tokens_sum prefill"] <= 2

    run(body())


def test_a_response_carries_its_objective_and_is_never_kept() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            up.engines["mixed0"].others["/v1/responses"] = lambda body: {
                "object": "response",
                "usage": {"input_tokens": 7, "output_tokens": 2},
            }
            headers = [(b"x-slo-class", b"batch"), (b"x-llm-d-slo-tpot-ms", b"100")]
            ask = {
                "model": "m",
                "input": "hi",
                "store": True,
                "stream": False,
                "kv_transfer_params": {"remote_host": "x"},
            }
            answer = await up.post("/v1/responses", ask, headers)
            assert answer.status == 200
            (asked,) = up.engines["mixed0"].asked
            assert asked.body == {"input": "hi", "stream": False, "store": False}
            assert (asked.headers["x-slo-class"], asked.headers["x-slo-tpot-ms"]) == ("batch", "100")
            samples = await up.samples()
            assert samples["paceline_output_tokens_sum"][("batch",)] == 2

    run(body())


def test_a_response_that_fails_before_its_first_token_is_served_elsewhere() -> None:
    async def body() -> None:
        async with simulated("mixed", "mixed") as (up, clients), openai(up) as client:
            await clients[0].post("/paceline/drain", {}, ((b"x-paceline-token", TOKEN.encode()),))
            await until(lambda: clients[0].engine.phase.value == "draining")
            for _ in range(2):
                answer = await client.responses.create(
                    model="m", input="hi", max_output_tokens=3, extra_body={"ignore_eos": True}
                )
                assert len(answer.output_text.split()) == 3
            assert await up.outcomes() == {"completed": 2}

    run(body())


def test_tools_that_an_engine_may_run_keep_a_response_on_one_replica() -> None:
    async def body() -> None:
        async with simulated("prefill", "decode") as (up, clients), openai(up) as client:
            ask: dict[str, Any] = {"model": "m", "input": "hi", "max_output_tokens": 3}
            ask["extra_body"] = {"ignore_eos": True}
            await client.responses.create(**ask, tools=[{"type": "web_search_preview"}])
            samples = await up.samples()
            assert {k: n for k, n in samples["paceline_legs_total"].items() if n} == {("completed", "decode"): 1}
            assert (await clients[0].metrics())["paceline_engine_legs_received_total"] == 0

    run(body())


def test_what_would_need_an_earlier_response_is_refused() -> None:
    async def body() -> None:
        async with simulated("mixed") as (up, _clients), openai(up) as client:
            with pytest.raises(BadRequestError, match="send the whole conversation"):
                await client.responses.create(model="m", input="hi", previous_response_id="resp_1")
            with pytest.raises(BadRequestError, match="leave the connection open"):
                await client.responses.create(model="m", input="hi", background=True)
            with pytest.raises(NotFoundError, match="does not exist"):
                await client.responses.create(model="other", input="hi")
            assert await up.outcomes() == {"rejected": 3}

    run(body())


def test_a_response_cut_off_amid_its_stream_says_so() -> None:
    async def body() -> None:
        async with simulated("mixed") as (up, clients), openai(up) as client:
            stream = await client.responses.create(
                model="m", input="hi", max_output_tokens=2000, stream=True, extra_body={"ignore_eos": True}
            )

            async def read() -> None:
                async for event in stream:
                    if event.type == "response.output_text.delta":
                        await clients[0].engine.close()

            with pytest.raises(APIError, match="failed after the answer had begun"):
                await read()
            assert await up.outcomes() == {"upstream_failed": 1}

    run(body())


# --- embeddings


def test_the_openai_client_gets_embeddings() -> None:
    async def body() -> None:
        async with fleet("prefill0", "mixed0") as up, openai(up) as client:
            up.engines["mixed0"].others["/v1/embeddings"] = embed
            answer = await client.embeddings.create(model="m", input=["a", "b", "c"], encoding_format="float")
            assert [e.embedding for e in answer.data] == [[0.5, -1.0]] * 3
            assert answer.usage.prompt_tokens == 6
            assert not up.engines["prefill0"].asked
            assert await up.outcomes() == {"completed": 1}
            samples = await up.samples()
            assert samples["paceline_slo_decided_total"][("good", "interactive")] == 1
            assert samples["paceline_output_tokens_sum"][("interactive",)] == 0
            assert samples["paceline_requests_in_flight"][("mixed",)] == 0

    run(body())


def test_an_embedding_is_late_when_its_answer_is() -> None:
    async def body() -> None:
        async with fleet(
            "mixed0", default_class="hasty", classes=[{"name": "hasty", "ttft_s": 1e-6, "tpot_s": 1}]
        ) as up:
            up.engines["mixed0"].others["/v1/embeddings"] = embed
            assert (await up.post("/v1/embeddings", {"input": "a"})).status == 200
            samples = await up.samples()
            assert samples["paceline_slo_decided_total"][("both", "hasty")] == 1

    run(body())


def test_a_model_that_does_not_embed_says_so_itself() -> None:
    async def body() -> None:
        async with simulated("mixed") as (up, _clients), openai(up) as client:
            with pytest.raises(NotFoundError):
                await client.embeddings.create(model="m", input="hi")
            assert await up.outcomes() == {"rejected": 1}

    run(body())


# --- what any engine can answer


def test_tokens_are_counted_by_an_engine_of_any_role() -> None:
    async def body() -> None:
        async with simulated("prefill", "decode") as (up, clients):
            headers = [(b"x-request-id", b"mine")]
            found = await up.post("/tokenize", {"model": "m", "prompt": "Hello there friend"}, headers)
            assert (found.status, found.header(b"x-request-id")) == (200, b"mine")
            assert found.header(b"x-paceline-simulated") == b"1"
            tokens = orjson.loads(found.body)
            assert (tokens["count"], tokens["max_model_len"]) == (6, 4096)
            back = await up.post("/detokenize", {"tokens": tokens["tokens"]})
            assert orjson.loads(back.body) == {"prompt": "Hello there friend"}
            for _ in range(2):
                await up.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]})
            received = [(await c.metrics())["paceline_engine_legs_total finished"] for c in clients]
            assert received == [2, 2]
            assert await up.outcomes() == {}
            samples = await up.samples()
            assert samples["paceline_passthrough_requests_total"] == {
                ("200", "/tokenize"): 3,
                ("200", "/detokenize"): 1,
            }

    run(body())


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), ([1], 400), ({"model": "x", "prompt": "a"}, 404)],
    ids=["no JSON", "no object", "another model"],
)
def test_what_no_engine_could_answer_is_refused_here(body: object, status: int) -> None:
    async def test() -> None:
        async with fleet("mixed0") as up:
            answer = await up.post("/tokenize", body)
            assert answer.status == status
            assert orjson.loads(answer.body)["error"]["message"]
            assert not up.engines["mixed0"].asked
            samples = await up.samples()
            assert samples["paceline_passthrough_requests_total"] == {(str(status), "/tokenize"): 1}
            assert await up.outcomes() == {}

    run(test())


@pytest.mark.parametrize(
    ("first", "second", "status", "asked"),
    [
        (500, {"count": 1}, 200, 2),
        (503, {"count": 1}, 200, 2),
        (400, {"count": 1}, 400, 1),
        (500, 500, 502, 2),
    ],
    ids=["a failure is tried elsewhere", "so is a refusal", "a client's fault is not", "twice is enough"],
)
def test_a_failed_one_is_sent_once_more(first: int, second: dict[str, Any] | int, status: int, asked: int) -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1", "mixed2") as up:
            answers = iter((first, second))
            for engine in up.engines.values():
                engine.others["/tokenize"] = lambda body: next(answers)
            assert (await up.post("/tokenize", {"prompt": "a"})).status == status
            asked_by = [name for name, engine in up.engines.items() for _ in engine.asked]
            assert len(asked_by) == len(set(asked_by)) == asked

    run(body())


def test_without_a_replica_or_an_answer_in_time_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            monkeypatch.setattr(passthrough, "PATIENCE_S", 0.05)
            up.engines["mixed0"].script = lambda body: Reply(hang=True)
            slow = await up.post("/tokenize", {"prompt": "a"})
            assert (slow.status, orjson.loads(slow.body)["error"]["code"]) == (504, "timed_out")
            await until(lambda: len(up.engines["mixed0"].aborted) == 1)
            up.router.shell.ledger.set_ready("mixed0", False)
            assert (await up.post("/tokenize", {"prompt": "a"})).status == 503

    run(body())


def test_an_engine_gets_the_bytes_as_they_came_and_of_the_headers_only_the_trace() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            up.engines["mixed0"].others["/tokenize"] = lambda body: {"count": 1}
            parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            headers = [(b"traceparent", parent), (b"authorization", b"Bearer x"), (b"x-slo-class", b"batch")]
            await up.post("/tokenize", {"prompt": "a", "more": [1]}, headers)
            (asked,) = up.engines["mixed0"].asked
            assert asked.body == {"prompt": "a", "more": [1]}
            assert asked.headers["traceparent"] == parent.decode()
            assert not {"authorization", "x-slo-class", "x-paceline-token"} & asked.headers.keys()

    run(body())


def test_one_whose_client_left_is_aborted_and_counted() -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            up.engines["mixed0"].script = lambda body: Reply(hang=True)
            leaving = asyncio.create_task(up.post("/detokenize", {"tokens": [1]}))
            await until(lambda: bool(up.engines["mixed0"].asked))
            leaving.cancel()
            await until(lambda: bool(up.engines["mixed0"].aborted))
            samples = await up.samples()
            assert samples["paceline_passthrough_requests_total"] == {("499", "/detokenize"): 1}

    run(body())
