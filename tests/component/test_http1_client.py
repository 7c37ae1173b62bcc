"""The client on real sockets, against our server and against servers that misbehave."""

from __future__ import annotations

import asyncio

import pytest
from http1_calls import Log, answering, echo, get, run, scripted, serving, stay_silent
from paceline_engine.http1 import ClientError, ClientPool, ErrorKind, Exchange, Header, fetch


@pytest.mark.parametrize("body", [b"", b"hello", b"x" * (5 * 2**20)], ids=["empty", "small", "5 MiB"])
def test_what_is_sent_comes_back(body: bytes) -> None:
    async def main() -> None:
        async with serving(echo) as (server, pool):
            for _ in range(3):
                response = await fetch(pool, b"POST", b"/x", body=body, timeout_s=5)
                assert (response.status, response.body) == (200, body)
                assert response.header(b"x-method") == b"POST"
            assert (server.open_connections, pool.idle, pool.in_flight) == (1, 1, 0)

    run(main)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab", b"ab", id="a length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1;x\r\nb\r\n0\r\nt: u\r\n\r\n",
            b"ab",
            id="chunks and a trailer",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nab", b"ab", id="until the connection closes"),
        pytest.param(b"HTTP/1.0 200 OK\r\n\r\nab", b"ab", id="HTTP/1.0"),
        pytest.param(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nl: m\r\n\r\n"
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab",
            b"ab",
            id="interim answers are skipped",
        ),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", b"", id="no content"),
        pytest.param(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", b"", id="not modified"),
        pytest.param(b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", b"", id="no reason phrase"),
    ],
)
def test_answers_are_read_however_they_are_framed(answer: bytes, body: bytes) -> None:
    async def main() -> None:
        async with scripted(answering(answer)) as pool:
            assert (await fetch(pool, b"GET", b"/", timeout_s=5)).body == body

    run(main)


