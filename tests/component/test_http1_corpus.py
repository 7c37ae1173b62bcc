"""A corpus of ambiguous, oversized, slow and malformed messages: what our server believes, and what engines get of it.

In front of an engine the same bytes go through a router: nothing that two parsers could read differently is forwarded,
and every request counts once, whatever became of it.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter

import orjson
import pytest
from http1_answers import BROKEN, EVIL, USELESS, Broken
from http1_calls import Log, Script, get, run, scripted, serving
from http1_corpus import ASK, CORPUS, LAST, Sent, head
from paceline_engine.http1 import ErrorKind, Exchange, Limits, serve
from recording_upstream import ANSWER, End, Says, Upstream, routed, whole

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


async def _converse(port: int, sent: bytes) -> list[int]:
    """The statuses that come back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    answers = await reader.read()
    writer.transport.abort()
    return [int(status) for status in _STATUS.findall(answers)]


@pytest.mark.parametrize("sent", CORPUS, ids=lambda sent: sent.says)
def test_the_server_believes_only_what_cannot_be_read_in_two_ways(sent: Sent) -> None:
    async def main() -> None:
        handed: list[Exchange] = []

        def handler(exchange: Exchange) -> None:
            handed.append(exchange)
            exchange.respond(200)

        async with serving(handler) as (server, _):
            statuses = await _converse(server.port, sent.raw + LAST)
        bodies = tuple(exchange.body for exchange in handed if exchange.method == "POST")
        assert bodies == sent.bodies
        assert {exchange.path for exchange in handed} <= {"/v1/completions", "/last"}
        assert [exchange.path for exchange in handed].count("/last") == (not sent.refused)
        assert statuses == [200] * len(sent.bodies) + [sent.refused or 200]

    run(main)


@pytest.mark.parametrize("sent", CORPUS, ids=lambda sent: sent.says)
def test_the_router_forwards_nothing_else(sent: Sent) -> None:
    async def main() -> None:
        upstream = Upstream()
        async with routed(upstream) as up:
            statuses = await _converse(up.server.port, sent.raw + LAST)
            good = [body for body in sent.bodies if body == ASK]
            assert (upstream.forwarded, upstream.strange) == (good, [])
            assert statuses == [200 if body == ASK else 400 for body in sent.bodies] + [sent.refused or 404]
            rejected = len(sent.bodies) - len(good) + bool(sent.refused)
            assert await up.outcomes() == +Counter({"completed": len(good), "rejected": rejected})

    run(main)


