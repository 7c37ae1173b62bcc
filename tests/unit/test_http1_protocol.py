"""The server's protocol against a transport in memory: every cut of the bytes gives the same answers."""

from __future__ import annotations

import itertools

import pytest
from http1_peer import GET, POST, Peer, summary
from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.http1 import Limits

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
    st.sampled_from([GET, POST, _CHUNKED, _UPGRADE, _CLOSE, _GARBAGE, _SMUGGLE, _LARGE, b"\r\n"]),
    min_size=1,
    max_size=5,
).map(b"".join)


@given(_streams, st.lists(st.integers(0, 600), max_size=12))
def test_cutting_the_bytes_changes_nothing(stream: bytes, cuts: list[int]) -> None:
    whole = Peer(limits=Limits(max_body_bytes=50))
    whole.feed(stream)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    cut = Peer(limits=Limits(max_body_bytes=50))
    cut.feed(*(stream[a:b] for a, b in itertools.pairwise(edges)))
    assert summary(cut) == summary(whole)


@given(st.binary(max_size=300))
def test_no_bytes_raise(noise: bytes) -> None:
    Peer().feed(b"POST / HTTP/1.1\r\nhost: h\r\n" + noise)
    Peer().feed(noise)


def test_a_request_as_the_handler_sees_it() -> None:
    peer = Peer()
    peer.feed(GET)
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
    peer = Peer(limits=Limits(max_body_bytes=100, max_header_bytes=1000, max_headers=16))
    peer.feed(*(data[i : i + piece_bytes] for i in range(0, len(data), piece_bytes)))
    assert (peer.status(), peer.seen) == (status, [])
    assert peer.transport.half_closed
    assert b"connection: close\r\n" in peer.transport.sent
    assert peer.transport.sent.endswith(b"refused %d" % status)
    peer.feed(GET)
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
    peer = Peer(limits=Limits(max_header_bytes=1000))
    peer.feed(begun, b"y" * 900)
    assert peer.transport.sent == b""
    peer.feed(b"y" * 200)
    assert peer.status() == 431


def test_a_chunked_body_is_refused_when_it_crosses_the_limit() -> None:
    peer = Peer(limits=Limits(max_body_bytes=50))
    peer.feed(_LARGE[:-12])
    assert peer.status() == 413


def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    peer = Peer(handler=lambda exchange: None)
    peer.feed(GET + POST + _CHUNKED)
    assert [e.path for e in peer.seen] == ["/a"]
    assert peer.transport.paused
    for done in range(3):
        assert len(peer.seen) == done + 1
        peer.seen[done].respond(200, b"%d" % done)
    assert not peer.transport.paused
    assert [part[-1:] for part in peer.transport.sent.split(b"HTTP/1.1 ")[1:]] == [b"0", b"1", b"2"]


def test_thousands_of_pipelined_requests_do_not_nest() -> None:
    peer = Peer()
    peer.feed(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n" * 5000)
    assert len(peer.seen) == 5000
    peer = Peer()
    peer.feed(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" * 3000)
    assert len(peer.seen) == 3000


def test_a_refusal_waits_for_the_answer_in_progress() -> None:
    peer = Peer(handler=lambda exchange: None)
    peer.feed(GET + _GARBAGE)
    assert peer.transport.sent == b""
    peer.seen[0].respond(200, b"first")
    assert peer.transport.sent.index(b"first") < peer.transport.sent.index(b"HTTP/1.1 400")


def test_bytes_after_a_closing_request_are_ignored() -> None:
    peer = Peer()
    peer.feed(_CLOSE + GET, _GARBAGE)
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
    peer = Peer()
    peer.feed(request_head)
    assert (b"connection: " + connection in peer.transport.sent) is bool(connection)
    assert peer.transport.closed is closed


def test_continue_is_sent_when_the_body_is_awaited_and_not_before_an_earlier_answer() -> None:
    head = b"POST /e HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    peer = Peer()
    assert peer.feed(head) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert peer.feed(b"a") == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.feed(b"b")
    assert peer.seen[0].body == b"ab"
    whole = Peer()
    assert b"100 Continue" not in whole.feed(head + b"ab")
    behind = Peer(handler=lambda exchange: None)
    assert behind.feed(GET, head) == b""
    behind.seen[0].respond(200)
    assert behind.transport.sent.endswith(b"HTTP/1.1 100 Continue\r\n\r\n")


def test_drain_closes_an_idle_connection_and_announces_the_close_on_a_busy_one() -> None:
    idle = Peer()
    idle.connection.drain()
    assert idle.transport.closed
    busy = Peer(handler=lambda exchange: None)
    busy.feed(GET)
    busy.owner.draining = True
    busy.connection.drain()
    assert not busy.transport.closed
    busy.seen[0].respond(200)
    assert b"connection: close\r\n" in busy.transport.sent
    assert busy.transport.closed
