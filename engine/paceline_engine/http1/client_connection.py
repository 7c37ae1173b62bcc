"""The client's side of one connection: one call at a time, its answer parsed and delivered.

What one read brings is delivered after the parser has run: head, the joined pieces of the body, the end. So a listener
may abort, or send its next request, from any callback. Invariant: bytes that no call asked for close the connection.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol, cast

import httptools

from .alarm import Alarm
from .call import Call, ErrorKind
from .wire import BODILESS, Header, find_header

_log = logging.getLogger(__name__)

_MAX_HEAD_BYTES = 64 * 1024
_HEAD_TOO_LARGE = f"the answer's head is larger than {_MAX_HEAD_BYTES} bytes"
_JOIN_BYTES = 64 * 1024  # bodies above this are not copied to be joined with their head


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds; None waits for ever."""

    idle_s: float
    head_s: float | None
    body_idle_s: float | None


class ConnectionPool(Protocol):
    """What a connection needs of its pool."""

    def release(self, connection: ClientConnection) -> None: ...
    def forget(self, connection: ClientConnection) -> None: ...


class ClientConnection(asyncio.Protocol):
    """asyncio protocol of one connection that we opened."""

    def __init__(self, pool: ConnectionPool, timeouts: Timeouts, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._timeouts = timeouts
        self._alarm = Alarm(loop, self._on_due)
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._call: Call | None = None
        self._reused = False
        self._sent_at = 0.0
        self._reading_paused = False
        self._any_byte = False  # of the answer to the present call
        self._head_at_parser = False  # the present call's final head has been parsed
        self._head_bytes = 0
        self._quiet_bytes = 0
        self._status = 0
        self._headers: list[Header] = []
        self._interim = False
        self._until_close = False
        self._keep = False
        self._head_ready = False  # parsed and not yet delivered
        self._pieces: list[bytes] = []
        self._complete = False
        self._surplus = False  # the parser saw what no call asked for

    # --- for the pool and the call

    def is_usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def begin(self, call: Call, *, reused: bool) -> None:
        """Sends the call's request."""
        transport = self._transport
        if transport is None:
            call.fail_unconnected(ErrorKind.CONNECT, "closed at once")
            return
        call.bind(self)
        self._call = call
        self._reused = reused
        self._any_byte = self._head_at_parser = self._complete = self._surplus = False
        self._sent_at = monotonic()
        if call.paused:
            self.pause_reading()
        if len(call.body) > _JOIN_BYTES:
            transport.writelines((call.head, call.body))
        else:
            transport.write(call.head + call.body)
        self._set_deadline()

    def adopt_idle(self) -> None:
        """A connection whose call was aborted while it was being made waits for another."""
        self._go_idle()

    def close(self) -> None:
        self._pool.forget(self)
        self._alarm.cancel()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self._call = None
        self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        if not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()
            self._alarm.clear()

    def resume_reading(self) -> None:
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()
            self._set_deadline()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._alarm.cancel()
        self._pool.forget(self)
        if self._call is not None:
            self._on_lost(str(exc) if exc is not None else "the server closed the connection")
        self._parser = None

    def eof_received(self) -> bool:
        call = self._call
        if call is not None and self._until_close and self._head_at_parser:
            self._call = None
            call.succeed()
        return False

    def data_received(self, data: bytes) -> None:
        if self._call is None:
            self.abort()
            return
        self._any_byte = True
        self._quiet_bytes += len(data)
        error: str | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            error = "the server switched protocols unasked"
        except httptools.HttpParserCallbackError as failure:
            if not isinstance(failure.__context__, _UnreadableError):
                raise
            error = str(failure.__context__)
        except httptools.HttpParserError as failure:
            self._surplus = self._complete
            error = None if self._complete else f"malformed HTTP: {failure}"
        if error is None and self._quiet_bytes > _MAX_HEAD_BYTES:
            error = _HEAD_TOO_LARGE
        self._deliver(error)

    # --- parser callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            self._surplus = True
            return
        self._quiet_bytes = self._head_bytes = 0
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._quiet_bytes = 0
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise _UnreadableError(_HEAD_TOO_LARGE)
        if not self._head_at_parser:  # else a trailer: dropped
            self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self._quiet_bytes = 0
        if self._complete:
            return
        status = self._parser.get_status_code()
        self._interim = status < 200
        if self._interim:
            return
        headers = self._headers
        codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
        if codings and codings != [b"chunked"]:
            raise _UnreadableError("the only transfer coding that is understood is chunked")
        self._status = status
        self._head_ready = self._head_at_parser = True
        delimited = status in BODILESS or find_header(headers, b"content-length") is not None
        self._until_close = not delimited and not codings
        self._keep = self._parser.should_keep_alive()
        if self._call is not None and self._call.head_only:
            self._complete = True
            self._keep = False  # llhttp would take the next answer for this one's body

    def on_body(self, piece: bytes) -> None:
        self._quiet_bytes = 0
        if not self._complete:
            self._pieces.append(piece)

    def on_message_complete(self) -> None:
        if not self._interim:
            self._complete = True

    # --- delivery

    def _deliver(self, error: str | None) -> None:
        """Hands on what the parser found; stops as soon as the listener has aborted."""
        call = self._call
        assert call is not None
        try:
            if self._head_ready:
                self._head_ready = False
                call.listener.on_head(self._status, self._headers)
            if self._pieces and not call.done:
                pieces, self._pieces = self._pieces, []
                call.listener.on_body(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        except Exception:
            _log.exception("listener failed status=%d", self._status)
            error = "the listener failed"
        if call.done:
            self._pieces = []
            return
        if error is not None:
            self.abort()
            call.fail(ErrorKind.PROTOCOL, error)
        elif self._complete:
            self._call = None
            self._end()
            call.succeed()
        else:
            self._set_deadline()

    def _end(self) -> None:
        """The answer is whole: back to the pool, or closed."""
        transport = self._transport
        assert transport is not None
        if self._surplus or not self._keep or transport.is_closing() or transport.get_write_buffer_size():
            self._pool.forget(self)
            self._alarm.cancel()
            transport.abort()
        else:
            self._go_idle()

    def _go_idle(self) -> None:
        self.resume_reading()
        self._alarm.set(monotonic() + self._timeouts.idle_s)
        self._pool.release(self)

    def _set_deadline(self) -> None:
        limit_s = self._timeouts.body_idle_s if self._head_at_parser else self._timeouts.head_s
        if self._reading_paused or limit_s is None:
            self._alarm.clear()
        else:
            self._alarm.set((monotonic() if self._head_at_parser else self._sent_at) + limit_s)

    def _on_due(self) -> None:
        call = self._call
        self.abort()
        if call is not None:
            if self._head_at_parser:
                call.fail(ErrorKind.TIMEOUT_IDLE, f"no byte for {self._timeouts.body_idle_s} s")
            else:
                call.fail(ErrorKind.TIMEOUT_HEAD, f"no answer within {self._timeouts.head_s} s")

    def _on_lost(self, why: str) -> None:
        call, self._call = self._call, None
        assert call is not None
        if self._any_byte:
            call.fail(ErrorKind.PARTIAL, why)
        elif self._reused and not call.retried:
            call.repeat()
        else:
            call.fail(ErrorKind.SENT, why)


class _UnreadableError(Exception):
    """Carries the refusal of a head out of a parser callback."""
