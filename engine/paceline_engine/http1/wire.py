"""HTTP/1.1 on the wire, pure: heads as bytes, and the verdict on a request's head.

The parser (llhttp) already refuses most ambiguity; what is judged here is what it lets through or answers too coarsely.
Invariant: a head built here holds exactly the lines that were asked for (no CR, LF or NUL of a value reaches the wire),
and only this package writes the fields that delimit messages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple

Header = tuple[bytes, bytes]  # name in lower case, value without surrounding blanks

# Fields of one hop (RFC 9110 §7.6.1): a relay drops them, and no caller may set them.
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
_OWN_ANSWER = HOP_BY_HOP | {b"content-length"}
_OWN_REQUEST = HOP_BY_HOP | {b"content-length", b"host", b"expect"}
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_REQUEST_LINE = re.compile(rb"[A-Z]+ [!-~]+")
# RFC 3986 §3.2.2: a name or an IPv4 address, or an IP literal; then, after a colon, a port or nothing.
_LITERAL, _NAME = rb"\[[0-9A-Za-z:.%~_-]+\]", rb"(?:[0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})"
_HOST = re.compile(rb"(?:%b|%b*)(?::[0-9]*)?" % (_LITERAL, _NAME))
_ABSOLUTE = re.compile(rb"https?://(?:%b|%b+)(?::[0-9]*)?(?=[/?]|$)" % (_LITERAL, _NAME), re.IGNORECASE)
BODILESS = frozenset({204, 304})
_MAX_LENGTH_DIGITS = 18  # below 2**63, as llhttp counts


class Refusal(NamedTuple):
    """An answer of the protocol's own, after which the connection is closed."""

    status: int
    message: str
    headers: tuple[Header, ...] = ()


class Framing(NamedTuple):
    """How a request's body is delimited; `content_length` is None for a chunked one."""

    content_length: int | None
    expects_continue: bool


def judge_head(version: str, method: bytes, headers: Sequence[Header], max_body_bytes: int) -> Framing | Refusal:
    """The body's framing, or why the request cannot be served (RFC 9112 §3.2, §6.1, §6.3)."""
    if version not in ("1.1", "1.0"):
        return Refusal(505, f"HTTP/{version} is not supported; use HTTP/1.1")
    if method == b"CONNECT":
        return Refusal(501, "CONNECT is not supported")
    hosts: list[bytes] = []
    length: bytes | None = None
    coding: bytes | None = None
    expect = b""
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            if length is not None:
                return Refusal(400, "more than one Content-Length")
            length = value
        elif name == b"transfer-encoding":
            if coding is not None:
                return Refusal(400, "more than one Transfer-Encoding")
            coding = value.lower()
        elif name == b"expect":
            expect = value.lower()
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        return Refusal(400, "exactly one Host header is needed")
    if hosts and _HOST.fullmatch(hosts[0]) is None:
        return Refusal(400, "Host is neither a host nor one with a port")
    if expect and expect != b"100-continue":
        return Refusal(417, "the only expectation that is met is 100-continue")
    if coding is not None:
        if length is not None:
            return Refusal(400, "Content-Length and Transfer-Encoding exclude each other")
        if version == "1.0":
            return Refusal(400, "HTTP/1.0 has no Transfer-Encoding")
        if coding != b"chunked":
            return Refusal(501, "the only transfer coding that is understood is chunked")
        return Framing(None, bool(expect))
    if length is None:
        return Framing(0, False)
    if not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS:
        return Refusal(400, "Content-Length is not a length")
    if int(length) > max_body_bytes:
        return body_too_large(max_body_bytes)
    return Framing(int(length), bool(expect) and version == "1.1")


def body_too_large(max_body_bytes: int) -> Refusal:
    """The refusal of a body above the limit, in bytes."""
    return Refusal(413, f"the body is larger than {max_body_bytes} bytes")


def is_foreign(raw: bytes, method: bytes, target: bytes) -> bool:
    """Whether the request line in `raw` is of RTSP or ICE, which llhttp takes for HTTP of the same version.

    `raw` may hold more than the line; a line in there that is the same but for the protocol would be taken for it.
    """
    if b" RTSP/" not in raw and b" ICE/" not in raw:
        return False
    return re.search(rb"%b +%b +(?:RTSP|ICE)/" % (re.escape(method), re.escape(target)), raw) is not None


def split_target(target: bytes) -> tuple[str, str] | None:
    """Path and query, as sent, of a target in origin or absolute form or `*`; None for another form or a fragment.

    An absolute one has a host and no user (RFC 9110 §4.2); the path is all that is served by, whoever it names.
    """
    if target[:1] != b"/" and target != b"*":
        absolute = _ABSOLUTE.match(target)
        if absolute is None:
            return None
        target = target[absolute.end() :]
        if target[:1] != b"/":
            target = b"/" + target
    if b"#" in target:
        return None
    path, _, query = target.decode("latin-1").partition("?")
    return path, query


def _header_block(headers: Sequence[Header], own: frozenset[bytes]) -> bytes:
    """`name: value` lines; ValueError for a line break inside one or a field that only this package sets."""
    if not headers:
        return b""
    for name, _ in headers:
        if name in own:
            raise ValueError(f"header {name.decode('latin-1')!r} belongs to the connection")
    block = b"".join([b"%b: %b\r\n" % header for header in headers])
    lines = len(headers)
    if block.count(b"\n") != lines or block.count(b"\r") != lines or b"\0" in block:
        raise ValueError("a header contains CR, LF or NUL")
    return block


def answer_head(status: int, headers: Sequence[Header], framing: bytes) -> bytes:
    """Head of an answer; `framing` holds whole lines made by this package. ValueError for a bad status or header."""
    line = _STATUS_LINES.get(status)
    if line is None:
        if not 200 <= status <= 599:
            raise ValueError(f"status {status} is outside 200..599")
        line = b"HTTP/1.1 %d \r\n" % status
    elif status < 200:
        raise ValueError(f"status {status} is not a final one")
    return b"%b%b%b\r\n" % (line, _header_block(headers, _OWN_ANSWER), framing)


def request_head(method: bytes, target: bytes, host: bytes, headers: Sequence[Header], body_bytes: int) -> bytes:
    """Head of a request with its Content-Length. ValueError for a method, target or header that cannot be sent."""
    line = b"%b %b" % (method, target)
    if _REQUEST_LINE.fullmatch(line) is None:
        raise ValueError(f"not a request line: {line[:200]!r}")
    block = _header_block(headers, _OWN_REQUEST)
    if body_bytes == 0 and method in (b"GET", b"HEAD"):
        return b"%b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (line, host, block)
    return b"%b HTTP/1.1\r\nhost: %b\r\n%bcontent-length: %d\r\n\r\n" % (line, host, block, body_bytes)


def find_header(headers: Sequence[Header], name: bytes) -> bytes | None:
    """The value of the first header `name` (lower case)."""
    for key, value in headers:
        if key == name:
            return value
    return None
