"""A pool of connections to one server, and calls over them.

Idle connections are reused last in, first out; nothing bounds the number of open ones but the caller's own admission.
Invariants: a listener hears the end of its call exactly once, by `on_end` or `on_error`, unless it aborted; it is never
called from inside `request`; a connection is reused only when both sides agreed and its answer ended cleanly.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from .call import Call, ClientError, ErrorKind, ResponseListener
from .client_connection import ClientConnection, Timeouts
from .wire import Header, find_header, request_head


class ClientPool:
    """Connections to `host`:`port`. The timeouts are seconds; None waits for ever.

    `head_timeout_s` runs from the sending of the request to the answer's head, `body_idle_timeout_s` from read to read,
    `connect_timeout_s` until TLS, if there is any, is agreed on. `headers` go with every request.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        max_idle: int = 256,
        idle_timeout_s: float = 60.0,
        connect_timeout_s: float = 2.0,
        head_timeout_s: float | None = None,
        body_idle_timeout_s: float | None = None,
        tls: ssl.SSLContext | None = None,
        headers: Sequence[Header] = (),
    ) -> None:
        self._tls = tls
        self._headers = tuple(headers)
        self.host = host
        self.port = port
        self.in_flight = 0
        self._host_header = f"[{host}]:{port}".encode() if ":" in host else f"{host}:{port}".encode()
        self._max_idle = max_idle
        self._connect_timeout_s = connect_timeout_s
        self._timeouts = Timeouts(idle_timeout_s, head_timeout_s, body_idle_timeout_s)
        self._idle: dict[ClientConnection, None] = {}  # in order of release
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def url(self) -> str:
        """What it reaches, without a path."""
        return f"{'http' if self._tls is None else 'https'}://{self._host_header.decode()}"

    @property
    def idle(self) -> int:
        return len(self._idle)

    def request(
        self, method: bytes, target: bytes, headers: Sequence[Header], body: bytes, listener: ResponseListener
    ) -> Call:
        """Sends a request. ValueError for a head that cannot be sent; everything later goes to `listener`.

        A reused connection that turns out closed before any byte of an answer is the known race of keep-alive: the
        request is sent once more on a fresh connection, and only then is the failure reported.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        if self._headers:
            headers = (*self._headers, *headers)
        head = request_head(method, target, self._host_header, headers, len(body))
        call = Call(self, head, body, listener, head_only=method == b"HEAD")
        self.in_flight += 1
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_usable():
                connection.begin(call, reused=True)
                return call
        self._connect(call)
        return call

    def close(self) -> None:
        """Closes idle connections; calls in flight go on, and their connections close when they end."""
        self._closed = True
        while self._idle:
            self._idle.popitem()[0].close()

    # --- for this package's connections and calls

    def retry(self, call: Call) -> None:
        """Sends `call` again on a fresh connection."""
        self._connect(call)

    def release(self, connection: ClientConnection) -> None:
        """Takes back a connection that can carry another call."""
        if self._closed or len(self._idle) >= self._max_idle:
            connection.close()
        else:
            self._idle[connection] = None

    def forget(self, connection: ClientConnection) -> None:
        """The connection can carry no call any more."""
        self._idle.pop(connection, None)

    def _connect(self, call: Call) -> None:
        task = asyncio.get_running_loop().create_task(self._open(call))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _open(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: ClientConnection(self, self._timeouts, loop), self.host, self.port, ssl=self._tls
                )
        except TimeoutError:
            call.fail_unconnected(ErrorKind.TIMEOUT_CONNECT, f"no connection within {self._connect_timeout_s} s")
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA refuses
            call.fail_unconnected(ErrorKind.CONNECT, str(error))
        except asyncio.CancelledError:
            call.fail_unconnected(ErrorKind.CONNECT, "cancelled")
            raise
        else:
            if call.done:  # aborted meanwhile
                connection.adopt_idle()
            else:
                connection.begin(call, reused=False)


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    status: int
    headers: list[Header]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The value of the first header `name` (lower case)."""
        return find_header(self.headers, name)


class _Collector:
    """Listener that gathers a whole answer into a future."""

    def __init__(self, done: asyncio.Future[Response], max_body_bytes: int) -> None:
        self.call: Call | None = None
        self.done = done
        self._max_body_bytes = max_body_bytes
        self._status = 0
        self._headers: list[Header] = []
        self._pieces: list[bytes] = []
        self._body_bytes = 0

    def on_head(self, status: int, headers: list[Header]) -> None:
        self._status = status
        self._headers = headers

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)
        self._body_bytes += len(data)
        if self._body_bytes > self._max_body_bytes and self.call is not None:
            self.call.abort()
            self.on_error(ClientError(ErrorKind.PROTOCOL, f"the answer is larger than {self._max_body_bytes} bytes"))

    def on_end(self) -> None:
        if not self.done.done():
            self.done.set_result(Response(self._status, self._headers, b"".join(self._pieces)))

    def on_error(self, error: ClientError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


async def fetch(
    pool: ClientPool,
    method: bytes,
    target: bytes,
    headers: Sequence[Header] = (),
    body: bytes = b"",
    *,
    timeout_s: float,
    max_body_bytes: int = 64 * 2**20,
) -> Response:
    """The whole answer to one request. ClientError when there is none, TimeoutError after `timeout_s`."""
    collector = _Collector(asyncio.get_running_loop().create_future(), max_body_bytes)
    collector.call = pool.request(method, target, headers, body, collector)
    try:
        async with asyncio.timeout(timeout_s):
            return await collector.done
    finally:
        collector.call.abort()


__all__ = ["Call", "ClientError", "ClientPool", "ErrorKind", "Response", "ResponseListener", "fetch"]
