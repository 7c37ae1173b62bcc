"""One request's answer on its connection: tokens as they come if it is streamed, all at the end if not.

The head of a stream goes out with its first token, so that what fails before can still be told by a status. A reader
slower than the engine never holds the engine up: what it has not taken is buffered, up to `MAX_PENDING_BYTES`.
Invariant: an answer that ends without its last token says so, by an error event or an error status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from paceline_api import headers

from paceline_engine.http1 import Exchange, Header
from paceline_engine.pd import RemoteKV
from paceline_engine.request import Request
from paceline_engine.sim import answers
from paceline_engine.sim.answers import Answer
from paceline_engine.sim.api import Ask
from paceline_engine.sim.responses import ResponseAnswer

SIMULATED: Header = (headers.SIMULATED.encode(), b"1")
MAX_PENDING_BYTES = 256 * 1024  # beside what the connection itself buffers
_STREAM_HEAD = (SIMULATED, (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))


class Reply:
    """`request` is the engine's side of it; times are model seconds."""

    __slots__ = ("_answer", "_exchange", "_pending", "ask", "last_token_s", "on_overflow", "request", "scheduled")

    def __init__(self, exchange: Exchange, ask: Ask, request: Request, answer: Answer | ResponseAnswer) -> None:
        self._exchange = exchange
        self._answer = answer
        self._pending: list[bytes] | None = None  # a list while the reader is slow
        self.ask = ask
        self.request = request
        self.last_token_s = 0.0
        self.scheduled = False
        self.on_overflow: Callable[[], None] | None = None

    @property
    def remote(self) -> RemoteKV:
        assert self.ask.remote is not None
        return self.ask.remote

    def token(self, i: int) -> None:
        """Output token i, not the last."""
        if self.ask.stream:
            self._send(self._answer.token(i))

    def last(self, tokens: int, reason: str, kv_params: Mapping[str, Any] | None) -> None:
        """The last of `tokens` tokens, and the end."""
        if not self.ask.stream:
            body = self._answer.whole(tokens, reason, kv_params)
            self._exchange.respond(200, body, headers=(SIMULATED,))
            return
        self._send(self._answer.last(tokens, reason, include_usage=self.ask.include_usage))
        if self._pending is None:
            self._exchange.end()

    def fail(self, status: int, message: str, code: str) -> None:
        """There will be no complete answer."""
        if self._exchange.started:
            self._exchange.write(answers.error_event(message, code))
            self._exchange.end()
        else:
            self._exchange.respond(status, answers.error(message, code=code, status=status), headers=(SIMULATED,))

    def cut(self) -> None:
        """Closes the connection."""
        self._exchange.abort()

    def _send(self, data: bytes) -> None:
        exchange = self._exchange
        if not exchange.started:
            exchange.start(200, _STREAM_HEAD)
        if self._pending is None:
            if not exchange.write(data) and not exchange.gone:
                self._pending = []
                exchange.on_writable = self._catch_up
            return
        self._pending.append(data)
        if sum(map(len, self._pending)) > MAX_PENDING_BYTES and self.on_overflow is not None:
            self.on_overflow()

    def _catch_up(self) -> None:
        pending, self._pending = self._pending or [], None
        if pending and not self._exchange.write(b"".join(pending)):
            self._pending = []
        elif self.request.finished:
            self._exchange.end()
