"""What the HTTP/1.1 server sends: framing, streaming, back-pressure, failures of a handler, and clients that leave."""

from __future__ import annotations

import pytest
from http1_peer import GET, Peer
from paceline_engine.http1 import Exchange


def test_a_streamed_answer_joins_its_head_with_the_first_piece() -> None:
    peer = Peer(handler=lambda exchange: None)
    peer.feed(GET)
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
    peer = Peer(handler=lambda exchange: None)
    peer.feed(GET)
    peer.seen[0].start(200)
    if written:
        peer.seen[0].write(written)
    peer.seen[0].end(b"bc")
    body = b"1\r\na\r\n" * len(written) + b"2\r\nbc\r\n0\r\n\r\n"
    assert peer.transport.sent == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body


def test_a_head_can_be_sent_ahead_of_the_first_piece() -> None:
    peer = Peer(handler=lambda exchange: None)
    peer.feed(GET)
    peer.seen[0].start(200)
    peer.seen[0].write(b"")
    assert peer.transport.sent == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def test_http10_streams_until_close() -> None:
    peer = Peer(handler=lambda exchange: None)
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
    peer = Peer(handler=lambda exchange: exchange.respond(status, b"body"))
    peer.feed(b"%b / HTTP/1.1\r\nhost: h\r\n\r\n" % method)
    assert peer.transport.sent.endswith(tail)
    streamed = Peer(handler=lambda exchange: None)
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

    peer = Peer(handler=fail)
    peer.feed(GET)
    assert peer.status() == 500
    assert not peer.transport.closed
    late = Peer(handler=fail_late)
    late.feed(GET)
    assert late.transport.closed
    assert not late.transport.sent.endswith(b"0\r\n\r\n")


def test_an_injected_header_gives_500() -> None:
    peer = Peer(handler=lambda exchange: exchange.respond(200, headers=[(b"x", b"a\r\nset-cookie: b")]))
    peer.feed(GET)
    assert peer.status() == 500
    assert b"set-cookie" not in peer.transport.sent


@pytest.mark.parametrize("started", [False, True])
def test_a_client_that_closes_is_reported_once(started: bool) -> None:
    gone: list[int] = []
    peer = Peer(handler=lambda exchange: None)
    peer.feed(GET)
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
    peer = Peer(handler=lambda exchange: None)
    peer.feed(GET)
    peer.seen[0].on_gone = lambda: gone.append(1)
    peer.seen[0].respond(200)
    peer.connection.eof_received()
    peer.connection.connection_lost(None)
    assert gone == []


def test_a_slow_peer_holds_writes_until_it_has_caught_up() -> None:
    writable: list[int] = []
    peer = Peer(handler=lambda exchange: None)
    peer.feed(GET)
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
    peer = Peer()
    peer.connection.pause_writing()
    peer.feed(GET)
    assert peer.seen == []
    assert peer.transport.paused
    peer.connection.resume_writing()
    assert len(peer.seen) == 1


def test_misuse_is_an_error() -> None:
    peer = Peer(handler=lambda exchange: None)
    peer.feed(GET)
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
