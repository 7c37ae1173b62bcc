"""The server on real sockets: refusals that can be read, disconnects, slow peers, timeouts, drain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from paceline_engine.http1 import Exchange, Limits, Server, serve

_GET = b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n"


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main()

    uvloop.run(bounded())


def _echo(exchange: Exchange) -> None:
    exchange.respond(200, exchange.body)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (what is waited for tells nobody)
        await asyncio.sleep(0.001)


@asynccontextmanager
async def _serving(handler: Callable[[Exchange], None] = _echo, limits: Limits | None = None) -> AsyncIterator[Server]:
    server = await serve(handler, "127.0.0.1", 0, limits=limits)
    try:
        yield server
    finally:
        await server.close()
        assert server.open_connections == 0


@asynccontextmanager
async def _connected(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)


def test_a_request_and_the_next_on_the_same_connection() -> None:
    async def main() -> None:
        async with _serving() as server, _connected(server) as (reader, writer):
            for body in (b"a", b"", b"c" * 300_000):
                writer.write(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
                assert await _read_answer(reader) == (200, body)
            assert server.open_connections == 1

    _run(main)


@pytest.mark.parametrize("declared", [True, False], ids=["by its length", "by its chunks"])
def test_a_client_in_the_middle_of_100_mb_reads_the_refusal(declared: bool) -> None:
    async def main() -> None:
        async with _serving() as server, _connected(server) as (reader, writer):
            piece = b"x" * 2**20
            writer.write(b"POST / HTTP/1.1\r\nhost: h\r\n")
            writer.write(
                b"content-length: %d\r\n\r\n" % (100 * 2**20) if declared else b"transfer-encoding: chunked\r\n\r\n"
            )
            for _ in range(100):
                writer.write(piece if declared else b"100000\r\n%b\r\n" % piece)
                await writer.drain()
            status, body = await _read_answer(reader)
            assert status == 413
            assert json.loads(body)["error"]["type"] == "invalid_request_error"
            assert await reader.read() == b""

    _run(main)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nho", 408, id="a head that stops"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nab", 408, id="a body that stops"),
        pytest.param(b"\x16\x03\x01", 400, id="no HTTP at all"),
    ],
)
def test_refusals_end_the_connection(sent: bytes, status: int) -> None:
    async def main() -> None:
        limits = Limits(header_timeout_s=0.05, body_timeout_s=0.05)
        async with _serving(limits=limits) as server, _connected(server) as (reader, writer):
            writer.write(sent)
            assert (await _read_answer(reader))[0] == status
            assert await reader.read() == b""

    _run(main)


def test_a_refused_client_that_stays_is_cut_off() -> None:
    async def main() -> None:
        async with _serving(limits=Limits(linger_timeout_s=0.05)) as server, _connected(server) as (reader, writer):
            writer.write(b"nonsense\r\n\r\n")
            await _read_answer(reader)
            await _until(lambda: not server.open_connections)

    _run(main)


def test_an_idle_connection_is_closed_without_an_answer() -> None:
    async def main() -> None:
        limits = Limits(idle_timeout_s=0.05)
        async with _serving(limits=limits) as server, _connected(server) as (reader, writer):
            assert await reader.read() == b""
            writer.close()

    _run(main)


def test_an_answer_in_progress_outlives_every_timeout_of_the_request() -> None:
    held: list[Exchange] = []

    async def main() -> None:
        limits = Limits(idle_timeout_s=0.3, header_timeout_s=0.3, body_timeout_s=0.3)
        async with _serving(held.append, limits) as server, _connected(server) as (reader, writer):
            writer.write(_GET[:10])
            await asyncio.sleep(0.01)
            writer.write(_GET[10:])
            await asyncio.sleep(0.7)
            held[0].respond(200, b"late")
            assert await _read_answer(reader) == (200, b"late")

    _run(main)


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
def test_a_client_that_leaves_is_noticed(how: str) -> None:
    async def main() -> None:
        gone = asyncio.Event()

        def handler(exchange: Exchange) -> None:
            exchange.on_gone = gone.set
            exchange.start(200)
            exchange.write(b"data: a\n\n")

        async with _serving(handler) as server, _connected(server) as (reader, writer):
            writer.write(_GET)
            await reader.readuntil(b"data: a\n\n")
            if how == "close":
                writer.close()
            elif how == "half-close":
                writer.write_eof()
            else:
                writer.transport.abort()
            await gone.wait()
            await _until(lambda: not server.open_connections)

    _run(main)


def test_a_slow_reader_holds_the_handler_back() -> None:
    async def main() -> None:
        total = 300
        piece = b"x" * 65536
        written = 0
        most_ahead = 0

        def pump(exchange: Exchange) -> None:
            nonlocal written
            while written < total:
                written += 1
                if not exchange.write(piece):
                    return
            exchange.on_writable = None
            exchange.end()

        def handler(exchange: Exchange) -> None:
            exchange.on_writable = lambda: pump(exchange)
            exchange.start(200)
            pump(exchange)

        async with _serving(handler) as server, _connected(server) as (reader, writer):
            writer.write(_GET)
            await reader.readuntil(b"\r\n\r\n")
            received = 0
            while received < total * len(piece):
                size = int(await reader.readline(), 16)
                await reader.readexactly(size + 2)
                received += size
                most_ahead = max(most_ahead, written * len(piece) - received)
            assert await reader.readline() == b"0\r\n"
        assert written == total
        assert most_ahead < total * len(piece) // 2

    _run(main)


@pytest.mark.parametrize("requests", [pytest.param(1, id="one"), pytest.param(50, id="with more requests in the pipe")])
def test_a_client_that_never_reads_its_answer_is_cut_off(requests: int) -> None:
    async def main() -> None:
        limits = Limits(idle_timeout_s=0.05)
        async with (
            _serving(lambda e: e.respond(200, b"x" * 2**24), limits) as server,
            _connected(server) as (_, writer),
        ):
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # typed as the writing half only
            writer.write(_GET * requests)
            await _until(lambda: server.open_connections == 1)
            await _until(lambda: server.open_connections == 0)

    _run(main)


def test_a_finished_answer_that_is_read_slowly_arrives_whole() -> None:
    async def main() -> None:
        body = b"x" * (24 * 2**20)
        async with (
            _serving(lambda e: e.respond(200, body), Limits(idle_timeout_s=0.5)) as server,
            _connected(server) as (reader, writer),
        ):
            writer.write(_GET)
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(12):
                await asyncio.sleep(0.1)
                await reader.readexactly(2 * 2**20)

    _run(main)


def test_drain_lets_an_answer_end_and_refuses_new_connections() -> None:
    held: list[Exchange] = []

    async def main() -> None:
        server = await serve(held.append, "127.0.0.1", 0)
        async with _connected(server) as (idle_reader, _), _connected(server) as (reader, writer):
            writer.write(_GET)
            await _until(lambda: bool(held) and server.open_connections == 2)
            draining = asyncio.create_task(server.drain(10.0))
            assert await idle_reader.read() == b""
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", server.port)
            held[0].respond(200, b"ok")
            assert b"connection: close\r\n" in await reader.read()
            await draining
            assert server.open_connections == 0

    _run(main)


def test_drain_cuts_off_what_does_not_end_in_time() -> None:
    async def main() -> None:
        gone = asyncio.Event()

        def handler(exchange: Exchange) -> None:
            exchange.on_gone = gone.set
            exchange.start(200)
            exchange.write(b"a")

        server = await serve(handler, "127.0.0.1", 0)
        async with _connected(server) as (reader, writer):
            writer.write(_GET)
            await reader.readuntil(b"a\r\n")
            await server.drain(0.02)
            assert gone.is_set()
            assert server.open_connections == 0

    _run(main)


def test_a_port_in_use_is_an_os_error() -> None:
    async def main() -> None:
        async with _serving() as server:
            with pytest.raises(OSError):
                await serve(_echo, "127.0.0.1", server.port)

    _run(main)
