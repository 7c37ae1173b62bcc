"""Heads: which requests are refused and why, and that nothing a caller gives can add a line to a head."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.http1.wire import Framing, Header, Refusal, answer_head, judge_head, request_head, split_target

_HOST: Header = (b"host", b"a")

_VERDICTS: list[tuple[str, str, bytes, list[Header], int | Framing]] = [
    ("a request without a body has length 0", "1.1", b"GET", [_HOST], Framing(0, False)),
    ("a length is taken", "1.1", b"POST", [_HOST, (b"content-length", b"7")], Framing(7, False)),
    ("a length at the limit is taken", "1.1", b"POST", [_HOST, (b"content-length", b"100")], Framing(100, False)),
    ("a length above the limit is refused", "1.1", b"POST", [_HOST, (b"content-length", b"101")], 413),
    ("a chunked body has no length", "1.1", b"POST", [_HOST, (b"transfer-encoding", b"Chunked")], Framing(None, False)),
    ("HTTP/1.0 needs no host", "1.0", b"GET", [], Framing(0, False)),
    ("HTTP/1.1 needs a host", "1.1", b"GET", [], 400),
    ("two hosts are refused", "1.1", b"GET", [_HOST, _HOST], 400),
    ("a host with a user is refused", "1.1", b"GET", [(b"host", b"u@h")], 400),
    ("a bad host is refused from HTTP/1.0 too", "1.0", b"GET", [(b"host", b"h/")], 400),
    ("an empty host is one", "1.1", b"GET", [(b"host", b"")], Framing(0, False)),
    ("HTTP/2 is refused", "2.0", b"GET", [_HOST], 505),
    ("HTTP/0.9 is refused", "0.9", b"GET", [], 505),
    ("CONNECT is refused", "1.1", b"CONNECT", [_HOST], 501),
    ("a negative length is refused", "1.1", b"POST", [_HOST, (b"content-length", b"-1")], 400),
    ("a signed length is refused", "1.1", b"POST", [_HOST, (b"content-length", b"+1")], 400),
    ("an empty length is refused", "1.1", b"POST", [_HOST, (b"content-length", b"")], 400),
    ("a list of lengths is refused", "1.1", b"POST", [_HOST, (b"content-length", b"1, 1")], 400),
    ("an endless length is refused", "1.1", b"POST", [_HOST, (b"content-length", b"9" * 5000)], 400),
    ("two lengths are refused", "1.1", b"POST", [_HOST, (b"content-length", b"1"), (b"content-length", b"2")], 400),
    (
        "a length beside a coding is refused",
        "1.1",
        b"POST",
        [_HOST, (b"transfer-encoding", b"chunked"), (b"content-length", b"1")],
        400,
    ),
    (
        "two codings are refused",
        "1.1",
        b"POST",
        [_HOST, (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"identity")],
        400,
    ),
    ("gzip before chunked is refused", "1.1", b"POST", [_HOST, (b"transfer-encoding", b"gzip, chunked")], 501),
    ("an unknown coding is refused", "1.1", b"POST", [_HOST, (b"transfer-encoding", b"xchunked")], 501),
    ("HTTP/1.0 has no coding", "1.0", b"POST", [(b"transfer-encoding", b"chunked")], 400),
    (
        "100-continue is noted",
        "1.1",
        b"POST",
        [_HOST, (b"expect", b"100-Continue"), (b"content-length", b"1")],
        Framing(1, True),
    ),
    (
        "100-continue from HTTP/1.0 is ignored",
        "1.0",
        b"POST",
        [(b"expect", b"100-continue"), (b"content-length", b"1")],
        Framing(1, False),
    ),
    ("another expectation is refused", "1.1", b"POST", [_HOST, (b"expect", b"wonders")], 417),
]


@pytest.mark.parametrize(
    ("version", "method", "headers", "expected"), [row[1:] for row in _VERDICTS], ids=[row[0] for row in _VERDICTS]
)
def test_judge_head(version: str, method: bytes, headers: list[Header], expected: int | Framing) -> None:
    verdict = judge_head(version, method, headers, max_body_bytes=100)
    assert (verdict.status if isinstance(verdict, Refusal) else verdict) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param(b"/a/b?x=1&y=%20", ("/a/b", "x=1&y=%20"), id="path and query stay as sent"),
        pytest.param(b"/", ("/", ""), id="the root"),
        pytest.param(b"/a??", ("/a", "?"), id="only the first question mark divides"),
        pytest.param(b"//a", ("//a", ""), id="two slashes are a path, not a host"),
        pytest.param(b"http://h:1/a?q", ("/a", "q"), id="absolute form"),
        pytest.param(b"HTTPS://h", ("/", ""), id="absolute form without a path"),
        pytest.param(b"http://h?q", ("/", "q"), id="absolute form with a query alone"),
        pytest.param(b"*", ("*", ""), id="asterisk form"),
        pytest.param(b"h:1", None, id="authority form is refused"),
        pytest.param(b"ftp://h/a", None, id="another scheme is refused"),
        pytest.param(b"http://[::1]:8/a", ("/a", ""), id="absolute form with an IPv6 address"),
        pytest.param(b"http:///a", None, id="absolute form without a host is refused"),
        pytest.param(b"http://:80/a", None, id="absolute form with a port alone is refused"),
        pytest.param(b"http://u:p@h/a", None, id="absolute form with a user is refused"),
        pytest.param(b"http://h\\a", None, id="a backslash divides nothing"),
        pytest.param(b"/a#b", None, id="a fragment is refused"),
    ],
)
def test_split_target(target: bytes, expected: tuple[str, str] | None) -> None:
    assert split_target(target) == expected


@pytest.mark.parametrize(
    "header",
    [
        pytest.param((b"x", b"a\r\ny: b"), id="CRLF in a value"),
        pytest.param((b"x", b"a\nb"), id="LF in a value"),
        pytest.param((b"x", b"a\rb"), id="CR in a value"),
        pytest.param((b"x", b"a\0b"), id="NUL in a value"),
        pytest.param((b"x\r\ny", b"a"), id="CRLF in a name"),
        pytest.param((b"content-length", b"1"), id="a length of the caller's own"),
        pytest.param((b"transfer-encoding", b"chunked"), id="a coding of the caller's own"),
        pytest.param((b"connection", b"close"), id="a field of the connection"),
    ],
)
def test_a_head_is_refused(header: Header) -> None:
    with pytest.raises(ValueError):
        answer_head(200, [header], b"")
    with pytest.raises(ValueError):
        request_head(b"GET", b"/", b"h", [header], 0)


@pytest.mark.parametrize("status", [0, 100, 101, 199, 600, -1])
def test_only_final_statuses_make_an_answer(status: int) -> None:
    with pytest.raises(ValueError):
        answer_head(status, (), b"")


@pytest.mark.parametrize(
    ("method", "target"),
    [(b"GET", b"/a b"), (b"GET", b"/a\r\nx: y"), (b"GET", b""), (b"get", b"/"), (b"G T", b"/"), (b"GET", b"/\xff")],
)
def test_only_a_request_line_is_sent(method: bytes, target: bytes) -> None:
    with pytest.raises(ValueError):
        request_head(method, target, b"h", (), 0)


def test_heads_as_bytes() -> None:
    assert answer_head(200, [(b"x", b"y")], b"content-length: 0\r\n") == (
        b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 0\r\n\r\n"
    )
    assert answer_head(499, (), b"") == b"HTTP/1.1 499 \r\n\r\n"
    assert request_head(b"GET", b"/", b"h:1", (), 0) == b"GET / HTTP/1.1\r\nhost: h:1\r\n\r\n"
    assert request_head(b"POST", b"/", b"h:1", [(b"a", b"b")], 0) == (
        b"POST / HTTP/1.1\r\nhost: h:1\r\na: b\r\ncontent-length: 0\r\n\r\n"
    )


@given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=4))
def test_a_head_has_exactly_the_lines_asked_for(headers: list[Header]) -> None:
    try:
        head = answer_head(200, headers, b"")
    except ValueError:
        return
    assert head.split(b"\r\n") == [b"HTTP/1.1 200 OK", *(b"%b: %b" % header for header in headers), b"", b""]
