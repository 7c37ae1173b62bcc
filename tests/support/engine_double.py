"""A tiny engine for tests of the router: vLLM's paths over loopback, answers as a test scripts them.

`script` maps a request to a `Reply`; the default answers with as many words as `max_tokens` asks for. `others` answer
paths of their own, with a JSON body or a status. Everything that was asked is kept in `asked`, aborted ones in
`aborted`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from paceline_engine.http1 import Exchange, Server, serve

METRICS = (
    'vllm:cache_config_info{block_size="16",num_gpu_blocks="20000"} 1\n'
    'paceline_step_time_scale{regime="decode",table="a100-sxm-80gb",model="llama-3.1-8b",tensor="1"} 1.1\n'
    'paceline_step_time_scale{regime="mixed",table="a100-sxm-80gb",model="llama-3.1-8b",tensor="1"} 1.2\n'
)
KV = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_engine_id": "e-1",
    "remote_request_id": "r-1",
    "remote_host": "127.0.0.1",
    "remote_port": 5600,
    "remote_num_tokens": 3,
    "remote_blocks_expiry_time": 1e12,
    "tp_size": 1,
    "something_new": [1, {"a": None}],
}


@dataclass(frozen=True, slots=True)
class Reply:
    """`status` other than 200: an error. `break_after`: the connection is cut after so many content events.

    `gap_s`: between two events of a stream, before an answer that is not streamed. `wait_s`: before a stream begins.
    `stop_after`: it says nothing more after so many content events, and keeps the connection.
    """

    status: int = 200
    message: str = "scripted"
    break_after: int | None = None
    error_after: int | None = None
    error_code: int = 500
    stop_after: int | None = None
    gap_s: float = 0.0
    wait_s: float = 0.0
    hang: bool = False
    without_kv: bool = False


@dataclass(slots=True)
class Asked:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at_s: float


@dataclass(slots=True)
class EngineDouble:
    """One engine on a kernel-chosen port."""

    script: Callable[[dict[str, Any]], Reply] = lambda body: Reply()
    others: dict[str, Callable[[dict[str, Any]], dict[str, Any] | int]] = field(default_factory=dict)
    ready: bool = True
    steps: int = 0  # that its page counts; 0: it counts none
    asked: list[Asked] = field(default_factory=list)
    aborted: list[Asked] = field(default_factory=list)
    port: int = 0
    _server: Server | None = None

    async def start(self, port: int = 0) -> EngineDouble:
        self._server = await serve(self._handle, "127.0.0.1", port)
        self.port = self._server.port
        return self

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _handle(self, exchange: Exchange) -> None:
        if exchange.path == "/readyz":
            exchange.respond(200 if self.ready else 503)
        elif exchange.path == "/metrics":
            page = METRICS + (f'paceline_step_seconds_count{{kind="measured"}} {self.steps}\n' if self.steps else "")
            exchange.respond(200, page.encode(), headers=[(b"x-paceline-simulated", b"1")])
        elif exchange.method == "POST":
            self._answer(exchange)
        else:
            exchange.respond(404)

    def _answer(self, exchange: Exchange) -> None:
        body = orjson.loads(exchange.body)
        asked = Asked(exchange.path, {k.decode(): v.decode() for k, v in exchange.headers}, body, exchange.received_at)
        self.asked.append(asked)
        reply = self.script(body)
        if exchange.path in self.others and not reply.hang:
            found = self.others[exchange.path](body)
            if isinstance(found, int):
                exchange.respond(found, orjson.dumps({"error": {"message": "scripted", "type": "x", "code": found}}))
            else:
                _respond(exchange, found)
        elif reply.hang:
            exchange.on_gone = lambda: self.aborted.append(asked)
        elif reply.status != 200:
            error = {"error": {"message": reply.message, "type": "x", "code": reply.status}}
            exchange.respond(reply.status, orjson.dumps(error))
        elif body.get("stream"):
            exchange.on_gone = lambda: self.aborted.append(asked)
            streaming = _Streaming(exchange, body, reply)
            if reply.wait_s:
                asyncio.get_running_loop().call_later(reply.wait_s, streaming.begin)
            else:
                streaming.begin()
        else:
            asyncio.get_running_loop().call_later(reply.gap_s, _respond, exchange, _whole(body, reply))


def _respond(exchange: Exchange, answer: dict[str, Any]) -> None:
    exchange.respond(200, orjson.dumps(answer), headers=[(b"x-paceline-simulated", b"1")])


def _tokens(body: dict[str, Any]) -> int:
    return int(body.get("max_completion_tokens") or body.get("max_tokens") or 4)


def _usage(body: dict[str, Any]) -> dict[str, int]:
    prompt = body.get("prompt", [1, 2, 3])
    n = len(prompt) if isinstance(prompt, list) else 3
    return {"prompt_tokens": n, "completion_tokens": _tokens(body), "total_tokens": n + _tokens(body)}


def _whole(body: dict[str, Any], reply: Reply) -> dict[str, Any]:
    text = "".join(f" w{i}" for i in range(_tokens(body)))
    chat = "messages" in body
    choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    answer: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion" if chat else "text_completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": _usage(body),
    }
    if (body.get("kv_transfer_params") or {}).get("do_remote_decode"):
        answer["kv_transfer_params"] = None if reply.without_kv else KV
    return answer


class _Streaming:
    """Writes one event after the other, `gap_s` apart."""

    def __init__(self, exchange: Exchange, body: dict[str, Any], reply: Reply) -> None:
        self._exchange, self._body, self._reply = exchange, body, reply
        self._sent = 0

    def begin(self) -> None:
        if self._exchange.gone:
            return
        self._exchange.start(200, [(b"content-type", b"text/event-stream"), (b"x-paceline-simulated", b"1")])
        self._exchange.write(b"")  # the head alone: a cut from here on is one amid an answer
        if "messages" in self._body:
            self._event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
        self._next()

    def _next(self) -> None:
        exchange, reply = self._exchange, self._reply
        while not exchange.gone:
            if self._sent == reply.break_after:
                exchange.abort()
                return
            if self._sent == reply.stop_after:
                return
            if self._sent == reply.error_after:
                exchange.write(b'data: {"error": {"message": "engine dead", "code": %d}}\n\n' % reply.error_code)
                exchange.end()
                return
            if self._sent == _tokens(self._body):
                self._finish()
                return
            self._token()
            if reply.gap_s:
                asyncio.get_running_loop().call_later(reply.gap_s, self._next)
                return

    def _token(self) -> None:
        word = f" w{self._sent}"
        self._sent += 1
        last = "length" if self._sent == _tokens(self._body) else None
        if "messages" in self._body:
            self._event([{"index": 0, "delta": {"content": word}, "finish_reason": last}])
        else:
            self._event([{"index": 0, "text": word, "finish_reason": last}])

    def _finish(self) -> None:
        if (self._body.get("stream_options") or {}).get("include_usage"):
            self._event([], usage=_usage(self._body))
        self._exchange.write(b"data: [DONE]\n\n")
        self._exchange.end()

    def _event(self, choices: list[dict[str, Any]], **more: object) -> None:
        kind = "chat.completion.chunk" if "messages" in self._body else "text_completion"
        event = {"id": "x", "object": kind, "created": 1, "model": "m", "choices": choices, **more}
        self._exchange.write(b"data: " + orjson.dumps(event) + b"\n\n")
