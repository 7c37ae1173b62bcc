"""How the border ends: notice, refusal, streams cut with an error, clients that leave, a signal."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest
from paceline_engine.drain import left_requests
from paceline_engine.vllm import passage
from paceline_engine.vllm.life import Phase
from paceline_engine.vllm.passage import Message, Receive, Scope, Send
from prometheus_client import generate_latest
from vllm_double import BEARER, EVENT, VLLM, Client, counted, make_border, run
from waiting import until


def test_a_drain_gives_notice_and_then_refuses_what_is_new() -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm, PACELINE_DRAIN_NOTICE_S="0.05")
        assert (await Client(border).ask("POST", "/paceline/drain", headers=BEARER)).status == 202
        ready = await Client(border).ask("GET", "/readyz")
        assert (ready.status, ready.body) == (503, b"notice")
        assert (await Client(border).ask("POST", "/v1/completions", b"{}")).status == 200
        await until(lambda: border.life.phase is Phase.DRAINING)
        client = await Client(border).ask("POST", "/v1/completions", b"{}")
        assert (client.status, client.error["code"], client.headers[b"retry-after"]) == (503, "no_endpoint", b"1")
        assert (await Client(border).ask("GET", "/metrics")).status == 200
        assert counted(border, "paceline_engine_legs_total", result="refused") == 1
        assert (await Client(border).ask("POST", "/paceline/drain", headers=BEARER)).status == 202

    run(test)


def test_a_body_that_is_still_coming_when_the_drain_begins_is_refused() -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm)
        client, rest = Client(border), asyncio.Event()

        async def slowly() -> Message:
            await rest.wait()
            return {"type": "http.request", "body": b"{}"}

        async def send(message: Message) -> None:
            client.messages.append(message)

        task = asyncio.create_task(border({"type": "http", "method": "POST", "path": "/v1/completions"}, slowly, send))
        await Client(border).ask("POST", "/paceline/drain", headers=BEARER)
        await until(lambda: border.life.phase is Phase.DRAINING)
        rest.set()
        await task
        assert (client.status, vllm.seen) == (503, [])

    run(test)


async def drained(vllm: VLLM, path: str) -> Client:
    """A request that is open when the drain's time is over."""
    border = make_border(vllm, PACELINE_DRAIN_TIMEOUT_S="0.05")
    client = Client(border)
    task = asyncio.create_task(client.ask("POST", path, b"{}"))
    await vllm.started.wait()
    assert counted(border, "paceline_engine_legs_in_progress") == 1
    await Client(border).ask("POST", "/paceline/drain", headers=BEARER)
    await task
    assert counted(border, "paceline_engine_legs_in_progress") == 0
    assert counted(border, "paceline_engine_legs_total", result="failed") == 1
    return client


@pytest.mark.parametrize("deaf", [False, True], ids=["vLLM hears of it", "vLLM does not listen"])
def test_after_the_drain_a_stream_ends_with_an_error(deaf: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage, "LEAVE_S", 0.05)

    async def test() -> None:
        vllm = VLLM(deaf=deaf)
        client = await drained(vllm, "/stream")
        assert vllm.told is not deaf
        assert client.complete
        first, last = client.body.split(b"\n\n")[:2]
        assert first + b"\n\n" == EVENT
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_failed"
        assert b"[DONE]" not in client.body
        assert b"too late" not in client.body

    run(test)


def test_after_the_drain_one_without_an_answer_gets_503() -> None:
    async def test() -> None:
        client = await drained(VLLM(), "/silent")
        assert (client.status, client.error["code"], client.complete) == (503, "upstream_failed", True)

    run(test)


def test_after_the_drain_half_an_answer_that_is_no_stream_loses_its_connection() -> None:
    async def test() -> None:
        client = await drained(VLLM(), "/whole")
        assert client.body == EVENT
        assert not client.complete

    run(test)


def test_a_client_that_leaves_is_told_to_vllm_and_counted() -> None:
    async def test() -> None:
        vllm = VLLM()
        client = Client(make_border(vllm))
        task = asyncio.create_task(client.ask("POST", "/stream", b"{}"))
        await vllm.started.wait()
        client.left.set()
        await task
        assert vllm.told
        assert counted(client.border, "paceline_engine_legs_total", result="aborted") == 1

    run(test)


def test_what_vllm_raises_stays_an_error() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a bug")

    async def test() -> None:
        border = make_border(broken)
        with pytest.raises(RuntimeError, match="a bug"):
            await Client(border).ask("POST", "/v1/completions", b"{}")
        assert counted(border, "paceline_engine_legs_in_progress") == 0

    run(test)


def test_being_told_to_end_is_a_drain_without_notice() -> None:
    heard: list[int] = []

    async def test() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: heard.append(1))
        try:
            border = make_border(VLLM(), PACELINE_DRAIN_NOTICE_S="60", PACELINE_DRAIN_TIMEOUT_S="0.05")
            await border({"type": "lifespan"}, asyncio.Queue[Message]().get, asyncio.Queue[Message]().put)
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: border.life.phase is Phase.DRAINING and bool(heard))
            assert (await Client(border).ask("POST", "/v1/completions", b"{}")).status == 503
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    run(test)
    assert heard == [1]


def test_the_pre_stop_hook_reads_no_metric_of_the_border_as_unread_kv() -> None:
    border = make_border(VLLM())
    assert left_requests(generate_latest(border.registry)) == 0
