"""The border before vLLM, with a small application in its place: what passes, who is refused, and how it all ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from paceline_engine.drain import left_requests
from paceline_engine.pd import KV_PARAMS, prefill_leg
from paceline_engine.vllm import passage
from paceline_engine.vllm.border import Border
from paceline_engine.vllm.life import Phase
from paceline_engine.vllm.passage import App, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, generate_latest

TOKEN = "service-token"
NOW = 1_800_000_000.0
BEARER = {"x-paceline-token": TOKEN}
REMOTE = {"do_remote_prefill": True, "remote_block_ids": [[1]], "remote_engine_id": "e", "remote_request_id": "r"}
REMOTE |= {"remote_host": "127.0.0.1", "remote_port": 5600, "remote_num_tokens": 3, "tp_size": 1}
EVENT = b'data: {"choices":[]}\n\n'


@dataclass
class VLLM:
    """Answers as vLLM would; `streaming` holds a stream open until it is told that its client left."""

    health: int = 200
    seen: list[tuple[Scope, bytes]] = field(default_factory=list)
    told: bool = False
    deaf: bool = False  # it does not listen for clients that leave
    started: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        if scope["path"] == "/health":
            await answer(send, self.health, b"")
            return
        body = (await receive())["body"]
        self.seen.append((scope, body))
        match scope["path"]:
            case "/stream" | "/whole":
                await self._hold(scope["path"] == "/stream", receive, send)
            case "/silent":
                self.started.set()
                await receive()
                self.told = True
            case _:
                reply = {"id": "x", KV_PARAMS: {**REMOTE, "remote_blocks_expiry_time": None}}
                await answer(send, 200, json.dumps(reply).encode())

    async def _hold(self, events: bool, receive: Receive, send: Send) -> None:
        kind = b"text/event-stream; charset=utf-8" if events else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        self.started.set()
        if self.deaf:
            await asyncio.Event().wait()
        assert (await receive())["type"] == "http.disconnect"
        self.told = True
        await send({"type": "http.response.body", "body": b"too late", "more_body": False})


async def answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


@dataclass
class Client:
    """One request and what came back; `left` is when the client leaves."""

    border: Border
    messages: list[Message] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, method: str, path: str, *parts: bytes, headers: dict[str, str] | None = None) -> Client:
        sent = [(k.title().encode(), v.encode("latin-1")) for k, v in (headers or {}).items()]
        sent.append((b"transfer-encoding", b"chunked"))
        scope = {"type": "http", "method": method, "path": path, "headers": sent, "query_string": b""}
        chunks = list(parts) or [b""]

        async def receive() -> Message:
            if chunks:
                return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            self.messages.append(message)

        await self.border(scope, receive, send)
        return self

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(m["body"] for m in self.messages[1:])

    @property
    def complete(self) -> bool:
        return not self.messages[-1].get("more_body", False)

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.body)["error"])


def make_border(app: App, **environ: str) -> Border:
    return Border(app, {"PACELINE_TOKEN": TOKEN, **environ}, lambda: NOW, CollectorRegistry())


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come to hold")


def counted(border: Border, name: str, **labels: str) -> float:
    registry = border.registry
    return registry.get_sample_value(name, labels) or 0.0


# --- what passes


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps({"prompt": "a", KV_PARAMS: REMOTE}).encode(),
        json.dumps({"prompt": "a", KV_PARAMS: REMOTE, "x": float("nan")}).encode(),
        json.dumps({"prompt": "a", KV_PARAMS: REMOTE}).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps({KV_PARAMS: REMOTE}).encode(),
        b'{"kv_transfer_p\\u0061rams": {"do_remote_prefill": true}, "s": "\\ud800"}',
        b'{"kv_transfer_params": {"do_remote_prefill": true}, "kv_transfer_params": 1}',
    ],
    ids=["plain", "with a NaN", "in UTF-16", "with a mark in front", "escaped", "twice"],
)
def test_what_vllm_could_read_of_ours_is_gone_however_it_is_written(raw: bytes) -> None:
    async def test() -> None:
        vllm = VLLM()
        client = await Client(make_border(vllm)).ask("POST", "/v1/completions", raw[:9], raw[9:])
        scope, body = vllm.seen[0]
        assert KV_PARAMS not in json.loads(body)
        assert dict(scope["headers"])[b"content-length"] == str(len(body)).encode()
        assert b"transfer-encoding" not in dict(scope["headers"])
        assert client.status == 200
        assert counted(client.border, "paceline_dropped_fields_total") == 1

    run(test)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe\x00", b'{"prompt": "a",  "n": 1}'], ids=str)
def test_what_needs_no_change_passes_byte_by_byte(raw: bytes) -> None:
    async def test() -> None:
        vllm = VLLM()
        await Client(make_border(vllm)).ask("POST", "/v1/completions", raw)
        assert vllm.seen[0][1] == raw

    run(test)


def test_objectives_pass_with_the_token_and_no_header_of_ours_does() -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm)
        objective = {"x-slo-class": "chat", "x-slo-tpot-ms": "30", "x-prefiller-host-port": "1.2.3.4:5"}
        await Client(border).ask("POST", "/v1/completions", b'{"prompt":"a"}', headers=objective)
        await Client(border).ask("POST", "/v1/completions", b'{"prompt":"a"}', headers={**objective, **BEARER})
        (scope, stranger), (_, bearer) = vllm.seen
        assert stranger == b'{"prompt":"a"}'
        assert json.loads(bearer)["vllm_xargs"] == {"slo_class": "chat", "slo_tpot_ms": 30.0}
        assert not [k for k, _ in scope["headers"] if k.startswith((b"x-slo", b"x-paceline", b"x-prefiller"))]

    run(test)


@pytest.mark.parametrize("token", ["", "service-toke", "service-token ", "SERVICE-TOKEN", "\xff"])
def test_a_token_is_right_or_wrong(token: str) -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm)
        headers = {"x-paceline-token": token, "x-slo-tpot-ms": "30"}
        await Client(border).ask("POST", "/v1/completions", b'{"prompt":"a"}', headers=headers)
        assert vllm.seen[0][1] == b'{"prompt":"a"}'
        assert (await Client(border).ask("POST", "/paceline/drain", headers=headers)).status == 403
        assert border.life.phase is Phase.READY

    run(test)


def test_nobody_is_trusted_where_no_token_is_set() -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm, PACELINE_TOKEN="")
        for token in ("", TOKEN):
            client = await Client(border).ask("POST", "/paceline/drain", headers={"x-paceline-token": token})
            assert (client.status, client.error["code"]) == (403, "forbidden")

    run(test)


@pytest.mark.parametrize(
    ("headers", "raw", "status", "says"),
    [
        ({"x-slo-tpot-ms": "-1"}, b"{}", 400, "x-slo-tpot-ms must be"),
        ({"x-slo-ttft-remaining-ms": "1e99"}, b"{}", 400, "x-slo-ttft-remaining-ms must be"),
        ({}, b'{"kv_transfer_params": 7}', 400, "kv_transfer_params must be an object"),
        ({}, b'{"prompt":"a","kv_transfer_params":{"do_remote_prefill":true}}', 400, "is missing"),
        ({}, b"[" * 100_000 + b"]" * 100_000, 400, "nested too deeply"),
        ({}, b" " * (1 << 19), 413, "larger than"),
    ],
    ids=["a negative pace", "a huge limit", "no object", "no host", "a deep hole", "a body without end"],
)
def test_what_cannot_be_is_refused_and_told_why(headers: dict[str, str], raw: bytes, status: int, says: str) -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm)
        border.rules = replace(border.rules, max_body_bytes=1 << 18)
        client = await Client(border).ask("POST", "/v1/completions", raw[:9], raw[9:], headers={**headers, **BEARER})
        assert (client.status, client.error["type"]) == (status, "invalid_request_error")
        assert says in client.error["message"]
        assert vllm.seen == []
        assert counted(border, "paceline_engine_legs_total", result="rejected") == 1

    run(test)


def test_leg_1_is_answered_with_the_end_of_its_lease() -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm, PACELINE_KV_LEASE_S="6")
        leg = json.dumps(prefill_leg({"prompt": [1, 2, 3]})).encode()
        client = await Client(border).ask("POST", "/v1/completions", leg, headers=BEARER)
        params = json.loads(client.body)[KV_PARAMS]
        assert params == {**REMOTE, "remote_blocks_expiry_time": NOW + 6}
        assert client.headers[b"content-length"] == str(len(client.body)).encode()
        assert json.loads(vllm.seen[0][1])["min_tokens"] == 1
        leg = json.dumps({"prompt": [1, 2, 3], KV_PARAMS: params}).encode()
        await Client(border).ask("POST", "/v1/completions", leg, headers=BEARER)
        assert json.loads(vllm.seen[1][1])[KV_PARAMS] == {**REMOTE, "do_remote_decode": False}

    run(test)


def test_kv_whose_lease_may_be_over_is_computed_again_and_counted() -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm)
        leg = {"prompt": [1, 2, 3], KV_PARAMS: {**REMOTE, "remote_blocks_expiry_time": NOW + 14}}
        await Client(border).ask("POST", "/v1/completions", json.dumps(leg).encode(), headers=BEARER)
        assert KV_PARAMS not in json.loads(vllm.seen[0][1])
        assert counted(border, "paceline_kv_transfer_failures_total", cause="late") == 1

    run(test)


# --- health


@pytest.mark.parametrize(("health", "status", "says"), [(200, 200, b"ready"), (503, 503, b"dead"), (500, 503, b"dead")])
def test_it_is_ready_while_vllm_is_well(health: int, status: int, says: bytes) -> None:
    async def test() -> None:
        client = await Client(make_border(VLLM(health))).ask("GET", "/readyz")
        assert (client.status, client.body) == (status, says)

    run(test)


def test_reading_routes_are_vllms_own() -> None:
    async def test() -> None:
        vllm = VLLM()
        assert (await Client(make_border(vllm)).ask("GET", "/v1/models")).status == 200
        assert vllm.seen[0][0]["path"] == "/v1/models"

    run(test)


# --- the end


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
