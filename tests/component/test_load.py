"""The load generator against a small server of completions on loopback, over real HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest
from completions_double import Engine, event, run
from paceline_api.outcomes import Outcome, error_body
from paceline_engine.clock import Clock
from paceline_engine.http1 import ClientPool, Exchange, serve
from paceline_planner.aggregate import CONNECTION_LOST, Record
from paceline_planner.load import Offered, OpenLoop, Sender
from paceline_planner.traces import TraceRequest


def make_requests(n: int = 5, every_s: float = 0.01, prompt: int = 20, output: int = 4) -> list[TraceRequest]:
    return [TraceRequest(i * every_s, prompt, output) for i in range(n)]


async def offer(
    engine: Engine,
    requests: Sequence[TraceRequest],
    *,
    scale: float = 1.0,
    stop_after_s: float | None = None,
    **sender: Any,
) -> tuple[Offered, list[Record]]:
    server = await serve(engine.handle, "127.0.0.1", 0)
    pool = ClientPool("127.0.0.1", server.port)
    records: list[Record] = []
    stop = asyncio.Event()
    if stop_after_s is not None:
        asyncio.get_running_loop().call_later(stop_after_s, stop.set)
    try:
        loop = OpenLoop(
            pool, Sender("m", "interactive", **sender), Clock(scale), lambda record, now: records.append(record)
        )
        return await loop.run(requests, stop), records
    finally:
        pool.close()
        await asyncio.sleep(0.02)
        await server.close()


def test_a_stream_is_measured_by_its_first_token_its_gaps_and_its_usage() -> None:
    engine = Engine(first_s=0.05, gap_s=0.02)
    offered, [record] = run(offer(engine, make_requests(1, output=5)))
    assert (record.outcome, record.course.output_tokens, len(record.gaps_s)) == ("completed", 5, 4)
    first_s, last_s = engine.wrote_s[0], engine.wrote_s[-1]  # whenever the loop had time for it
    assert record.course.ttft_s == pytest.approx(first_s - engine.arrived_s[0], abs=0.02)
    assert record.course.tpot_s == pytest.approx((last_s - first_s) / 4, abs=0.008)
    assert offered.simulated
    assert not offered.interrupted


def test_the_role_event_of_a_chat_is_no_token() -> None:
    _, [record] = run(offer(Engine(first_s=0.05), make_requests(1), chat=True))
    assert record.course.ttft_s is not None
    assert record.course.ttft_s > 0.04
    assert (record.course.prompt_tokens, record.course.output_tokens) == (7, 4)


def test_requests_carry_exact_token_ids_and_the_class() -> None:
    engine = Engine()
    run(offer(engine, [TraceRequest(0, 700, 3, (8,)), TraceRequest(0, 600, 2, (8,))]))
    first, second = engine.received
    assert (len(first["prompt"]), first["max_tokens"], first["ignore_eos"], first["temperature"]) == (700, 3, True, 0)
    assert first["stream_options"] == {"include_usage": True}
    assert first["prompt"][:512] == second["prompt"][:512]
    assert first["prompt"][512:600] != second["prompt"][512:]
    assert engine.classes == [b"interactive"] * 2


def test_sending_does_not_wait_for_answers() -> None:
    engine = Engine(first_s=1.0)
    run(offer(engine, make_requests(10, every_s=0.02, output=1)))
    assert len(engine.arrived_s) == 10
    assert engine.arrived_s[-1] - engine.arrived_s[0] > 0.15
    assert engine.arrived_s[-1] < engine.wrote_s[0]


def test_model_time_runs_with_the_scale() -> None:
    engine = Engine(first_s=0.05, gap_s=0.01)
    begun = time.monotonic()
    _, records = run(offer(engine, make_requests(3, every_s=1.0), scale=10.0))
    assert time.monotonic() - begun < 1.0
    waited_s = engine.wrote_s[0] - engine.arrived_s[0]
    assert records[0].course.ttft_s == pytest.approx(10 * waited_s, abs=0.2)


def respond(status: int, code: str = "") -> Callable[[Exchange], None]:
    body = orjson.dumps(error_body(code, "no")) if code else b"oops"
    return lambda exchange: exchange.respond(status, body)


def break_off(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/event-stream")])
    exchange.write(event({"choices": [{"text": "a", "finish_reason": None}]}))
    asyncio.get_running_loop().call_later(0.01, exchange.abort)


def end_early(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/event-stream")])
    exchange.write(event({"choices": [{"text": "a", "finish_reason": None}]}))
    exchange.end()


def fail_midway(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/event-stream")])
    exchange.write(event({"choices": [{"text": "a", "finish_reason": None}]}))
    exchange.write(event(error_body(Outcome.TIMED_OUT, "too late")) + event("[DONE]"))
    exchange.end()


def babble(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/event-stream")])
    exchange.write(b"data: {broken\n\n" + event("[DONE]"))
    exchange.end()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        pytest.param(respond(400, "rejected"), "rejected", id="a request that is too long is rejected"),
        pytest.param(respond(404, "model_not_found"), "rejected", id="OpenAI's own code of a 404 is rejected"),
        pytest.param(respond(429, "shed"), "shed", id="a 429 is shed"),
        pytest.param(respond(429), "shed", id="a 429 without a body is shed"),
        pytest.param(respond(503, "no_endpoint"), "no_endpoint", id="a 503 is no endpoint"),
        pytest.param(respond(502), "upstream_failed", id="a 502 is a failed engine"),
        pytest.param(respond(503, "upstream_failed"), "upstream_failed", id="the code outranks the status"),
        pytest.param(respond(504, "timed_out"), "timed_out", id="a 504 is timed out"),
        pytest.param(break_off, CONNECTION_LOST, id="a connection that breaks is lost"),
        pytest.param(end_early, "upstream_failed", id="a stream without its end has failed"),
        pytest.param(fail_midway, "timed_out", id="an error event gives the outcome"),
        pytest.param(babble, "upstream_failed", id="a stream that is no JSON has failed"),
    ],
)
def test_each_end_is_one_outcome(answer: Callable[[Exchange], None], outcome: str) -> None:
    offered, records = run(offer(Engine(answer=answer), make_requests(2)))
    assert [record.outcome for record in records] == [outcome] * 2
    assert offered.sent == 2


def test_an_answer_that_takes_too_long_times_out_and_its_connection_is_closed() -> None:
    engine = Engine(first_s=5.0)
    _, [record] = run(offer(engine, make_requests(1), timeout_s=0.1))
    assert record.outcome == "timed_out"
    assert engine.gone == 1


def test_a_server_that_is_not_there_loses_the_connection() -> None:
    async def main() -> list[Record]:
        server = await serve(Engine().handle, "127.0.0.1", 0)
        await server.close()
        records: list[Record] = []
        pool = ClientPool("127.0.0.1", server.port)
        loop = OpenLoop(pool, Sender("m", "c"), Clock(), lambda record, now: records.append(record))
        await loop.run(make_requests(1), asyncio.Event())
        return records

    assert [record.outcome for record in run(main())] == [CONNECTION_LOST]


def test_a_stopped_run_accounts_for_every_request_it_sent() -> None:
    engine = Engine(first_s=5.0)
    offered, records = run(offer(engine, make_requests(200, every_s=0.01), stop_after_s=0.3))
    assert offered.interrupted
    assert 0 < offered.sent == len(records) < 200
    assert {record.outcome for record in records} == {"client_gone"}
