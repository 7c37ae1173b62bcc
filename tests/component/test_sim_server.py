"""The simulated engine's HTTP API: what answers look like, what is refused and how, and that the counts add up."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from engine_peer import TRUSTED, events
from openai import AsyncOpenAI
from paceline_engine.http1 import Call, ClientError, Header
from paceline_engine.sim import text, worker
from paceline_engine.sim.engine import Phase
from sim_engine import Client, engines, run
from waiting import until

MIXED = ("--role=mixed",)


def completion(**over: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": list(range(100)), "max_tokens": 8, "ignore_eos": True, **over}


def test_a_stream_has_an_event_a_token_then_usage_then_done() -> None:
    async def work() -> None:
        async with engines(MIXED) as (client,):
            body = completion(stream=True, stream_options={"include_usage": True})
            answer = await client.post("/v1/completions", body)
            *chunks, usage, done = events(answer)
            assert done == "[DONE]"
            assert usage["choices"] == []
            assert usage["usage"] == {"prompt_tokens": 100, "completion_tokens": 8, "total_tokens": 108}
            assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * 7 + ["length"]
            assert {c["object"] for c in chunks} == {"text_completion"}
            whole = await client.complete(**completion())
            assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]
            assert answer.header(b"x-paceline-simulated") == b"1"

    run(work)


def test_the_openai_client_streams_a_chat() -> None:
    async def work() -> None:
        async with engines(MIXED) as (client,):
            url = f"http://127.0.0.1:{client.engine.port}/v1"
            async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as openai:
                assert [m.id async for m in openai.models.list()] == ["m"]
                stream = await openai.chat.completions.create(
                    model="m",
                    messages=[{"role": "user", "content": "Say something"}],
                    max_completion_tokens=6,
                    stream=True,
                    stream_options={"include_usage": True},
                    extra_body={"ignore_eos": True},
                )
                chunks = [chunk async for chunk in stream]
            assert chunks[0].choices[0].delta.role == "assistant"
            assert chunks[0].choices[0].delta.content == ""
            words = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert len(words.split()) == 6
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.completion_tokens == 6

    run(work)


def test_an_answer_ends_by_itself_at_a_length_that_follows_from_the_prompt() -> None:
    async def work() -> None:
        async with engines(MIXED) as (client,):
            expected = text.natural_tokens(text.of_ids(list(range(100)), 16).seed)
            for max_tokens, length, reason in ((3900, expected, "stop"), (expected - 1, expected - 1, "length")):
                answer = await client.complete(**completion(max_tokens=max_tokens, ignore_eos=False))
                assert answer["usage"]["completion_tokens"] == length
                assert answer["choices"][0]["finish_reason"] == reason
            more = expected + 5
            answer = await client.complete(**completion(max_tokens=3900, ignore_eos=False, min_tokens=more))
            assert answer["usage"]["completion_tokens"] == more

    run(work)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        pytest.param(b"{", 400, "not JSON", id="a body that is not JSON"),
        pytest.param([], 400, "JSON object", id="a body that is no object"),
        pytest.param(completion(model="other"), 404, "`other` does not exist", id="another model"),
        pytest.param(completion(model=7), 404, "does not exist", id="a model that is no name"),
        pytest.param(completion(prompt=None), 400, "prompt must be", id="no prompt"),
        pytest.param(completion(prompt=""), 400, "non-empty", id="an empty text"),
        pytest.param(completion(prompt=[]), 400, "prompt must be", id="no token ids"),
        pytest.param(completion(prompt=["a", "b"]), 400, "one request per prompt", id="two prompts"),
        pytest.param(completion(prompt=[1, "a"]), 400, "one text or one list", id="ids and texts mixed"),
        pytest.param(completion(prompt=[True]), 400, "", id="a boolean for an id"),
        pytest.param(completion(prompt=[-1]), 400, "out of vocabulary", id="a negative id"),
        pytest.param(completion(prompt=[1 << 80]), 400, "not JSON", id="an id beyond all integers"),
        pytest.param(completion(max_tokens=-5), 400, "at least 1", id="a negative length"),
        pytest.param(completion(max_tokens=0), 400, "at least 1", id="no length"),
        pytest.param(completion(max_tokens=1.5), 400, "at least 1", id="half a token"),
        pytest.param(completion(max_tokens=True), 400, "at least 1", id="a boolean for a length"),
        pytest.param(completion(min_tokens=9), 400, "min_tokens", id="min_tokens above max_tokens"),
        pytest.param(completion(n=2), 400, "n must be 1", id="two answers"),
        pytest.param(completion(stop=[1]), 400, "stop must be", id="a stop that is no text"),
        pytest.param(completion(stream="yes"), 400, "stream must be", id="a stream that is no boolean"),
        pytest.param(completion(stream_options=1), 400, "stream_options", id="stream options that are no object"),
        pytest.param(
            completion(prompt=[1] * 4090), 400, "maximum context length is 4096 tokens", id="longer than the context"
        ),
        pytest.param(completion(prompt=[1] * 100_000), 400, "100000 in the prompt", id="far longer than the context"),
        pytest.param(
            completion(prompt="word " * 10_000), 400, "in the prompt", id="a text far longer than the context"
        ),
    ],
)
def test_a_body_is_refused_with_its_cause(body: object, status: int, says: str) -> None:
    async def work() -> None:
        async with engines(MIXED) as (client,):
            if isinstance(body, dict) and body.get("prompt") == [1 << 80]:
                data = b'{"prompt":[%d],"max_tokens":8}' % (1 << 80)
                answer = await client.post("/v1/completions", data)
                assert answer.status == 400
                return
            answer = await client.post("/v1/completions", body)
            assert answer.status == status
            assert says in orjson.loads(answer.body)["error"]["message"]
            assert answer.header(b"x-paceline-simulated") == b"1"
            samples = await client.metrics()
            assert samples["paceline_engine_legs_total rejected"] == 1
            assert client.engine.replica.requests == 0

    run(work)


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hello",
        [1],
        [{"content": "no role"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [5]}],
    ],
    ids=["none", "empty", "a text", "a number", "no role", "a number as content", "a number as part"],
)
def test_messages_that_are_none_are_refused(messages: object) -> None:
    async def work() -> None:
        async with engines(MIXED) as (client,):
            answer = await client.post("/v1/chat/completions", {"messages": messages})
            assert answer.status == 400
            assert "messages" in orjson.loads(answer.body)["error"]["param"]

    run(work)


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        (b"x-slo-ttft-remaining-ms", b"250", 200),
        (b"x-slo-ttft-remaining-ms", b"-40", 200),
        (b"x-slo-ttft-remaining-ms", b"soon", 400),
        (b"x-slo-ttft-remaining-ms", b"nan", 400),
        (b"x-slo-tpot-ms", b"0", 400),
        (b"x-slo-tpot-ms", b"inf", 400),
        (b"x-slo-max-stall-ms", b"-1", 400),
        (b"x-slo-class", b"x" * 64, 400),
        (b"x-slo-class", b"\xff", 400),
    ],
)
def test_objective_headers_count_only_with_the_token(name: bytes, value: bytes, status: int) -> None:
    async def work() -> None:
        async with engines(MIXED) as (client,):
            header: tuple[Header, ...] = ((name, value),)
            assert (await client.post("/v1/completions", completion(), header)).status == 200
            wrong = ((b"x-paceline-token", b"guess"), *header)
            assert (await client.post("/v1/completions", completion(), wrong)).status == 200
            assert (await client.post("/v1/completions", completion(), (*TRUSTED, *header))).status == status

    run(work)


def test_without_a_configured_token_nobody_is_trusted() -> None:
    async def work() -> None:
        async with engines(MIXED, token="") as (client,):
            headers = ((b"x-paceline-token", b""), (b"x-slo-tpot-ms", b"garbage"))
            assert (await client.post("/v1/completions", completion(), headers)).status == 200
            assert (await client.post("/paceline/drain", b"", headers)).status == 403

    run(work)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/readyz", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/metrics", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/metrics", 405),
        ("POST", "/paceline/drain", 403),
        ("POST", "/paceline/kv/pull", 403),
        ("POST", "/paceline/kv/release", 403),
    ],
)
def test_every_route_answers_and_says_that_it_is_simulated(method: str, path: str, status: int) -> None:
    async def work() -> None:
        async with engines(MIXED) as (client,):
            answer = await (client.get(path) if method == "GET" else client.post(path, {}))
            assert answer.status == status
            assert answer.header(b"x-paceline-simulated") == b"1"

    run(work)


def test_readyz_is_503_while_loading_and_requests_are_refused() -> None:
    async def work() -> None:
        async with engines(MIXED) as (client,):
            client.engine.phase = Phase.LOADING
            assert (await client.get("/readyz")).status == 503
            assert (await client.get("/health")).status == 200
            refused = await client.post("/v1/completions", completion())
            assert refused.status == 503
            assert refused.header(b"retry-after") == b"1"

    run(work)


class Listener:
    """Counts the events of a stream."""

    def __init__(self) -> None:
        self.events = 0
        self.error: ClientError | None = None

    def on_head(self, status: int, headers: list[Header]) -> None:
        assert status == 200

    def on_body(self, data: bytes) -> None:
        self.events += data.count(b"data: ")

    def on_end(self) -> None:
        return

    def on_error(self, error: ClientError) -> None:
        self.error = error


def stream(client: Client, listener: Listener, **over: Any) -> Call:
    body = orjson.dumps(completion(stream=True, **over))
    return client.pool.request(b"POST", b"/v1/completions", (), body, listener)


def test_a_client_that_leaves_frees_its_request_at_once() -> None:
    async def work() -> None:
        async with engines(MIXED) as (client,):
            replica, listener = client.engine.replica, Listener()
            call = stream(client, listener, max_tokens=3000)
            await until(lambda: listener.events > 3)
            assert replica.view.kv.usage > 0
            call.abort()
            await until(lambda: replica.requests == 0 and replica.batch is None)
            assert not list(replica.holders())
            samples = await client.metrics()
            assert samples["paceline_engine_legs_total aborted"] == 1
            assert samples["vllm:request_success_total abort"] == 1
            assert samples["vllm:num_requests_running"] == 0

    run(work)


def test_legs_received_are_the_sum_of_their_results() -> None:
    async def work() -> None:
        async with engines(MIXED) as (client,):
            await client.complete(**completion())
            await client.post("/v1/completions", completion(n=3))
            leaving, staying = Listener(), Listener()
            call = stream(client, leaving, max_tokens=3000)
            stream(client, staying, max_tokens=3000)
            await until(lambda: leaving.events > 1)
            call.abort()
            await until(lambda: client.engine.in_progress == 1)
            samples = await client.metrics()
            legs = {k.split()[1]: v for k, v in samples.items() if k.startswith("paceline_engine_legs_total ")}
            assert legs == {"finished": 1, "aborted": 1, "failed": 0, "rejected": 1, "refused": 0}
            assert samples["paceline_engine_legs_in_progress"] == 1
            assert samples["paceline_engine_legs_received_total"] == 4

    run(work)


def test_metrics_bear_vllms_names_and_ours() -> None:
    async def work() -> None:
        async with engines((*MIXED, "--service=chat", "--pool=big", "--revision=r1")) as (client,):
            await client.complete(**completion())
            await client.complete(**completion())
            samples = await client.metrics()
            expected = {
                "vllm:num_requests_waiting": 0,
                "vllm:kv_cache_usage_perc": 0,
                "vllm:prompt_tokens_total": 104,  # the second prompt's six full blocks are in the prefix cache
                "vllm:generation_tokens_total": 16,
                "vllm:prefix_cache_queries_total": 200,
                "vllm:prefix_cache_hits_total": 96,
                "vllm:num_preemptions_total": 0,
                "vllm:request_success_total length": 2,
                "vllm:time_to_first_token_seconds_count": 2,
                "vllm:inter_token_latency_seconds_count": 14,
                "vllm:request_time_per_output_token_seconds_count": 2,
                "vllm:e2e_request_latency_seconds_count": 2,
                "vllm:request_queue_time_seconds_count": 2,
                "vllm:iteration_tokens_total_count": 16,
                "vllm:cache_config_info 16 27720": 1,
                "paceline_engine_info chat  big r1 mixed": 1,
                "paceline_step_time_scale llama-3.1-8b decode a100-sxm-80gb 1": 1,
                "paceline_step_time_trusted decode": 0,
                "paceline_step_seconds_count measured": 16,
                "paceline_step_tokens_count prefill": 2,
                "paceline_engine_misses_total ttft": 0,
                "paceline_sim_lateness_seconds_count": 16,
            }
            assert {name: samples.get(name) for name in expected} == expected

    run(work)


def test_tokens_keep_the_machines_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's own times are the table's, whatever the event loop does; the wall's are never shorter."""

    async def work() -> None:
        async with engines(MIXED) as (client,):
            engine = client.engine
            began_s = engine.clock.now()
            await client.complete(**completion(max_tokens=101))
            took_s = engine.clock.now() - began_s
            seconds4 = engine.options.replica.machine.table.seconds4
            expected_s = sum(seconds4(0, 0.0, 1, 100 + i) for i in range(1, 101))
            samples = await client.metrics()
            assert samples["vllm:inter_token_latency_seconds_sum"] == pytest.approx(expected_s, rel=1e-3)
            assert took_s > expected_s

    monkeypatch.setattr(worker, "SLIP_WALL_S", math.inf)  # what is late is caught up with
    run(work)
