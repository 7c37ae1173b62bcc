"""An answer on its connection: what a slow reader gets, and how an answer that cannot be completed says so."""

from __future__ import annotations

import orjson
from paceline_engine.http1 import EventSplitter, Exchange
from paceline_engine.request import Leg, Objective, Request
from paceline_engine.sim import text
from paceline_engine.sim.answers import Answer
from paceline_engine.sim.api import Ask
from paceline_engine.sim.reply import MAX_PENDING_BYTES, Reply


class Wire:
    """A connection that takes bytes until it is paused; `AnswerSink` of an exchange."""

    def __init__(self) -> None:
        self.sent = b""
        self.write_paused = False
        self.draining = False
        self.finished = False
        self.aborted = False

    def send(self, *pieces: bytes) -> None:
        self.sent += b"".join(pieces)

    def finish(self, *, keep: bool) -> None:
        self.finished = True

    def abort(self) -> None:
        self.aborted = True

    @property
    def events(self) -> list[bytes]:
        """Payloads of all events; chunk sizes are lines of their own and no `data`."""
        body = self.sent.partition(b"\r\n\r\n")[2]
        payload = b""
        while body:
            size, _, body = body.partition(b"\r\n")
            payload += body[: int(size, 16)]
            body = body[int(size, 16) + 2 :]
        return EventSplitter().feed(payload)


def make_reply(wire: Wire, *, stream: bool = True, max_tokens: int = 5) -> Reply:
    prompt = text.of_ids([1, 2, 3], 16)
    ask = Ask(False, prompt, max_tokens, max_tokens, stream, True, Leg.WHOLE, None)
    request = Request("r", 3, max_tokens, 0.0, Objective("c", 1.0, 1.0, 1.0))
    exchange = Exchange(wire, "POST", "/v1/completions", "", [], b"", 0.0, http10=False, keep=True)
    return Reply(exchange, ask, request, Answer(False, "cmpl-r", 0, "m", prompt))


def finish(reply: Reply, tokens: int) -> None:
    reply.request.emitted_tokens = tokens
    reply.last(tokens, "length", None)


def test_a_reader_that_stops_for_a_while_gets_every_token_in_order() -> None:
    wire, steady = Wire(), Wire()
    slow, fast = make_reply(wire), make_reply(steady)
    for reply, its_wire in ((slow, wire), (fast, steady)):
        reply.token(0)
        its_wire.write_paused = its_wire is wire
        reply.token(1)
        reply.token(2)
        reply.token(3)
        finish(reply, 5)
    assert not wire.finished
    assert len(wire.events) == 2
    wire.write_paused = False
    slow._exchange.unblock()
    assert wire.finished
    assert wire.events == steady.events
    assert wire.events[-1] == b"[DONE]"


def test_a_reader_that_never_reads_overflows_instead_of_growing() -> None:
    wire = Wire()
    reply = make_reply(wire, max_tokens=1 << 20)
    overflows: list[int] = []
    reply.on_overflow = lambda: overflows.append(1)
    wire.write_paused = True
    tokens = 0
    while not overflows:
        reply.token(tokens)
        tokens += 1
        assert tokens * 100 < 3 * MAX_PENDING_BYTES
    reply.cut()
    assert wire.aborted


def test_a_stream_that_fails_ends_with_an_error_and_not_with_done() -> None:
    wire = Wire()
    reply = make_reply(wire)
    reply.token(0)
    reply.fail(503, "why", "upstream_failed")
    assert wire.finished
    error = orjson.loads(wire.events[-1])["error"]
    assert (error["message"], error["code"], error["type"]) == ("why", "upstream_failed", "server_error")


def test_an_answer_that_fails_before_its_first_token_has_a_status() -> None:
    for stream in (True, False):
        wire = Wire()
        make_reply(wire, stream=stream).fail(500, "why", "upstream_failed")
        assert wire.sent.startswith(b"HTTP/1.1 500 ")
        assert wire.finished


def test_an_answer_that_is_not_streamed_is_sent_whole() -> None:
    wire = Wire()
    reply = make_reply(wire, stream=False)
    for i in range(4):
        reply.token(i)
    assert not wire.sent
    finish(reply, 5)
    body = orjson.loads(wire.sent.partition(b"\r\n\r\n")[2])
    assert len(body["choices"][0]["text"].split()) == body["usage"]["completion_tokens"] == 5
