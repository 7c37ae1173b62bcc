"""Messages over HTTP/1.1, sized, chunked or until close, are read as they were meant, however the bytes are cut.

And bytes that were changed on the way are read one way only: the same under every cut, and as h11 reads them where it
reads them too. A message that two parsers take differently is how requests are smuggled.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import h11
from http1_peer import Loop, Peer, Transport, summary
from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.http1 import Call, ClientError, Exchange, Header
from paceline_engine.http1.client_connection import ClientConnection, Timeouts

_VISIBLE = bytes([*range(0x21, 0x7F), *range(0x80, 0x100)])
_values = st.lists(st.sampled_from(_VISIBLE), max_size=8).map(bytes) | st.just(b"a b\tc")
_fields = st.lists(st.tuples(st.sampled_from([b"x-a", b"x-b", b"accept"]), _values), max_size=3)
_bodies = st.binary(max_size=40) | st.sampled_from([b"0\r\n\r\n", b"\r\n\r\n", b"POST / HTTP/1.1\r\nhost: h\r\n\r\n"])
_extensions = st.sampled_from([b"", b"", b";a", b";a=b", b';a="b;c"', b";a;b=c"])
_put = st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"5", b"-", b"+"])
_blanks = st.sampled_from([b" ", b"", b"\t "])
_cuts = st.lists(st.integers(0, 10**4), max_size=8)


@dataclass(frozen=True, slots=True)
class Message:
    """A message without its first line: the fields apart from those of its framing, and all of it as bytes."""

    fields: list[Header]
    framing: list[Header]
    body: bytes
    wire: bytes

    @property
    def headers(self) -> list[Header]:
        return [*self.fields, *self.framing]


@st.composite
def _chunks(draw: st.DrawFn, body: bytes) -> bytes:
    wire = b""
    edges = sorted({0, len(body), *draw(st.lists(st.integers(0, len(body)), max_size=4))})
    for start, end in pairwise(edges):
        size = draw(st.sampled_from([b"%x", b"%X", b"00%x"])) % (end - start)
        wire += size + draw(_extensions) + b"\r\n" + body[start:end] + b"\r\n"
    trailers = b"".join(b"%b: %b\r\n" % field for field in draw(_fields))
    return wire + draw(st.sampled_from([b"0", b"000"])) + draw(_extensions) + b"\r\n" + trailers + b"\r\n"


@st.composite
def _messages(draw: st.DrawFn, *own: Header) -> Message:
    fields, body = [*own, *draw(_fields)], draw(_bodies)
    if draw(st.booleans()):
        framing, framed = [(b"content-length", b"%d" % len(body))], body
    else:
        framing, framed = [(b"transfer-encoding", b"chunked")], draw(_chunks(body))
    head = b"".join(b"%b:%b%b%b\r\n" % (n, draw(_blanks), v, draw(_blanks)) for n, v in fields)
    head += b"".join(b"%b:%b%b\r\n" % (n, draw(_blanks), v) for n, v in framing)  # llhttp bears no blanks after it
    return Message(fields, framing, body, head + b"\r\n" + framed)


_requests = st.lists(_messages((b"host", b"h")), min_size=1, max_size=3)
_REQUEST_LINE = b"POST /p HTTP/1.1\r\n"
_ANSWER_LINE = b"HTTP/1.1 200 OK\r\n"


def _pieces(wire: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    return [wire[start:end] for start, end in pairwise(edges)]


def _singly(wire: bytes) -> list[bytes]:
    return [wire[i : i + 1] for i in range(len(wire))]


@st.composite
def _changed(draw: st.DrawFn, wire: bytes) -> bytes:
    """A few bytes replaced, put in or left out."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(wire)))
        put = draw(
            st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"5", b"-"])
        )
        wire = wire[:at] + put + wire[at + draw(st.integers(0, 2)) :]
    return wire


class _Heard:
    """A call of the client on a connection without a network, and what its listener was told."""

    in_flight = 1

    def __init__(self, *pieces: bytes) -> None:
        self.head: tuple[int, list[Header]] | None = None
        self.body = b""
        self.ended: str | None = None
        self.released = False
        connection = ClientConnection(self, Timeouts(60.0, None, None), cast(asyncio.AbstractEventLoop, Loop()))
        connection.connection_made(cast(Any, _Idle()))
        connection.begin(Call(self, b"", b"", self, head_only=False), reused=False)
        for piece in pieces:
            if connection.is_usable():
                connection.data_received(piece)
        if connection.is_usable():
            connection.eof_received()
        connection.connection_lost(None)

    @property
    def told(self) -> tuple[object, ...]:
        return self.head, self.body, self.ended

    def on_head(self, status: int, headers: list[Header]) -> None:
        self.head = status, headers

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_end(self) -> None:
        self.ended = "whole"

    def on_error(self, error: ClientError) -> None:
        self.ended = error.kind

    def retry(self, call: Call) -> None:
        raise AssertionError("repeated on a connection that was not reused")

    def release(self, connection: ClientConnection) -> None:
        self.released = True

    def forget(self, connection: ClientConnection) -> None: ...


