"""Calls of the HTTP/1.1 client against a real server or a scripted one, and a log of what a call is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from paceline_engine.http1 import Call, ClientError, ClientPool, Exchange, Header, Server, serve

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main()

    uvloop.run(bounded())


@asynccontextmanager
async def serving(handler: Callable[[Exchange], None], **over: Any) -> AsyncIterator[tuple[Server, ClientPool]]:
    server = await serve(handler, "127.0.0.1", 0)
    pool = ClientPool("127.0.0.1", server.port, **over)
    try:
        yield server, pool
    finally:
        pool.close()
        await server.close()


@asynccontextmanager
async def scripted(*scripts: Script, **over: Any) -> AsyncIterator[ClientPool]:
    """A raw server whose n-th connection runs the n-th script (the last one for all that follow)."""
    started = 0

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal started
        script = scripts[min(started, len(scripts) - 1)]
        started += 1
        try:
            await script(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(run, "127.0.0.1", 0)
    pool = ClientPool("127.0.0.1", server.sockets[0].getsockname()[1], **over)
    try:
        yield pool
    finally:
        pool.close()
        server.close()
        await asyncio.sleep(0.01)


def answering(*answers: bytes) -> Script:
    """Reads one request for each answer, sends it, then closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()

    return script


async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


class Log:
    """Listener that notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.body = bytearray()
        self.error: ClientError | None = None
        self.first_piece = asyncio.Event()
        self.over = asyncio.Event()

    def on_head(self, status: int, headers: list[Header]) -> None:
        self.heard.append(f"head {status}")

    def on_body(self, data: bytes) -> None:
        self.body += data
        self.first_piece.set()

    def on_end(self) -> None:
        self.heard.append("end")
        self.over.set()

    def on_error(self, error: ClientError) -> None:
        self.heard.append(f"error {error.kind}")
        self.error = error
        self.over.set()


def get(pool: ClientPool, log: Log) -> Call:
    return pool.request(b"GET", b"/", (), b"", log)


def echo(exchange: Exchange) -> None:
    exchange.respond(200, exchange.body, headers=[(b"x-method", exchange.method.encode())])


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
