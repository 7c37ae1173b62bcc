"""One request and its one answer, as a handler sees them.

The answer is whole (`respond`) or streamed (`start`, `write`…, `end`). Invariant: exactly one answer reaches the wire,
framed for the client's version and method; after `finished` or `gone` no call has an effect on the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from .wire import BODILESS, Header, answer_head

_JOIN_BYTES = 64 * 1024  # pieces above this are not copied to be joined with their frame


class AnswerSink(Protocol):
    """What an exchange needs of its connection."""

    write_paused: bool  # the peer reads more slowly than we write

    @property
    def draining(self) -> bool: ...  # the answer must announce that the connection closes
    def send(self, *pieces: bytes) -> None: ...
    def finish(self, *, keep: bool) -> None: ...
    def abort(self) -> None: ...


class Exchange:
    """A request with its whole body. `received_at`: `time.monotonic()` when the first byte of its head was read.

    `path` and `query` are as sent, not percent-decoded. `on_gone` is called at most once, and only before the answer is
    complete; `on_writable` once after each run of writes that ended with False.
    """

    __slots__ = (
        "_blocked",
        "_by_name",
        "_chunked",
        "_head",
        "_http10",
        "_keep",
        "_mute",
        "_sink",
        "body",
        "caller",
        "finished",
        "gone",
        "headers",
        "method",
        "on_gone",
        "on_writable",
        "path",
        "query",
        "received_at",
        "started",
    )

    def __init__(
        self,
        sink: AnswerSink,
        method: str,
        path: str,
        query: str,
        headers: list[Header],
        body: bytes,
        received_at: float,
        http10: bool,
        keep: bool,
    ) -> None:
        self._sink = sink
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self._by_name: dict[bytes, bytes] | None = None
        self.body = body
        self.received_at = received_at
        self.caller = ""  # who asks, once a handler has found out
        self._http10 = http10
        self._keep = keep
        self._head = b""
        self._chunked = False
        self._mute = method == "HEAD"
        self._blocked = False
        self.started = False
        self.finished = False
        self.gone = False
        self.on_gone: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The value of the first header `name` (lower case)."""
        if self._by_name is None:
            self._by_name = dict(reversed(self.headers))
        return self._by_name.get(name)

    def respond(
        self,
        status: int,
        body: bytes = b"",
        *,
        content_type: bytes = b"application/json",
        headers: Sequence[Header] = (),
    ) -> None:
        """The whole answer in one write. ValueError for a status or header that cannot be sent."""
        if self.gone:
            return
        self._check_unstarted()
        if status in BODILESS:
            framing = self._connection_line()
            body = b""
        else:
            framing = b"content-type: %b\r\ncontent-length: %d\r\n%b" % (
                _one_line(content_type),
                len(body),
                self._connection_line(),
            )
        head = answer_head(status, headers, framing)
        self.started = True
        self._close_books()
        if self._mute:
            self._sink.send(head)
        elif len(body) > _JOIN_BYTES:
            self._sink.send(head, body)
        else:
            self._sink.send(head + body)
        self._sink.finish(keep=self._keep)

    def start(self, status: int, headers: Sequence[Header] = ()) -> None:
        """Begins a streamed answer. Its head goes out with the first `write` (`write(b"")` sends it alone) or `end`."""
        if self.gone:
            return
        self._check_unstarted()
        if status in BODILESS:
            self._mute = True
            framing = b""
        elif self._http10:
            self._keep = False
            framing = b""
        else:
            self._chunked = not self._mute
            framing = b"transfer-encoding: chunked\r\n"
        self._head = answer_head(status, headers, framing + self._connection_line())
        self.started = True

    def write(self, data: bytes) -> bool:
        """Sends one piece. False: the peer is slow (or gone); hold further pieces until `on_writable`."""
        if self.gone:
            return False
        if not self.started or self.finished:
            raise RuntimeError("write outside of a streamed answer")
        head, self._head = self._head, b""
        if self._mute or not data:
            if head:
                self._sink.send(head)
        elif not self._chunked:
            self._sink.send(head + data)
        elif len(data) > _JOIN_BYTES:
            self._sink.send(b"%b%x\r\n" % (head, len(data)), data, b"\r\n")
        else:
            self._sink.send(b"%b%x\r\n%b\r\n" % (head, len(data), data))
        self._blocked = self._sink.write_paused
        return not self._blocked

    def end(self, data: bytes = b"") -> None:
        """Completes a streamed answer with a last piece, in one write."""
        if self.gone:
            return
        if not self.started or self.finished:
            raise RuntimeError("end outside of a streamed answer")
        self._close_books()
        last = b"" if self._mute else data
        if self._chunked:
            last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        if self._head or last:
            self._sink.send(self._head + last)
        self._sink.finish(keep=self._keep)

    def abort(self) -> None:
        """Closes the connection, so that a started answer cannot pass for a complete one; `on_gone` is not called."""
        if not (self.gone or self.finished):
            self._close_books()
            self._sink.abort()

    def lose(self) -> None:
        """The connection's word that the client is gone."""
        if self.gone or self.finished:
            return
        self.gone = True
        on_gone = self.on_gone
        self.on_gone = self.on_writable = None
        if on_gone is not None:
            on_gone()

    def unblock(self) -> None:
        """The connection's word that the peer has caught up."""
        if self._blocked:
            self._blocked = False
            if self.on_writable is not None:
                self.on_writable()

    def _close_books(self) -> None:
        """The answer is over; callbacks are let go, so that they and the exchange are no cycle for the collector."""
        self.finished = True
        self.on_gone = self.on_writable = None

    def _check_unstarted(self) -> None:
        if self.started or self.finished:
            raise RuntimeError("the exchange already has its answer")

    def _connection_line(self) -> bytes:
        if self._sink.draining:
            self._keep = False
        if not self._keep:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self._http10 else b""


def _one_line(value: bytes) -> bytes:
    if b"\r" in value or b"\n" in value:
        raise ValueError("a header contains CR, LF or NUL")
    return value
