"""The client's connections: reused, found closed, idle for too long, bounded, and closed with their pool."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest
from http1_calls import OK, Log, answering, echo, get, run, scripted, serving
from paceline_engine.http1 import Call, ClientError, ErrorKind, Exchange, fetch
from waiting import until


def test_a_reused_connection_found_closed_is_replaced_once() -> None:
    async def main() -> None:
        async def answer_then_drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await answering(OK)(reader, writer)
            await reader.readuntil(b"\r\n\r\n")  # the second request, closed without a byte

        async with scripted(answer_then_drop, answering(OK)) as pool:
            for _ in range(2):
                assert (await fetch(pool, b"POST", b"/", body=b"", timeout_s=5)).body == b"ok"

    run(main)


def test_a_second_failure_is_reported_as_sent() -> None:
    async def main() -> None:
        async def answer_then_drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await answering(OK)(reader, writer)
            await reader.readuntil(b"\r\n\r\n")

        async with scripted(answer_then_drop, answering(b"")) as pool:
            await fetch(pool, b"GET", b"/", timeout_s=5)
            with pytest.raises(ClientError) as failure:
                await fetch(pool, b"GET", b"/", timeout_s=5)
            assert failure.value.kind is ErrorKind.SENT

    run(main)


def test_an_answer_begun_on_a_reused_connection_is_not_asked_for_again() -> None:
    async def main() -> None:
        async with scripted(answering(OK, b"HTTP/1.1 2"), answering(OK)) as pool:
            await fetch(pool, b"GET", b"/", timeout_s=5)
            with pytest.raises(ClientError) as failure:
                await fetch(pool, b"GET", b"/", timeout_s=5)
            assert failure.value.kind is ErrorKind.PARTIAL

    run(main)


def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    async def main() -> None:
        async with scripted(answering(OK + OK), answering(OK)) as pool:
            for _ in range(2):
                response = await fetch(pool, b"GET", b"/", timeout_s=5)
                assert (response.headers, response.body) == ([(b"content-length", b"2")], b"ok")
            await until(lambda: pool.idle == 0)

    run(main)


def test_a_call_aborted_while_connecting_leaves_a_usable_connection() -> None:
    async def main() -> None:
        async with serving(echo) as (server, pool):
            log = Log()
            get(pool, log).abort()
            await until(lambda: pool.idle > 0)
            assert log.heard == []
            assert (await fetch(pool, b"GET", b"/", timeout_s=5)).status == 200
            assert server.open_connections == 1

    run(main)


def test_idle_connections_are_reused_last_in_first_out_and_bounded() -> None:
    async def main() -> None:
        async with serving(echo, max_idle=2) as (server, pool):
            await asyncio.gather(*(fetch(pool, b"GET", b"/", timeout_s=5) for _ in range(5)))
            assert pool.idle == 2
            await until(lambda: server.open_connections <= 2)
            for _ in range(4):
                await fetch(pool, b"GET", b"/", timeout_s=5)
            assert server.open_connections == 2

    run(main)


def test_an_idle_connection_is_closed_after_its_time() -> None:
    async def main() -> None:
        async with serving(echo, idle_timeout_s=0.03) as (server, pool):
            await fetch(pool, b"GET", b"/", timeout_s=5)
            await until(lambda: not server.open_connections)
            assert pool.idle == 0

    run(main)


def test_a_closed_pool_lets_calls_end_and_takes_no_more() -> None:
    held: list[Exchange] = []

    async def main() -> None:
        async with serving(held.append) as (server, pool):
            log = Log()
            get(pool, log)
            await until(lambda: bool(held))
            pool.close()
            with pytest.raises(RuntimeError):
                get(pool, Log())
            held[0].respond(200)
            await log.over.wait()
            assert log.heard == ["head 200", "end"]
            await until(lambda: not server.open_connections)

    run(main)


def test_neither_side_leaves_cycles_for_the_collector() -> None:
    class Relay(Log):
        call: Call
        exchange: Exchange

        def on_end(self) -> None:
            self.exchange.respond(200)

    async def main() -> None:
        async with serving(echo) as (_, upstream):
            alive: list[weakref.ref[Relay]] = []

            def relay(exchange: Exchange) -> None:
                listener = Relay()
                listener.exchange = exchange
                listener.call = upstream.request(b"GET", b"/", (), b"", listener)
                exchange.on_gone = listener.call.abort
                alive.append(weakref.ref(listener))

            async with serving(relay) as (_, pool):
                for _ in range(3):
                    await fetch(pool, b"GET", b"/", timeout_s=5)
            assert [ref() for ref in alive] == [None] * 3

    gc.disable()
    try:
        run(main)
    finally:
        gc.enable()
