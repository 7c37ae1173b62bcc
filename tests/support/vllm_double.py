"""A small ASGI application in vLLM's place, a client of the border before it, and what the border counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from paceline_engine.pd import KV_PARAMS
from paceline_engine.vllm.border import Border
from paceline_engine.vllm.passage import App, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry

TOKEN = "service-token"


NOW = 1_800_000_000.0


BEARER = {"x-paceline-token": TOKEN}


REMOTE = {"do_remote_prefill": True, "remote_block_ids": [[1]], "remote_engine_id": "e", "remote_request_id": "r"}


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


def counted(border: Border, name: str, **labels: str) -> float:
    registry = border.registry
    return registry.get_sample_value(name, labels) or 0.0
