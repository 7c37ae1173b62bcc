"""A connection of the HTTP/1.1 server with its transport, loop and clock in the test's hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from paceline_engine.http1 import Exchange, Limits
from paceline_engine.http1.connection import ServerConnection
from paceline_engine.http1.request_reader import Judge


class Timer:
    def cancel(self) -> None: ...


class Loop:
    """A loop whose timers never fire."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        return Timer()


class Transport:
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

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True


class Owner:
    def __init__(self, handler: Callable[[Exchange], None], limits: Limits) -> None:
        self.handler = handler
        self.limits = limits
        self.draining = False
        self.leaving = False
        self.error_body: Callable[[int, str], bytes] = lambda status, _: b"refused %d" % status
        self.judge: Judge | None = None

    def opened(self, connection: ServerConnection) -> None: ...
    def lost(self, connection: ServerConnection) -> None: ...


class Peer:
    """A connection, its transport and what its handler saw."""

    def __init__(self, handler: Callable[[Exchange], None] | None = None, limits: Limits | None = None) -> None:
        self.seen: list[Exchange] = []
        self._handler = handler or self.echo
        self.transport = Transport()
        self.owner = Owner(self._handle, limits or Limits())
        self.connection = ServerConnection(self.owner, cast(asyncio.AbstractEventLoop, Loop()))
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


def summary(peer: Peer) -> tuple[object, ...]:
    seen = [(e.method, e.path, e.query, e.headers, e.body) for e in peer.seen]
    return seen, peer.transport.sent, peer.transport.closed, peer.transport.half_closed


GET = b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nX-Y:  z \r\n\r\n"


POST = b"POST /p HTTP/1.1\r\nhost: h\r\ncontent-length: 11\r\n\r\nhello world"