def _closing(raw: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()

    return script


@pytest.mark.parametrize("answer", BROKEN, ids=lambda answer: answer.says)
def test_the_client_takes_no_broken_answer_for_a_whole_one(answer: Broken) -> None:
    async def main() -> None:
        async with scripted(_closing(answer.raw)) as pool:
            log = Log()
            get(pool, log)
            await log.over.wait()
            assert log.error is not None
            assert log.error.kind in (ErrorKind.PROTOCOL, ErrorKind.PARTIAL, ErrorKind.SENT)
            assert b"evil" not in log.body
            assert (pool.idle, pool.in_flight) == (0, 0)

    run(main)


@pytest.mark.parametrize("answer", [*BROKEN, *USELESS], ids=lambda answer: answer.says)
def test_the_router_relays_no_such_answer(answer: Broken) -> None:
    async def main() -> None:
        upstream = Upstream(always=Says(answer.raw, End.CLOSE))
        async with routed(upstream) as up:
            got = await up.post("/v1/completions", ASK)
            assert (got.status, orjson.loads(got.body)["error"]["code"]) == (502, "upstream_failed")
            assert b"evil" not in got.body
            assert set(upstream.forwarded) == {ASK}
            assert await up.outcomes() == {"upstream_failed": 1}

    run(main)


@pytest.mark.parametrize(
    "surplus",
    [
        pytest.param(whole(EVIL), id="whole"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 79\r\n\r\n", id="a head that waits for its body"),
        pytest.param(b"HTTP/1.1 2", id="half a head"),
    ],
)
def test_an_answer_that_nobody_asked_for_reaches_nobody(surplus: bytes) -> None:
    async def main() -> None:
        upstream = Upstream(always=Says(whole(ANSWER) + surplus))
        async with routed(upstream) as up:
            for _ in range(5):
                assert (await up.post("/v1/completions", ASK)).body == ANSWER
            assert len(upstream.forwarded) == 5

    run(main)


_SLOW = Limits(header_timeout_s=0.1, body_timeout_s=0.1)


async def _drip(port: int, sent: bytes, again: bytes) -> list[int]:
    """The statuses that come back while `again` is sent again and again, until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reading = asyncio.ensure_future(reader.read())
    writer.write(sent)
    while not reading.done():
        await asyncio.wait((reading,), timeout=0.01)
        if not writer.transport.is_closing():
            writer.write(again)
    writer.transport.abort()
    return [int(status) for status in _STATUS.findall(reading.result())]


_CHUNKED = head(b"transfer-encoding: chunked")
_DRIPS = [
    ("a request line", b"POST /", b"a", []),
    ("a name", b"POST / HTTP/1.1\r\na", b"a", []),
    ("a value", b"POST / HTTP/1.1\r\na: ", b"a", []),
    ("fields", b"POST / HTTP/1.1\r\n", b"a: b\r\n", []),
    ("a body", head(b"content-length: 100000"), b"a", []),
    ("leading zeros of a size", _CHUNKED, b"0", []),
    ("an extension", _CHUNKED + b"1;", b"a", []),
    ("chunks", _CHUNKED, b"1\r\na\r\n", []),
    ("a trailer", _CHUNKED + b"0\r\na: ", b"b", []),
    ("trailers", _CHUNKED + b"0\r\n", b"a: b\r\n", []),
    ("a second request's head", head(b"content-length: 29") + ASK + b"POST /", b"a", [200]),
    ("a body that it was asked for", head(b"content-length: 100000", b"expect: 100-continue"), b"a", [100]),
    ("nothing, when it was asked for the body", head(b"content-length: 9", b"expect: 100-continue"), b"", [100]),
]


@pytest.mark.parametrize(("sent", "again", "before"), [row[1:] for row in _DRIPS], ids=[row[0] for row in _DRIPS])
def test_a_client_that_drips_is_cut_off_in_time(sent: bytes, again: bytes, before: list[int]) -> None:
    async def main() -> None:
        handed: list[Exchange] = []

        def handler(exchange: Exchange) -> None:
            handed.append(exchange)
            exchange.respond(200)

        server = await serve(handler, "127.0.0.1", 0, limits=_SLOW)
        try:
            assert await _drip(server.port, sent, again) == [*before, 408]
            assert len(handed) == before.count(200)
        finally:
            await server.close()

    run(main)


_UNFINISHED = [
    ("a head", head(b"content-length: 29")[:-1]),
    ("a body", head(b"content-length: 29") + ASK[:-1]),
    ("a chunk", _CHUNKED + b"1d\r\n" + ASK[:-1]),
    ("chunks without the last", _CHUNKED + b"1d\r\n" + ASK + b"\r\n"),
    ("a last chunk without its end", _CHUNKED + b"1d\r\n" + ASK + b"\r\n0\r\n"),
]


@pytest.mark.parametrize("sent", [row[1] for row in _UNFINISHED], ids=[row[0] for row in _UNFINISHED])
def test_a_request_that_is_never_whole_reaches_no_engine(sent: bytes) -> None:
    async def main() -> None:
        upstream = Upstream()
        async with routed(upstream) as up:
            reader, writer = await asyncio.open_connection("127.0.0.1", up.server.port)
            writer.write(sent)
            writer.write_eof()
            assert await reader.read() == b""
            writer.transport.abort()
            assert (upstream.forwarded, upstream.strange) == ([], [])
            assert await up.outcomes() == {}

    run(main)
