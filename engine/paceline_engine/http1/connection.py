"""The server's side of one connection: bytes → requests in order → one exchange at a time → answers.

Requests are parsed as they arrive, wait in a queue behind the exchange in progress (reading pauses while one waits) and
are handed over whole. Invariants: answers leave in the order of their requests; after a refusal nothing more is parsed,
and the connection closes only when the peer has had time to read why; what a peer can make us hold is bounded. While a
pipelined request waits, nothing is read, so a client's leaving shows only when it is written to.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from time import monotonic
from typing import Protocol, cast

from .alarm import Alarm
from .exchange import Exchange
from .request_reader import Judge, Limits, Phase, RequestReader
from .wire import Refusal, answer_head

_log = logging.getLogger(__name__)

_LINGER_BYTES = 256 * 2**20  # read and dropped after a refusal, so that a client in mid-body gets to read it


class ConnectionOwner(Protocol):
    """What a connection needs of its server."""

    limits: Limits
    draining: bool
    leaving: bool
    handler: Callable[[Exchange], None]
    error_body: Callable[[int, str], bytes]
    judge: Judge | None

    def opened(self, connection: ServerConnection) -> None: ...
    def lost(self, connection: ServerConnection) -> None: ...


class ServerConnection(asyncio.Protocol):
    """asyncio protocol of one accepted connection; also the `AnswerSink` of its exchanges."""

    def __init__(self, owner: ConnectionOwner, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._limits = owner.limits
        self._alarm = Alarm(loop, self._on_due)
        self._transport: asyncio.Transport | None = None
        self._reader = RequestReader(owner.limits, owner.judge)
        self._current: Exchange | None = None
        self._reading_paused = False
        self._serving = False
        self._lingering = False
        self._unsent_bytes = sys.maxsize  # when a deadline last found a finished answer still on its way
        self._dropped_bytes = 0
        self.write_paused = False

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._owner.opened(self)
        self._alarm.set(monotonic() + self._limits.idle_timeout_s)
        if self._owner.draining:  # accepted just before the listener closed
            self.drain()

    def connection_lost(self, exc: Exception | None) -> None:
        self._alarm.cancel()
        self._owner.lost(self)
        self._transport = None
        self._lose_client()

    def eof_received(self) -> bool:
        """A client that closes its side is gone, even if it could still read (as nginx and uvicorn hold)."""
        if self._current is not None:
            self.abort()
        return False

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._current is not None:
            self._current.unblock()
        else:
            self._serve()

    def data_received(self, data: bytes) -> None:
        if self._reader.phase is Phase.SHUT:
            self._drop(data)
            return
        self._reader.feed(data, monotonic())
        self._serve()

    # --- requests in order

    def _is_clear(self) -> bool:
        return self._current is None and not self._reader.requests and self._transport is not None

    def _serve(self) -> None:
        """Starts waiting requests while none is in progress, then sets reading and the deadline by what is left."""
        if self._serving:
            return
        self._serving = True
        requests = self._reader.requests
        while requests and self._current is None and not self.write_paused and self._transport is not None:
            exchange = self._current = Exchange(self, *requests.popleft())
            try:
                self._owner.handler(exchange)
            except Exception:
                _log.exception("handler failed method=%s path=%s", exchange.method, exchange.path)
                self._fail(exchange)
        self._serving = False
        if self._transport is None or self._lingering or self._transport.is_closing():
            return
        if self._reader.refusal is not None and self._is_clear():
            self._send_refusal(self._reader.refusal)
        elif self._reader.phase is Phase.SHUT:
            self._alarm.clear()
        else:
            self._pause_reading(bool(self._reader.requests))
            self._set_deadline()
            if self._is_clear() and self._reader.take_continue():
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _fail(self, exchange: Exchange) -> None:
        if exchange.started:
            exchange.abort()
        elif not exchange.finished:
            exchange.respond(500, self._owner.error_body(500, "internal error"))

    def _pause_reading(self, pause: bool) -> None:
        if pause is self._reading_paused or self._transport is None:
            return
        self._reading_paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._reader.phase_since = monotonic()  # the time spent paused is ours, not the client's
            self._transport.resume_reading()

    def _set_deadline(self) -> None:
        phase = self._reader.phase
        if self._reading_paused or phase is Phase.BETWEEN:
            if self._current is None:
                self._alarm.set(monotonic() + self._limits.idle_timeout_s)
            else:
                self._alarm.clear()
        elif phase is Phase.HEAD:
            self._alarm.set(self._reader.phase_since + self._limits.header_timeout_s)
        else:
            self._alarm.set(self._reader.phase_since + self._limits.body_timeout_s)

    def _on_due(self) -> None:
        phase = self._reader.phase
        if phase in (Phase.HEAD, Phase.BODY) and not self._reading_paused:
            self._reader.refuse(Refusal(408, f"the {phase.value} took too long"))
            self._serve()
        elif self._is_being_read():
            self._alarm.set(monotonic() + self._limits.idle_timeout_s)
        else:
            self.abort()

    def _is_being_read(self) -> bool:
        """Whether the peer took part of a finished answer since the last time of asking."""
        if self._transport is None or self._lingering:
            return False
        before, self._unsent_bytes = self._unsent_bytes, self._transport.get_write_buffer_size()
        return 0 < self._unsent_bytes < before

    # --- AnswerSink

    @property
    def draining(self) -> bool:
        return self._owner.draining or self._owner.leaving

    def send(self, *pieces: bytes) -> None:
        if self._transport is None:
            return
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        else:
            self._transport.writelines(pieces)

    def finish(self, *, keep: bool) -> None:
        self._current = None
        self._unsent_bytes = sys.maxsize
        if not keep or self._owner.draining:
            self._close_after_writes()
        elif not self._serving:
            self._serve()

    def abort(self) -> None:
        self._lose_client()
        if self._transport is not None:
            self._transport.abort()

    # --- ends

    def drain(self) -> None:
        """Closes now if idle; otherwise the answers to what has been asked announce the close."""
        if self._reader.phase is Phase.BETWEEN and self._is_clear():
            self._close_after_writes()

    def _close_after_writes(self) -> None:
        self._reader.shut()
        self._reader.requests.clear()
        if self._transport is not None:
            self._alarm.set(monotonic() + self._limits.idle_timeout_s)
            self._transport.close()

    def _send_refusal(self, refusal: Refusal) -> None:
        assert self._transport is not None
        self._reader.refusal = None
        self._lingering = True
        body = self._owner.error_body(refusal.status, refusal.message)
        framing = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
        self._transport.write(answer_head(refusal.status, refusal.headers, framing) + body)
        self._pause_reading(False)
        self._alarm.set(monotonic() + self._limits.linger_timeout_s)
        if self._transport.can_write_eof():  # TLS has no half that closes; a client goes by its Content-Length
            self._transport.write_eof()

    def _drop(self, data: bytes) -> None:
        self._dropped_bytes += len(data)
        if self._dropped_bytes > _LINGER_BYTES:
            self.abort()

    def _lose_client(self) -> None:
        self._reader.shut()
        self._reader.requests.clear()
        exchange, self._current = self._current, None
        if exchange is not None:
            try:
                exchange.lose()
            except Exception:
                _log.exception("on_gone failed method=%s path=%s", exchange.method, exchange.path)
