"""Bytes of one connection → whole requests, or the one refusal after which nothing more is parsed; without I/O.

Invariants: the requests and the refusal are the same however the bytes are cut, but for bytes that mean nothing (chunk
extensions, leading zeros): beyond a limit they are refused, unless one read brings them all; a request whose length two
parsers could read differently is refused; what is held is bounded by the limits and one read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import httptools

from .wire import Framing, Header, Refusal, body_too_large, is_foreign, judge_head, split_target

_REQUEST_OVERHEAD_BYTES = 16  # request line beside its target
_FIELD_OVERHEAD_BYTES = 4  # ": " and CRLF


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may cost. `body_timeout_s` bounds the whole body, `header_timeout_s` the whole head."""

    max_header_bytes: int = 64 * 1024
    max_headers: int = 128
    max_body_bytes: int = 16 * 2**20
    plain_body_bytes: int = 64 * 1024  # larger ones, and those of unknown size, are read of whom `Judge` knows alone
    idle_timeout_s: float = 75.0
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    linger_timeout_s: float = 2.0


Judge = Callable[[Sequence[Header]], Refusal | None]  # by a head, before a large body is read


class Phase(Enum):
    """Where in the stream of requests the reader is."""

    BETWEEN = "between"  # no byte of a next request
    HEAD = "head"
    BODY = "body"
    SHUT = "shut"  # no further request is read; bytes are dropped


class _Head(NamedTuple):
    """A parsed head whose body is still to come."""

    method: bytes
    path: str
    query: str
    headers: list[Header]
    received_at: float
    http10: bool
    keep: bool
    framing: Framing


class ParsedRequest(NamedTuple):
    """A whole request, and what its answer must know of the connection."""

    method: str
    path: str
    query: str
    headers: list[Header]
    body: bytes
    received_at: float
    http10: bool
    keep: bool