class _Idle(Transport):
    def get_write_buffer_size(self) -> int:
        return 0


@given(_requests, _cuts)
def test_the_server_reads_what_was_meant(requests: list[Message], cuts: list[int]) -> None:
    wire = b"".join(_REQUEST_LINE + request.wire for request in requests)
    for pieces in (_pieces(wire, cuts), _singly(wire)):
        peer = Peer(handler=lambda exchange: exchange.respond(200))
        peer.feed(*pieces)
        assert [(e.path, e.headers, e.body) for e in peer.seen] == [("/p", r.headers, r.body) for r in requests]
        assert not peer.transport.closed


@given(_messages(), st.integers(0, 2), _cuts)
def test_the_client_reads_what_was_meant(answer: Message, interim: int, cuts: list[int]) -> None:
    wire = b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" * interim + _ANSWER_LINE + answer.wire
    for pieces in (_pieces(wire, cuts), _singly(wire)):
        heard = _Heard(*pieces)
        assert heard.told == ((200, answer.headers), answer.body, "whole")
        assert heard.released


@given(_fields, _bodies, _cuts)
def test_the_client_reads_until_the_close(fields: list[Header], body: bytes, cuts: list[int]) -> None:
    wire = _ANSWER_LINE + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n" + body
    heard = _Heard(*_pieces(wire, cuts))
    assert heard.told == ((200, fields), body, "whole")
    assert not heard.released


@given(st.lists(st.binary(max_size=40), max_size=4), st.booleans(), _cuts)
def test_the_client_reads_what_the_server_writes(written: list[bytes], streamed: bool, cuts: list[int]) -> None:
    def write(exchange: Exchange) -> None:
        if not streamed:
            exchange.respond(200, b"".join(written))
            return
        exchange.start(200)
        for piece in written:
            exchange.write(piece)
        exchange.end()

    peer = Peer(handler=write)
    peer.feed(_REQUEST_LINE + b"host: h\r\n\r\n")
    heard = _Heard(*_pieces(peer.transport.sent, cuts))
    assert (heard.body, heard.ended) == (b"".join(written), "whole")


@given(st.data(), _cuts)
def test_changed_requests_are_read_one_way_only(data: st.DataObject, cuts: list[int]) -> None:
    wire = data.draw(_changed(b"".join(_REQUEST_LINE + request.wire for request in data.draw(_requests))))
    whole, cut, single = Peer(), Peer(), Peer()
    whole.feed(wire)
    cut.feed(*_pieces(wire, cuts))
    single.feed(*_singly(wire))
    assert summary(cut) == summary(whole)
    assert summary(single) == summary(whole)
    ours = [(e.method, e.path, e.body) for e in whole.seen]
    for mine, other in zip(ours, _h11_requests(wire), strict=False):
        assert mine == other


@given(st.data(), _cuts)
def test_changed_answers_are_read_one_way_only(data: st.DataObject, cuts: list[int]) -> None:
    wire = data.draw(_changed(_ANSWER_LINE + data.draw(_messages()).wire))
    whole = _Heard(wire)
    assert _Heard(*_pieces(wire, cuts)).told == whole.told
    assert _Heard(*_singly(wire)).told == whole.told
    other = _h11_answer(wire)
    if whole.ended == "whole" and whole.head is not None and other is not None:
        assert (whole.head[0], whole.body) == other


def _h11_requests(wire: bytes) -> list[tuple[str, str, bytes]]:
    """Method, target and body of each whole request until h11 refuses one."""
    reader, found, body = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20), [], b""
    reader.receive_data(wire)
    request: h11.Request | None = None
    try:
        while True:
            match reader.next_event():
                case h11.Request() as request:
                    body = b""
                case h11.Data(data=data):
                    body += data
                case h11.EndOfMessage() if request is not None:
                    found.append((request.method.decode(), request.target.decode("latin-1"), body))
                    reader.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
                    reader.send(h11.EndOfMessage())
                    reader.start_next_cycle()
                case _:
                    return found
    except h11.ProtocolError:
        return found


def _h11_answer(wire: bytes) -> tuple[int, bytes] | None:
    """Status and body of a whole answer; None where h11 finds none."""
    reader, status, body = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20), 0, b""
    reader.send(h11.Request(method="GET", target="/", headers=[(b"host", b"h")]))
    reader.send(h11.EndOfMessage())
    try:
        reader.receive_data(wire)
        reader.receive_data(b"")
        while True:
            match reader.next_event():
                case h11.Response(status_code=status):
                    pass
                case h11.Data(data=data):
                    body += data
                case h11.EndOfMessage():
                    return status, body
                case h11.InformationalResponse():
                    pass
                case _:
                    return None
    except h11.ProtocolError:
        return None
