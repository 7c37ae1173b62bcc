"""One request of ours on its way: what its listener is told, and which failures are safe to repeat.

Invariant: `done` is set before the listener's last callback, and nothing is delivered once it is set.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from .wire import Header

if TYPE_CHECKING:
    from .client_connection import ClientConnection


class ErrorKind(StrEnum):
    """How far a failed call got; what may be repeated follows from it."""

    CONNECT = "connect"  # no connection, nothing was sent: always safe to repeat
    TIMEOUT_CONNECT = "timeout_connect"  # likewise, after connect_timeout_s
    SENT = "sent"  # sent, or partly so, and closed without a byte of an answer
    PARTIAL = "partial"  # the answer had begun
    TIMEOUT_HEAD = "timeout_head"  # sent, no head within head_timeout_s
    TIMEOUT_IDLE = "timeout_idle"  # the answer stopped for body_idle_timeout_s
    PROTOCOL = "protocol"  # what came is not HTTP/1.1 as we speak it


class ClientError(Exception):
    """Why a call has no (complete) answer."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class ResponseListener(Protocol):
    """Hears the answer: `on_head`, `on_body`…, `on_end`; or, at any point, `on_error` instead of what would follow."""

    def on_head(self, status: int, headers: list[Header]) -> None: ...
    def on_body(self, data: bytes) -> None: ...
    def on_end(self) -> None: ...
    def on_error(self, error: ClientError) -> None: ...


class CallOwner(Protocol):
    """What a call needs of its pool."""

    in_flight: int

    def retry(self, call: Call) -> None: ...


class Call:
    """A request in flight; made by `ClientPool.request`."""

    __slots__ = (
        "_connection",
        "_owner",
        "body",
        "done",
        "head",
        "head_only",
        "listener",
        "paused",
        "retried",
        "sent",
    )

    def __init__(
        self, owner: CallOwner, head: bytes, body: bytes, listener: ResponseListener, *, head_only: bool
    ) -> None:
        self._owner = owner
        self._connection: ClientConnection | None = None
        self.head = head
        self.body = body
        self.head_only = head_only
        self.listener = listener
        self.sent = False
        self.retried = False
        self.paused = False
        self.done = False

    def abort(self) -> None:
        """Ends the call without a further callback, and closes its connection so that the server sees it at once."""
        if self.done:
            return
        connection = self._connection
        self.finish()
        if connection is not None:
            connection.abort()

    def pause(self) -> None:
        """Stops reading the answer (back-pressure) until `resume`; no idle timeout runs meanwhile."""
        self.paused = True
        if self._connection is not None:
            self._connection.pause_reading()

    def resume(self) -> None:
        """Reads on."""
        self.paused = False
        if self._connection is not None:
            self._connection.resume_reading()

    # --- for this package's pool and connections

    def bind(self, connection: ClientConnection) -> None:
        """The connection that carries the call now."""
        self._connection = connection
        self.sent = True

    def finish(self) -> ResponseListener:
        """Lets go of the listener, so that the two are no cycle for the collector; returns it for the last callback."""
        self.done = True
        self._connection = None
        self._owner.in_flight -= 1
        listener = self.listener
        del self.listener
        return listener

    def succeed(self) -> None:
        """The answer is complete."""
        self.finish().on_end()

    def fail(self, kind: ErrorKind, message: str) -> None:
        """There will be no (complete) answer."""
        if not self.done:
            self.finish().on_error(ClientError(kind, message))

    def fail_unconnected(self, kind: ErrorKind, message: str) -> None:
        """No connection came about; after a first try on a reused one the request may still have been acted on."""
        self.fail(ErrorKind.SENT if self.sent else kind, message)

    def repeat(self) -> None:
        """Once more on a fresh connection."""
        self._connection = None
        self.retried = True
        self._owner.retry(self)
