"""The server's protocol against a transport in memory: every cut of the bytes gives the same answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.http1 import Exchange, Limits
from paceline_engine.http1.connection import ServerConnection


class _Timer:
    def cancel(self) -> None: ...


class _Loop:
    """A loop whose timers never fire."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> _Timer:
        return _Timer()


class _Transport:
    """Collects what is written; closes when told."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = False
        self.half_closed = False
        self.paused = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def writelines(self, pieces: list[bytes]) -> None:
        self.sent += b"".join(pieces)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def write_eof(self) -> None:
        self.half_closed = True


class _Owner:
    def __init__(self, handler: Callable[[Exchange], None], limits: Limits) -> None:
        self.handler = handler
        self.limits = limits
        self.draining = False
        self.leaving = False
        self.error_body: Callable[[int, str], bytes] = lambda status, _: b"refused %d" % status

    def opened(self, connection: ServerConnection) -> None: ...
    def lost(self, connection: ServerConnection) -> None: ...


class _Peer:
    """A connection, its transport and what its handler saw."""

    def __init__(self, handler: Callable[[Exchange], None] | None = None, limits: Limits | None = None) -> None:
        self.seen: list[Exchange] = []
        self._handler = handler or self.echo
        self.transport = _Transport()
        self.owner = _Owner(self._handle, limits or Limits())
        self.connection = ServerConnection(self.owner, cast(asyncio.AbstractEventLoop, _Loop()))
        self.connection.connection_made(cast(Any, self.transport))

    def _handle(self, exchange: Exchange) -> None:
        self.seen.append(exchange)
        self._handler(exchange)

    @staticmethod
    def echo(exchange: Exchange) -> None:
        exchange.respond(200, f"{exchange.method} {exchange.path} ".encode() + exchange.body)

    def feed(self, *pieces: bytes) -> bytes:
        for piece in pieces:
            if piece and not self.transport.closed:
                self.connection.data_received(piece)
        return self.transport.sent

    def status(self) -> int:
        """Of the last answer."""
        return int(self.transport.sent.rpartition(b"HTTP/1.1 ")[2][:3])


def _summary(peer: _Peer) -> tuple[object, ...]:
    seen = [(e.method, e.path, e.query, e.headers, e.body) for e in peer.seen]
    return seen, peer.transport.sent, peer.transport.closed, peer.transport.half_closed


_GET = b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nX-Y:  z \r\n\r\n"
_POST = b"POST /p HTTP/1.1\r\nhost: h\r\ncontent-length: 11\r\n\r\nhello world"
_CHUNKED = (
    b"POST /c HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    b"5;ext=1\r\nhello\r\n1\r\n \r\n0\r\ntrailer: x\r\n\r\n"
)
_UPGRADE = (
    b"POST /u HTTP/1.1\r\nhost: h\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"
    b"http2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\ncontent-length: 3\r\n\r\nabc"
)
_CLOSE = b"GET /last HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"
_GARBAGE = b"\x16\x03\x01\x02\x00\r\n\r\n"
_SMUGGLE = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
_LARGE = b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n40\r\n" + b"x" * 64 + b"\r\n0\r\n\r\n"
_streams = st.lists(
    st.sampled_from([_GET, _POST, _CHUNKED, _UPGRADE, _CLOSE, _GARBAGE, _SMUGGLE, _LARGE, b"\r\n"]),
    min_size=1,
    max_size=5,
).map(b"".join)


@given(_streams, st.lists(st.integers(0, 600), max_size=12))
def test_cutting_the_bytes_changes_nothing(stream: bytes, cuts: list[int]) -> None:
    whole = _Peer(limits=Limits(max_body_bytes=50))
    whole.feed(stream)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    cut = _Peer(limits=Limits(max_body_bytes=50))
    cut.feed(*(stream[a:b] for a, b in itertools.pairwise(edges)))
    assert _summary(cut) == _summary(whole)


@given(st.binary(max_size=300))
def test_no_bytes_raise(noise: bytes) -> None:
    _Peer().feed(b"POST / HTTP/1.1\r\nhost: h\r\n" + noise)
    _Peer().feed(noise)


def test_a_request_as_the_handler_sees_it() -> None:
    peer = _Peer()
    peer.feed(_GET)
    (exchange,) = peer.seen
    assert (exchange.method, exchange.path, exchange.query, exchange.body) == ("GET", "/a", "b=c", b"")
    assert exchange.headers == [(b"host", b"h"), (b"x-y", b"z")]
    assert exchange.header(b"x-y") == b"z"
    assert exchange.header(b"none") is None


_MALFORMED: list[tuple[str, bytes, int]] = [
    ("TLS on a plain port", b"\x16\x03\x01\x02\x00\x01", 400),
    ("an unknown method", b"FOO / HTTP/1.1\r\nhost: h\r\n\r\n", 400),
    ("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
    ("two hosts", b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
    ("a length and a coding", _SMUGGLE, 400),
    (
        "a coding and a length",
        b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("two lengths", b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
    ("a negative length", b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: -5\r\n\r\n", 400),
    ("a length that is no number", b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: ten\r\n\r\n", 400),
    ("a length that overflows", b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %b\r\n\r\n" % (b"9" * 40), 400),
    ("a body too large by its length", b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 101\r\n\r\n", 413),
    (
        "a chunked body too large",
        b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n65\r\n%b\r\n0\r\n\r\n" % (b"x" * 101),
        413,
    ),
    ("a chunk of negative size", b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n", 400),
    ("a chunk with a bare LF", b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n1\na\n0\n\n", 400),
    (
        "a chunk longer than it says",
        b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
        400,
    ),
    ("a folded header", b"GET / HTTP/1.1\r\nhost: h\r\nx: a\r\n b\r\n\r\n", 400),
    ("a bare LF after a header", b"GET / HTTP/1.1\r\nhost: h\nx: a\r\n\r\n", 400),
    ("bare LFs throughout", b"GET / HTTP/1.1\nhost: h\n\n", 400),
    ("a bare CR in a value", b"GET / HTTP/1.1\r\nhost: h\r\nx: a\rb\r\n\r\n", 400),
    ("a NUL in a value", b"GET / HTTP/1.1\r\nhost: h\r\nx: a\0b\r\n\r\n", 400),
    ("a blank before the colon", b"GET / HTTP/1.1\r\nhost : h\r\n\r\n", 400),
    ("an unknown coding", b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip\r\n\r\n", 501),
    ("gzip, chunked", b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ("CONNECT", b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", 501),
    ("HTTP/2 with prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("HTTP/2.0", b"GET / HTTP/2.0\r\nhost: h\r\n\r\n", 505),
    ("HTTP/1.2", b"GET / HTTP/1.2\r\nhost: h\r\n\r\n", 505),
    ("HTTP/0.9", b"GET /\r\n\r\n", 505),
    ("an expectation that is not met", b"GET / HTTP/1.1\r\nhost: h\r\nexpect: more\r\n\r\n", 417),
    ("a fragment in the target", b"GET /a#b HTTP/1.1\r\nhost: h\r\n\r\n", 400),
    ("a head too large", b"GET / HTTP/1.1\r\nhost: h\r\nx: %b\r\n\r\n" % (b"y" * 2000), 431),
    ("a target too large", b"GET /%b HTTP/1.1\r\nhost: h\r\n\r\n" % (b"y" * 2000), 431),
    ("too many headers", b"GET / HTTP/1.1\r\nhost: h\r\n" + b"a:\r\n" * 20 + b"\r\n", 431),
]


@pytest.mark.parametrize(("data", "status"), [row[1:] for row in _MALFORMED], ids=[row[0] for row in _MALFORMED])
@pytest.mark.parametrize("piece_bytes", [10**6, 7, 1], ids=["whole", "by sevens", "byte by byte"])
def test_a_malformed_request_is_refused_and_the_connection_closed(data: bytes, status: int, piece_bytes: int) -> None:
    peer = _Peer(limits=Limits(max_body_bytes=100, max_header_bytes=1000, max_headers=16))
    peer.feed(*(data[i : i + piece_bytes] for i in range(0, len(data), piece_bytes)))
    assert (peer.status(), peer.seen) == (status, [])
    assert peer.transport.half_closed
    assert b"connection: close\r\n" in peer.transport.sent
    assert peer.transport.sent.endswith(b"refused %d" % status)
    peer.feed(_GET)
    assert peer.seen == []


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(b"GET / HTTP/1.1\r\nhost: h\r\nx: ", id="a header"),
        pytest.param(_CHUNKED[:-2] + b"x: ", id="a trailer"),
        pytest.param(_CHUNKED[: _CHUNKED.index(b"5;ext")] + b"1;", id="a chunk extension"),
    ],
)
def test_what_never_ends_is_refused_at_the_limit(begun: bytes) -> None:
    peer = _Peer(limits=Limits(max_header_bytes=1000))
    peer.feed(begun, b"y" * 900)
    assert peer.transport.sent == b""
    peer.feed(b"y" * 200)
    assert peer.status() == 431


def test_a_chunked_body_is_refused_when_it_crosses_the_limit() -> None:
    peer = _Peer(limits=Limits(max_body_bytes=50))
    peer.feed(_LARGE[:-12])
    assert peer.status() == 413


def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    peer = _Peer(handler=lambda exchange: None)
    peer.feed(_GET + _POST + _CHUNKED)
    assert [e.path for e in peer.seen] == ["/a"]
    assert peer.transport.paused
    for done in range(3):
        assert len(peer.seen) == done + 1
        peer.seen[done].respond(200, b"%d" % done)
    assert not peer.transport.paused
    assert [part[-1:] for part in peer.transport.sent.split(b"HTTP/1.1 ")[1:]] == [b"0", b"1", b"2"]


def test_thousands_of_pipelined_requests_do_not_nest() -> None:
    peer = _Peer()
    peer.feed(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n" * 5000)
    assert len(peer.seen) == 5000
    peer = _Peer()
    peer.feed(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" * 3000)
    assert len(peer.seen) == 3000


def test_a_refusal_waits_for_the_answer_in_progress() -> None:
    peer = _Peer(handler=lambda exchange: None)
    peer.feed(_GET + _GARBAGE)
    assert peer.transport.sent == b""
    peer.seen[0].respond(200, b"first")
    assert peer.transport.sent.index(b"first") < peer.transport.sent.index(b"HTTP/1.1 400")


def test_bytes_after_a_closing_request_are_ignored() -> None:
    peer = _Peer()
    peer.feed(_CLOSE + _GET, _GARBAGE)
    assert [e.path for e in peer.seen] == ["/last"]
    assert peer.transport.closed
    assert b" 400 " not in peer.transport.sent


@pytest.mark.parametrize(
    ("request_head", "connection", "closed"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n", b"", False, id="HTTP/1.1 stays open"),
        pytest.param(_CLOSE, b"close", True, id="HTTP/1.1 closes when asked"),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", b"close", True, id="HTTP/1.0 closes"),
        pytest.param(
            b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", b"keep-alive", False, id="HTTP/1.0 stays when asked"
        ),
    ],
)
def test_keep_alive(request_head: bytes, connection: bytes, closed: bool) -> None:
    peer = _Peer()
    peer.feed(request_head)
    assert (b"connection: " + connection in peer.transport.sent) is bool(connection)
    assert peer.transport.closed is closed


def test_a_streamed_answer_joins_its_head_with_the_first_piece() -> None:
    peer = _Peer(handler=lambda exchange: None)
    peer.feed(_GET)
    (exchange,) = peer.seen
    exchange.start(200, [(b"content-type", b"text/event-stream")])
    assert peer.transport.sent == b""
    exchange.write(b"data: a\n\n")
    exchange.end()
    assert peer.transport.sent == (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        b"9\r\ndata: a\n\n\r\n0\r\n\r\n"
    )
    assert not peer.transport.closed


@pytest.mark.parametrize("written", [b"", b"a"])
def test_a_last_piece_may_come_with_the_end(written: bytes) -> None:
    peer = _Peer(handler=lambda exchange: None)
    peer.feed(_GET)
    peer.seen[0].start(200)
    if written:
        peer.seen[0].write(written)
    peer.seen[0].end(b"bc")
    body = b"1\r\na\r\n" * len(written) + b"2\r\nbc\r\n0\r\n\r\n"
    assert peer.transport.sent == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body


def test_a_head_can_be_sent_ahead_of_the_first_piece() -> None:
    peer = _Peer(handler=lambda exchange: None)
    peer.feed(_GET)
    peer.seen[0].start(200)
    peer.seen[0].write(b"")
    assert peer.transport.sent == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def test_http10_streams_until_close() -> None:
    peer = _Peer(handler=lambda exchange: None)
    peer.feed(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    peer.seen[0].start(200)
    peer.seen[0].write(b"a")
    peer.seen[0].end()
    assert peer.transport.sent == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\na"
    assert peer.transport.closed


@pytest.mark.parametrize(
    ("method", "status", "tail"),
    [
        pytest.param(b"HEAD", 200, b"content-length: 4\r\n\r\n", id="HEAD has the length and no body"),
        pytest.param(b"GET", 204, b"HTTP/1.1 204 No Content\r\n\r\n", id="204 has neither"),
        pytest.param(b"GET", 304, b"HTTP/1.1 304 Not Modified\r\n\r\n", id="304 has neither"),
    ],
)
def test_answers_without_a_body(method: bytes, status: int, tail: bytes) -> None:
    peer = _Peer(handler=lambda exchange: exchange.respond(status, b"body"))
    peer.feed(b"%b / HTTP/1.1\r\nhost: h\r\n\r\n" % method)
    assert peer.transport.sent.endswith(tail)
    streamed = _Peer(handler=lambda exchange: None)
    streamed.feed(b"%b / HTTP/1.1\r\nhost: h\r\n\r\n" % method)
    streamed.seen[0].start(status)
    streamed.seen[0].write(b"x")
    streamed.seen[0].end()
    assert streamed.transport.sent.endswith(b"\r\n\r\n")
    assert streamed.transport.sent.count(b"\r\n\r\n") == 1


def test_a_failing_handler_gives_500_and_after_the_head_an_abort() -> None:
    def fail(exchange: Exchange) -> None:
        raise RuntimeError("bug")

    def fail_late(exchange: Exchange) -> None:
        exchange.start(200)
        exchange.write(b"x")
        raise RuntimeError("bug")

    peer = _Peer(handler=fail)
    peer.feed(_GET)
    assert peer.status() == 500
    assert not peer.transport.closed
    late = _Peer(handler=fail_late)
    late.feed(_GET)
    assert late.transport.closed
    assert not late.transport.sent.endswith(b"0\r\n\r\n")


def test_an_injected_header_gives_500() -> None:
    peer = _Peer(handler=lambda exchange: exchange.respond(200, headers=[(b"x", b"a\r\nset-cookie: b")]))
    peer.feed(_GET)
    assert peer.status() == 500
    assert b"set-cookie" not in peer.transport.sent


@pytest.mark.parametrize("started", [False, True])
def test_a_client_that_closes_is_reported_once(started: bool) -> None:
    gone: list[int] = []
    peer = _Peer(handler=lambda exchange: None)
    peer.feed(_GET)
    (exchange,) = peer.seen
    exchange.on_gone = lambda: gone.append(1)
    if started:
        exchange.start(200)
        exchange.write(b"x")
    peer.connection.eof_received()
    peer.connection.connection_lost(None)
    assert gone == [1]
    sent = peer.transport.sent
    if started:
        assert not exchange.write(b"y")
        exchange.end()
    else:
        exchange.respond(200)
    assert peer.transport.sent == sent


def test_a_client_that_closes_after_its_answer_is_not_reported() -> None:
    gone: list[int] = []
    peer = _Peer(handler=lambda exchange: None)
    peer.feed(_GET)
    peer.seen[0].on_gone = lambda: gone.append(1)
    peer.seen[0].respond(200)
    peer.connection.eof_received()
    peer.connection.connection_lost(None)
    assert gone == []


def test_a_slow_peer_holds_writes_until_it_has_caught_up() -> None:
    writable: list[int] = []
    peer = _Peer(handler=lambda exchange: None)
    peer.feed(_GET)
    (exchange,) = peer.seen
    exchange.on_writable = lambda: writable.append(1)
    exchange.start(200)
    assert exchange.write(b"a")
    peer.connection.pause_writing()
    assert not exchange.write(b"b")
    peer.connection.resume_writing()
    assert exchange.write(b"c")
    peer.connection.pause_writing()
    peer.connection.resume_writing()
    assert writable == [1]


def test_a_peer_that_does_not_read_is_not_served_its_next_request() -> None:
    peer = _Peer()
    peer.connection.pause_writing()
    peer.feed(_GET)
    assert peer.seen == []
    assert peer.transport.paused
    peer.connection.resume_writing()
    assert len(peer.seen) == 1


def test_continue_is_sent_when_the_body_is_awaited_and_not_before_an_earlier_answer() -> None:
    head = b"POST /e HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    peer = _Peer()
    assert peer.feed(head) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert peer.feed(b"a") == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.feed(b"b")
    assert peer.seen[0].body == b"ab"
    whole = _Peer()
    assert b"100 Continue" not in whole.feed(head + b"ab")
    behind = _Peer(handler=lambda exchange: None)
    assert behind.feed(_GET, head) == b""
    behind.seen[0].respond(200)
    assert behind.transport.sent.endswith(b"HTTP/1.1 100 Continue\r\n\r\n")


def test_misuse_is_an_error() -> None:
    peer = _Peer(handler=lambda exchange: None)
    peer.feed(_GET)
    (exchange,) = peer.seen
    with pytest.raises(RuntimeError):
        exchange.write(b"x")
    with pytest.raises(RuntimeError):
        exchange.end()
    exchange.respond(200)
    with pytest.raises(RuntimeError):
        exchange.respond(200)
    with pytest.raises(RuntimeError):
        exchange.start(200)


def test_drain_closes_an_idle_connection_and_announces_the_close_on_a_busy_one() -> None:
    idle = _Peer()
    idle.connection.drain()
    assert idle.transport.closed
    busy = _Peer(handler=lambda exchange: None)
    busy.feed(_GET)
    busy.owner.draining = True
    busy.connection.drain()
    assert not busy.transport.closed
    busy.seen[0].respond(200)
    assert b"connection: close\r\n" in busy.transport.sent
    assert busy.transport.closed