class RequestReader:
    """Reads requests in order. `phase_since` is when the present head or body began, as given to `feed`."""

    def __init__(self, limits: Limits, judge: Judge | None = None) -> None:
        self._limits = limits
        self._judge = judge
        self._parser: Any = httptools.HttpRequestParser(self)
        self._read_at = 0.0
        self._quiet_bytes = 0  # read since the parser last reported anything
        self._head_bytes = 0
        self._raw: list[bytes] = []  # what was read since the present head began, or more
        self._raw_is_head = False  # and nothing before it
        self._url = b""
        self._headers: list[Header] = []
        self._received_at = 0.0
        self._head: _Head | None = None
        self._upgrade_asked = False
        self._body: list[bytes] = []
        self._body_bytes = 0
        self.phase = Phase.BETWEEN
        self.phase_since = 0.0
        self.requests: deque[ParsedRequest] = deque()
        self.refusal: Refusal | None = None

    def feed(self, data: bytes, now: float) -> None:
        """Parses what was read at `now`, seconds of `time.monotonic()`; nothing once the phase is SHUT."""
        self._read_at = now
        if self.phase is Phase.HEAD:
            self._raw.append(data)
        else:
            self._raw, self._raw_is_head = [data], self.phase is Phase.BETWEEN
        self._quiet_bytes += len(data)
        while not self._is_shut():
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._ignore_upgrade()
                continue
            except httptools.HttpParserError as error:
                self._on_parser_error(error)
            break
        if self._quiet_bytes > self._limits.max_header_bytes and not self._is_shut():
            self.refuse(_head_too_large(self._limits))

    def refuse(self, refusal: Refusal) -> None:
        """Reads no more; `refusal` follows the answers to the requests before it."""
        self.refusal = refusal
        self.shut()

    def shut(self) -> None:
        """Reads no more, and lets go of a request in its midst."""
        self.phase = Phase.SHUT
        self._head = None
        self._body = self._raw = []

    def take_continue(self) -> bool:
        """Whether the client waits to be asked for the body being read; True once a request."""
        head = self._head
        if head is None or not head.framing.expects_continue:
            return False
        self._head = head._replace(framing=head.framing._replace(expects_continue=False))
        return True

    def _is_shut(self) -> bool:
        return self.phase is Phase.SHUT

    # --- parser callbacks; an exception in one stops the parser

    def on_message_begin(self) -> None:
        self._quiet_bytes = self._head_bytes = 0
        self.phase = Phase.HEAD
        self.phase_since = self._received_at = self._read_at
        self._url = b""
        self._headers = []

    def on_url(self, piece: bytes) -> None:
        self._url += piece
        self._count_head(len(piece) + _REQUEST_OVERHEAD_BYTES)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + _FIELD_OVERHEAD_BYTES)
        if self.phase is Phase.HEAD:  # else a trailer: counted, and dropped as RFC 9110 §6.5.1 allows
            self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self._quiet_bytes = 0
        parser = self._parser
        if self._head is None:
            self._head = self._parse_head()
        self._upgrade_asked = parser.should_upgrade()
        self.phase = Phase.BODY
        self.phase_since = self._read_at
        self._body = []
        self._body_bytes = 0

    def on_body(self, piece: bytes) -> None:
        self._quiet_bytes = 0
        self._body_bytes += len(piece)
        if self._body_bytes > self._limits.max_body_bytes:
            raise _RefusedError(body_too_large(self._limits.max_body_bytes))
        self._body.append(piece)

    def on_message_complete(self) -> None:
        if self._upgrade_asked:
            return  # llhttp takes what follows for the new protocol; `_ignore_upgrade` reads the body
        head, self._head = self._head, None
        assert head is not None
        body, self._body = self._body, []
        self.requests.append(
            ParsedRequest(
                head.method.decode("latin-1"),
                head.path,
                head.query,
                head.headers,
                body[0] if len(body) == 1 else b"".join(body),
                head.received_at,
                head.http10,
                head.keep,
            )
        )
        self.phase = Phase.BETWEEN if head.keep else Phase.SHUT
        self._raw_is_head = False

    def _count_head(self, head_bytes: int) -> None:
        self._quiet_bytes = 0
        self._head_bytes += head_bytes
        if self._head_bytes > self._limits.max_header_bytes:
            raise _RefusedError(_head_too_large(self._limits))

    def _parse_head(self) -> _Head:
        parser = self._parser
        if len(self._headers) > self._limits.max_headers:
            raise _RefusedError(Refusal(431, f"more than {self._limits.max_headers} header fields"))
        version: str = parser.get_http_version()
        method: bytes = parser.get_method()
        framing = judge_head(version, method, self._headers, self._limits.max_body_bytes)
        if isinstance(framing, Refusal):
            raise _RefusedError(framing)
        length = framing.content_length
        is_large = length is None or length > self._limits.plain_body_bytes
        if is_large and self._judge is not None and (refusal := self._judge(self._headers)) is not None:
            raise _RefusedError(refusal)
        raw = self._raw[0] if len(self._raw) == 1 else b"".join(self._raw)
        is_http = self._raw_is_head and raw.startswith(b"%b %b HTTP/" % (method, self._url))
        if not is_http and is_foreign(raw, method, self._url):
            raise _RefusedError(Refusal(400, "malformed HTTP: the request line is of another protocol"))
        target = split_target(self._url)
        if target is None or (self._url == b"*" and method != b"OPTIONS"):
            raise _RefusedError(Refusal(400, "the request target is neither a path nor an http URL"))
        return _Head(
            method,
            *target,
            self._headers,
            self._received_at,
            http10=version == "1.0",
            keep=parser.should_keep_alive(),
            framing=framing,
        )

    def _ignore_upgrade(self) -> None:
        """Serves a request that offers another protocol (`Upgrade: h2c`) as plain HTTP/1.1, as RFC 9110 §7.8 allows.

        llhttp ends such a message at its head, so a fresh parser is told the framing alone and reads on from the body.
        """
        assert self._head is not None
        length = self._head.framing.content_length
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        connection = b"" if self._head.keep else b"connection: close\r\n"
        saved, head_bytes = self._received_at, self._head_bytes
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b%b\r\n\r\n" % (connection, framing))
        self._received_at, self._head_bytes = saved, head_bytes

    def _on_parser_error(self, error: Exception) -> None:
        if self.phase is Phase.SHUT:
            return  # bytes after a request that closes the connection
        cause = error.__context__
        if isinstance(cause, _RefusedError):
            self.refuse(cause.refusal)
        elif isinstance(error, httptools.HttpParserCallbackError):
            raise error  # a bug of ours
        elif "HTTP version" in str(error) or "PRI" in str(error):
            self.refuse(Refusal(505, "this server speaks HTTP/1.1 and HTTP/1.0"))
        else:
            self.refuse(Refusal(400, f"malformed HTTP: {error}"))


def _head_too_large(limits: Limits) -> Refusal:
    return Refusal(431, f"the head is larger than {limits.max_header_bytes} bytes")


class _RefusedError(Exception):
    """Carries a refusal out of a parser callback."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