_CUT_SHORT: list[tuple[str, bytes, ErrorKind, list[str]]] = [
    ("closed without a byte", b"", ErrorKind.SENT, []),
    ("closed in the head", b"HTTP/1.1 200 OK\r\nconte", ErrorKind.PARTIAL, []),
    ("closed after the head", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", ErrorKind.PARTIAL, ["head 200"]),
    ("closed in the body", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", ErrorKind.PARTIAL, ["head 200"]),
    (
        "closed before the last chunk",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n",
        ErrorKind.PARTIAL,
        ["head 200"],
    ),
    ("not HTTP", b"SSH-2.0-OpenSSH_9.6\r\n", ErrorKind.PROTOCOL, []),
    ("HTTP/2", b"\0\0\x12\x04\0\0\0\0\0", ErrorKind.PROTOCOL, []),
    (
        "a length and chunks",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ErrorKind.PROTOCOL,
        [],
    ),
    (
        "a broken chunk after a good one",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\nZZ\r\n",
        ErrorKind.PROTOCOL,
        ["head 200"],
    ),
    (
        "a protocol switch",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        ErrorKind.PROTOCOL,
        [],
    ),
    ("an endless head", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 400_000, ErrorKind.PROTOCOL, []),
    ("too many header bytes", b"HTTP/1.1 200 OK\r\n" + b"x: yyyyyyyy\r\n" * 9000, ErrorKind.PROTOCOL, []),
]


@pytest.mark.parametrize(
    ("answer", "kind", "before"), [row[1:] for row in _CUT_SHORT], ids=[row[0] for row in _CUT_SHORT]
)
def test_a_broken_answer_is_one_error(answer: bytes, kind: ErrorKind, before: list[str]) -> None:
    async def main() -> None:
        async with scripted(answering(answer)) as pool:
            log = Log()
            get(pool, log)
            await log.over.wait()
            await asyncio.sleep(0.01)
            assert log.heard == [*before, f"error {kind}"]
            assert (pool.idle, pool.in_flight) == (0, 0)

    run(main)


def test_nobody_listens() -> None:
    async def main() -> None:
        async with serving(echo) as (server, pool):
            await server.close()
            with pytest.raises(ClientError) as failure:
                await fetch(pool, b"GET", b"/", timeout_s=5)
            assert failure.value.kind is ErrorKind.CONNECT
            assert pool.in_flight == 0

    run(main)


def test_a_name_that_cannot_be_resolved() -> None:
    async def main() -> None:
        pool = ClientPool("x" * 64, 80)
        with pytest.raises(ClientError) as failure:
            await fetch(pool, b"GET", b"/", timeout_s=5)
        assert failure.value.kind is ErrorKind.CONNECT

    run(main)


def test_a_silent_server_times_out() -> None:
    async def main() -> None:
        async with scripted(stay_silent, head_timeout_s=0.05) as pool:
            with pytest.raises(ClientError) as failure:
                await fetch(pool, b"GET", b"/", timeout_s=5)
            assert failure.value.kind is ErrorKind.TIMEOUT_HEAD

    run(main)


def test_an_answer_that_stops_times_out_and_a_slow_one_does_not() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
        for _ in range(4):
            await asyncio.sleep(0.15)
            writer.write(b"a")
        await reader.read()

    async def main() -> None:
        async with scripted(drip, body_idle_timeout_s=0.5) as pool:
            log = Log()
            get(pool, log)
            await log.over.wait()
            assert log.body == b"aaaa"
            assert log.heard == ["head 200", f"error {ErrorKind.TIMEOUT_IDLE}"]

    run(main)


def test_fetch_gives_up_in_time_and_leaves_nothing() -> None:
    async def main() -> None:
        gone = asyncio.Event()

        def handler(exchange: Exchange) -> None:
            exchange.on_gone = gone.set

        async with serving(handler) as (_, pool):
            with pytest.raises(TimeoutError):
                await fetch(pool, b"GET", b"/", timeout_s=0.05)
            await gone.wait()
            assert (pool.in_flight, pool.idle) == (0, 0)

    run(main)


def test_fetch_bounds_the_answer() -> None:
    async def main() -> None:
        async with serving(lambda exchange: exchange.respond(200, b"x" * 1000)) as (_, pool):
            with pytest.raises(ClientError):
                await fetch(pool, b"GET", b"/", timeout_s=5, max_body_bytes=999)
            assert pool.in_flight == 0

    run(main)


def _stream_for_ever(exchange: Exchange) -> None:
    exchange.start(200)
    exchange.write(b"data: a\n\n")


def test_an_aborted_call_is_noticed_by_the_server_and_heard_of_no_more() -> None:
    async def main() -> None:
        gone = asyncio.Event()

        def handler(exchange: Exchange) -> None:
            exchange.on_gone = gone.set
            _stream_for_ever(exchange)

        async with serving(handler) as (_, pool):
            log = Log()
            call = get(pool, log)
            await log.first_piece.wait()
            call.abort()
            call.abort()
            await gone.wait()
            assert log.heard == ["head 200"]
            assert pool.in_flight == 0

    run(main)


def test_a_streamed_answer_that_the_server_aborts_is_partial() -> None:
    async def main() -> None:
        def handler(exchange: Exchange) -> None:
            _stream_for_ever(exchange)
            asyncio.get_running_loop().call_later(0.01, exchange.abort)

        async with serving(handler) as (_, pool):
            log = Log()
            get(pool, log)
            await log.over.wait()
            assert log.body == b"data: a\n\n"
            assert log.heard == ["head 200", f"error {ErrorKind.PARTIAL}"]

    run(main)


def test_a_paused_call_holds_the_server_back() -> None:
    async def main() -> None:
        blocked = asyncio.Event()
        total = 100

        def handler(exchange: Exchange) -> None:
            left = total

            def pump() -> None:
                nonlocal left
                while left:
                    left -= 1
                    if not exchange.write(b"x" * 2**18):
                        blocked.set()
                        return
                exchange.on_writable = None
                exchange.end()

            exchange.on_writable = pump
            exchange.start(200)
            pump()

        async with serving(handler, body_idle_timeout_s=0.2) as (_, pool):
            log = Log()
            call = get(pool, log)
            await log.first_piece.wait()
            call.pause()
            await blocked.wait()
            held = len(log.body)
            await asyncio.sleep(0.3)
            assert len(log.body) == held < total * 2**18
            call.resume()
            await log.over.wait()
            assert log.heard == ["head 200", "end"]
            assert len(log.body) == total * 2**18
            assert (await fetch(pool, b"GET", b"/", timeout_s=5)).status == 200

    run(main)


def test_a_head_request_has_no_body() -> None:
    async def main() -> None:
        async with serving(lambda exchange: exchange.respond(200, b"body")) as (_, pool):
            response = await fetch(pool, b"HEAD", b"/", timeout_s=5)
            assert (response.status, response.body, response.header(b"content-length")) == (200, b"", b"4")
            assert (await fetch(pool, b"GET", b"/", timeout_s=5)).body == b"body"

    run(main)


def test_a_header_with_a_line_break_is_never_sent() -> None:
    async def main() -> None:
        async with serving(echo) as (_, pool):
            with pytest.raises(ValueError):
                pool.request(b"GET", b"/", [(b"x", b"a\r\nb: c")], b"", Log())
            assert pool.in_flight == 0

    run(main)


def test_a_listener_that_fails_ends_its_call(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Log):
        def on_head(self, status: int, headers: list[Header]) -> None:
            raise RuntimeError("bug")

    async def main() -> None:
        async with serving(echo) as (_, pool):
            log = Failing()
            get(pool, log)
            await log.over.wait()
            assert log.heard == [f"error {ErrorKind.PROTOCOL}"]
            assert pool.in_flight == 0

    run(main)
    assert "listener failed" in caplog.text


def test_a_large_body_refused_early_gives_the_refusal() -> None:
    async def main() -> None:
        async with serving(echo) as (_, pool):
            response = await fetch(pool, b"POST", b"/", body=b"x" * (100 * 2**20), timeout_s=10)
            assert response.status == 413
            assert (await fetch(pool, b"GET", b"/", timeout_s=5)).status == 200

    run(main)
