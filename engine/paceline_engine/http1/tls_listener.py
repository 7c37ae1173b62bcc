"""Accepts TLS connections: each is handed over once its handshake is done, with the certificate of that moment.

Handshakes take CPU and memory before anything is known of a peer, so both their number and their time are bounded:
where too many are under way, the oldest gives way, so that silent peers keep nobody out. Invariant: after `wait_closed`
no handshake is under way.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

_log = logging.getLogger(__name__)

MOST_HANDSHAKES = 512
HANDSHAKE_TIMEOUT_S = 5.0
SHUTDOWN_TIMEOUT_S = 75.0  # from a close to the peer's word that it is done too, what is still to be sent included
_PAUSE_S = 0.5  # after a connection that could not be accepted, mostly for want of descriptors


class TLSListener:
    """Listens on `host`:`port`. OSError when that cannot be bound. `context`: of the next connection."""

    def __init__(
        self,
        connect: Callable[[], asyncio.Protocol],
        context: Callable[[], ssl.SSLContext],
        host: str,
        port: int,
        *,
        backlog: int,
        reuse_port: bool,
    ) -> None:
        self._connect = connect
        self._context = context
        self._loop = asyncio.get_running_loop()
        [family, *_], *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self._socket = socket.create_server((host, port), family=family, backlog=backlog, reuse_port=reuse_port)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._handshakes: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Accepts no more and cuts handshakes off."""
        self._accepting.cancel()
        for handshake in self._handshakes:
            handshake.cancel()

    async def wait_closed(self) -> None:
        """Until what was cut off is gone."""
        await asyncio.gather(self._accepting, *self._handshakes, return_exceptions=True)
        self._socket.close()

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._socket)
            except OSError as e:
                _log.warning("connection not accepted error=%s", e)
                await asyncio.sleep(_PAUSE_S)
                continue
            task = self._loop.create_task(self._shake_hands(connection))
            self._handshakes[task] = None
            task.add_done_callback(self._over)
            if len(self._handshakes) > MOST_HANDSHAKES:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()

    def _over(self, handshake: asyncio.Task[None]) -> None:
        self._handshakes.pop(handshake, None)

    async def _shake_hands(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                self._connect,
                connection,
                ssl=self._context(),
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )
        except (OSError, asyncio.CancelledError):  # the peer's doing: a plain request, an old protocol, silence
            connection.close()
