"""Listens, and drains: the owner of the server's connections.

Invariant: after `drain` or `close` returns, no connection is open and none will be accepted.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable

from paceline_api import outcomes

from .connection import ServerConnection
from .exchange import Exchange
from .request_reader import Judge, Limits
from .tls_listener import TLSListener

Handler = Callable[[Exchange], None]  # synchronous; an exception is logged and answered with 500


class Server:
    """A listening server; made by `serve`."""

    def __init__(
        self, handler: Handler, limits: Limits, error_body: Callable[[int, str], bytes], judge: Judge | None
    ) -> None:
        self.handler = handler
        self.limits = limits
        self.error_body = error_body
        self.judge = judge
        self.draining = False
        self.leaving = False
        self._connections: set[ServerConnection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.port = 0
        self._listener: asyncio.Server | TLSListener | None = None

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    async def listen(
        self, host: str, port: int, *, backlog: int, reuse_port: bool, tls: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        """Accepts on `host`:`port` (0: kernel-chosen, then in `port`). OSError when the address cannot be bound."""
        loop = asyncio.get_running_loop()
        if tls is not None:
            own = TLSListener(
                lambda: ServerConnection(self, loop), tls, host, port, backlog=backlog, reuse_port=reuse_port
            )
            self._listener, self.port = own, own.port
            return
        self._listener = await loop.create_server(
            lambda: ServerConnection(self, loop), host, port, backlog=backlog, reuse_port=reuse_port or None
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    def announce_close(self) -> None:
        """Goes on accepting, but each answer that begins from now on ends its connection: clients go elsewhere."""
        self.leaving = True

    async def drain(self, timeout_s: float) -> None:
        """Stops accepting, closes idle connections, lets answers in progress end, then aborts the rest."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        if isinstance(self._listener, TLSListener):
            await self._listener.wait_closed()
        for connection in list(self._connections):
            connection.drain()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
            await self._empty.wait()

    def opened(self, connection: ServerConnection) -> None:
        """A connection was accepted."""
        self._connections.add(connection)
        self._empty.clear()

    def lost(self, connection: ServerConnection) -> None:
        """A connection is closed."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    async def close(self) -> None:
        """Drains without waiting: answers in progress are cut off."""
        await self.drain(0.0)


def openai_error_body(status: int, message: str) -> bytes:
    """OpenAI's error body for a refusal of the protocol's own."""
    return json.dumps(outcomes.error_body("invalid_request", message)).encode()


async def serve(
    handler: Handler,
    host: str,
    port: int,
    *,
    limits: Limits | None = None,
    backlog: int = 4096,
    reuse_port: bool = False,
    error_body: Callable[[int, str], bytes] | None = None,
    tls: Callable[[], ssl.SSLContext] | None = None,
    judge: Judge | None = None,
) -> Server:
    """A server that hands every request to `handler`. OSError when the address cannot be bound.

    `tls`: the context of each next connection, for a server of HTTPS alone. `judge` may refuse large bodies.
    """
    server = Server(handler, limits or Limits(), error_body or openai_error_body, judge)
    await server.listen(host, port, backlog=backlog, reuse_port=reuse_port, tls=tls)
    return server
