"""Requests as attackers and careless clients send them, and what may come of each.

Every row begins on a fresh connection and is followed there by LAST. Either the connection ends with one refusal, after
which nothing is believed any more, or it stays in step: what was handed over is followed by LAST's own answer. `bodies`
are the bodies of the requests handed over before that. A body that is not ASK cannot be forwarded. Kinds of attack are
those known of HTTP/1.1 in public (RFC 9112 §11, the test cases of llhttp and h11); each row was written for here.
"""

from __future__ import annotations

from dataclasses import dataclass

ASK = b'{"prompt":[1],"max_tokens":1}'
HIDDEN = b'{"prompt":[9],"max_tokens":1}'  # of a request inside another's body
LAST = b"GET /last HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n"
_LINE = b"POST /v1/completions HTTP/1.1"
_ELSEWHERE = b"POST http://evil/v1/completions HTTP/1.1"
_SIZED = b"content-length: 29"
_KEEP = b"connection: keep-alive"
_CHUNKED = b"transfer-encoding: chunked"
_CHUNK = b"1d\r\n" + ASK + b"\r\n"
_END = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Sent:
    """`refused`: the status of the refusal that ends the connection, 0 for none."""

    says: str
    raw: bytes
    refused: int = 0
    bodies: tuple[bytes, ...] = ()


def head(*fields: bytes, line: bytes = _LINE, host: bytes = b"host: h") -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *fields, b"", b""])


def post(*fields: bytes, body: bytes = ASK) -> bytes:
    return head(*fields) + body


def chunked(body: bytes, *fields: bytes) -> bytes:
    return head(_CHUNKED, *fields) + body


_RTSP = b"GET /v1/completions RTSP/1.0\r\n\r\n"
_HIDDEN = head(b"content-length: 29") + HIDDEN
_BOTH = [
    ("a length, then chunks that hold another request", post(_SIZED, _CHUNKED, body=_END + _HIDDEN)),
    ("chunks, then a length that hides another request", post(_CHUNKED, b"content-length: 4", body=_CHUNK + _END)),
    ("a length of 0 and chunks", post(b"content-length: 0", _CHUNKED, body=_CHUNK + _END)),
    ("a length and the coding identity", post(_SIZED, b"transfer-encoding: identity")),
    ("a length and an unknown coding", post(_SIZED, b"transfer-encoding: x")),
    ("a length and an empty coding", post(_SIZED, b"transfer-encoding:")),
    ("two lengths that differ", post(_SIZED, b"content-length: 3")),
    ("two lengths that agree", post(_SIZED, _SIZED)),
    ("two lengths in one field", post(b"content-length: 29, 29")),
    ("two lengths in one field that differ", post(b"content-length: 29, 3")),
    ("chunked twice", post(_CHUNKED, _CHUNKED, body=_CHUNK + _END)),
    ("chunked, and identity in a second field", post(_CHUNKED, b"transfer-encoding: identity", body=_CHUNK + _END)),
    ("identity, and chunked in a second field", post(b"transfer-encoding: identity", _CHUNKED, body=_CHUNK + _END)),
    ("chunks from HTTP/1.0", head(_CHUNKED, line=b"POST /v1/completions HTTP/1.0") + _CHUNK + _END),
]

_LENGTHS = [
    *(b"+29", b"-29", b"-0", b"0x1d", b"1d", b"29.0", b"2.9e1", b"29;", b"2 9", b"2_9", b"\xb29", b"\xd9\xa2\xd9\xa9"),
    *(b'"29"', b"", b" ", b"29\x0b", b"\x0c29", b"29\0", b"18446744073709551645", b"4294967325" + b"0" * 12),
]

_CODINGS: list[tuple[bytes, int]] = [
    (b"xchunked", 501),
    (b"chunked, identity", 400),
    (b"chunked, chunked", 400),
    (b"gzip, chunked", 501),
    (b"identity, chunked", 501),
    (b"chunked, gzip", 400),
    (b"identity", 501),
    (b"chunked;q=1", 501),
    (b'"chunked"', 501),
    (b"chunked,", 400),
    (b",chunked", 501),
    (b"chunk", 501),
    (b"chunked\x0b", 400),
    (b"\x0bchunked", 400),
    (b"chun\0ked", 400),
    (b"chunked\r\n ", 400),
    (b"\r\n chunked", 400),
    (b"\rchunked", 400),
    (b"chunked\r", 400),
    (b"\nchunked", 400),
]

_CHUNKS: list[tuple[str, bytes]] = [
    ("a negative size", b"-1d\r\n" + ASK + b"\r\n" + _END),
    ("a signed size", b"+1d\r\n" + ASK + b"\r\n" + _END),
    ("a size with 0x", b"0x1d\r\n" + ASK + b"\r\n" + _END),
    ("a size after a blank", b" 1d\r\n" + ASK + b"\r\n" + _END),
    ("a size before a blank", b"1d \r\n" + ASK + b"\r\n" + _END),
    ("a size before a tab", b"1d\t\r\n" + ASK + b"\r\n" + _END),
    ("a size with an underscore", b"1_d\r\n" + ASK + b"\r\n" + _END),
    ("no size", b"\r\n" + ASK + b"\r\n" + _END),
    ("only an extension", b";a=b\r\n" + ASK + b"\r\n" + _END),
    ("a size that overflows 64 bits", b"1000000000000001d\r\n" + ASK + b"\r\n" + _END),
    ("a size of 40 digits", b"f" * 40 + b"\r\n" + ASK + b"\r\n" + _END),
    ("a size that ends with a bare LF", b"1d\n" + ASK + b"\r\n" + _END),
    ("a size that ends with a bare CR", b"1d\r" + ASK + b"\r\n" + _END),
    ("a size that ends with two CRs", b"1d\r\r\n" + ASK + b"\r\n" + _END),
    ("an extension that ends with a bare LF", b"1d;a\n" + ASK + b"\r\n" + _END),
    ("an extension that ends with a bare CR", b"1d;a\r" + ASK + b"\r\n" + _END),
    ("an extension with a NUL", b"1d;a=\0\r\n" + ASK + b"\r\n" + _END),
    ("a quoted line break in an extension", b'1d;a="\r\n"\r\n' + ASK + b"\r\n" + _END),
    ("an open quote in an extension", b'1d;a="\r\n' + ASK + b"\r\n" + _END),
    ("data longer than its size", b"1c\r\n" + ASK + b"\r\n" + _END),
    ("data shorter than its size", b"1e\r\n" + ASK + b"\r\n" + _END),
    ("data that ends with a bare LF", b"1d\r\n" + ASK + b"\n" + _END),
    ("data that ends with a bare CR", b"1d\r\n" + ASK + b"\r" + _END),
    ("data without an end of line", b"1d\r\n" + ASK + _END),
    ("two bytes in place of the end of line", b"1d\r\n" + ASK + b"XX" + _END),
    ("a last chunk that ends with bare LFs", _CHUNK + b"0\n\n"),
    ("a last chunk that ends with one bare LF", _CHUNK + b"0\r\n\n"),
    ("another request right after the last size", _CHUNK + b"0\r\n" + _HIDDEN),
    ("a trailer with a bare LF", _CHUNK + b"0\r\na: b\n\r\n"),
    ("a folded trailer", _CHUNK + b"0\r\na: b\r\n c\r\n\r\n"),
    ("a trailer with a blank before its colon", _CHUNK + b"0\r\na : b\r\n\r\n"),
    ("a length among the trailers", _CHUNK + b"0\r\ncontent-length: 3\r\n\r\n"),
    ("a coding among the trailers", _CHUNK + b"0\r\ntransfer-encoding: chunked\r\n\r\n"),
    ("a trailer with a NUL", _CHUNK + b"0\r\na: \0\r\n\r\n"),
]

_FIELDS: list[tuple[str, bytes]] = [
    ("a blank before the colon of the length", b"content-length : 29"),
    ("a tab before the colon of the length", b"content-length\t: 29"),
    ("a blank before the colon of the coding", b"transfer-encoding : chunked"),
    ("a NUL in a name", b"a\0: b"),
    ("a NUL in a value", b"a: \0"),
    ("a control character in a value", b"a: \x01"),
    ("a DEL in a value", b"a: \x7f"),
    ("a bare CR in a value that looks like a field", b"a: b\rtransfer-encoding: chunked"),
    ("a bare LF in a value that looks like a field", b"a: b\ntransfer-encoding: chunked"),
    ("two CRs at the end of a line", b"a: b\r"),
    ("a folded value", b"a: b\r\n c"),
    ("a value folded by a tab", b"a: b\r\n\tc"),
    ("a line of one blank", b" "),
    ("a line of one tab", b"\t"),
    ("no name", b": b"),
    ("no colon", b"a"),
    ("a blank in a name", b"a b: c"),
    ("brackets in a name", b"a[0]: c"),
    ("a name in Latin-1", b"\xe4: b"),
    ("a name before a vertical tab", b"content-length\x0b: 29"),
]

_LINES: list[tuple[str, bytes, int]] = [
    ("a method in lower case", b"post /v1/completions HTTP/1.1", 400),
    ("an unknown method", b"POSTS /v1/completions HTTP/1.1", 400),
    ("no target", b"POST HTTP/1.1", 400),
    ("a tab before the target", b"POST\t/v1/completions HTTP/1.1", 400),
    ("a blank after the version", b"POST /v1/completions HTTP/1.1 ", 400),
    ("a blank in the target", b"POST /v1/comp letions HTTP/1.1", 400),
    ("a NUL in the target", b"POST /v1/completions\0 HTTP/1.1", 400),
    ("a control character in the target", b"POST /v1/completions\x01 HTTP/1.1", 400),
    ("a line break in the target", b"POST /v1/completions\r\na: HTTP/1.1", 505),
    ("a target that is a host", b"POST h:80 HTTP/1.1", 400),
    ("a target that is a name", b"POST v1/completions HTTP/1.1", 400),
    ("a target of another scheme", b"POST ftp://h/v1/completions HTTP/1.1", 400),
    ("a version of two digits", b"POST /v1/completions HTTP/1.10", 400),
    ("a version with a leading zero", b"POST /v1/completions HTTP/01.1", 400),
    ("a version in lower case", b"POST /v1/completions http/1.1", 400),
    ("another protocol", b"POST /v1/completions SIP/2.0", 400),
    ("RTSP, which llhttp reads as well", b"POST /v1/completions RTSP/1.1", 400),
    ("RTSP after two blanks", b"POST /v1/completions  RTSP/1.0", 400),
    ("a method of RTSP", b"DESCRIBE /v1/completions RTSP/1.0", 400),
    ("ICE", b"SOURCE /v1/completions ICE/1.0", 400),
    ("a star for another method than OPTIONS", b"POST * HTTP/1.1", 400),
    ("a target with a user", b"POST http://h@evil/v1/completions HTTP/1.1", 400),
    ("a target without a host", b"POST http:///v1/completions HTTP/1.1", 400),
    ("a target with a port that is none", b"POST http://h:x/v1/completions HTTP/1.1", 400),
    ("HTTP/3", b"POST /v1/completions HTTP/3.0", 505),
    ("no version", b"POST /v1/completions", 505),
    ("a line that ends with a bare LF", b"POST /v1/completions HTTP/1.1\nhost: h", 400),
    ("a line that ends with two CRs", b"POST /v1/completions HTTP/1.1\r", 400),
]

_HOSTS = [
    *(
        b"u@h",
        b"u:p@h",
        b"h/",
        b"h/v1",
        b"/",
        b"h?q",
        b"h#f",
        b"http://h",
        b"a b",
        b"a\tb",
        b"h,h:x",
        b"h h",
        b"h:80:80",
    ),
    *(
        b"h:x",
        b"h:-1",
        b"h:+1",
        b"[::1",
        b"::1",
        b"[]",
        b"[::1]h",
        b"h\\",
        b"h%",
        b"h%4",
        b"h%zz",
        b'"h"',
        b"<h>",
        b"h|h",
    ),
    *(b"h\x01", b"h\x7f", b"h\0", b"\xe4", b"h\x0b", b"{h}", b"h^", b"h`"),
]

_REFUSED = [
    *(Sent(says, raw, 400) for says, raw in _BOTH),
    *(Sent(f"the length {v.decode('latin-1')!r}", post(b"content-length: " + v), 400) for v in _LENGTHS),
    *(
        Sent(f"the coding {v.decode('latin-1')!r}", post(b"transfer-encoding: " + v, body=_CHUNK + _END), status)
        for v, status in _CODINGS
    ),
    *(Sent(f"a chunk with {says}", chunked(body), 400) for says, body in _CHUNKS),
    *(Sent(f"a field: {says}", post(_SIZED, field), 400) for says, field in _FIELDS),
    *(Sent(f"a request line: {says}", head(_SIZED, line=line) + ASK, status) for says, line, status in _LINES),
    Sent("a folded first field", head(_SIZED, host=b" host: h") + ASK, 400),
    Sent("no host", head(_SIZED, host=b"") + ASK, 400),
    *(Sent(f"the host {v.decode('latin-1')!r}", head(_SIZED, host=b"host: " + v) + ASK, 400) for v in _HOSTS),
    Sent("two hosts", post(_SIZED, b"host: h"), 400),
    Sent("two hosts, one of them empty", post(_SIZED, b"host:"), 400),
    Sent("a host folded into two lines", head(_SIZED, host=b"host: h\r\n :80") + ASK, 400),
    Sent(
        "a good request, then the same in RTSP", post(_SIZED) + head(line=b"POST /v1/completions RTSP/1.1"), 400, (ASK,)
    ),
    Sent("a good request, then RTSP", post(_SIZED) + head(line=b"GET /last RTSP/1.0"), 400, (ASK,)),
    Sent("an expectation beside the known one", post(_SIZED, b"expect: 100-continue, x"), 417),
    Sent("a request line of 70 kB", head(_SIZED, line=b"POST /%b HTTP/1.1" % (b"a" * 70_000)) + ASK, 431),
    Sent("a value of 70 kB", post(_SIZED, b"a: " + b"b" * 70_000), 431),
    Sent("a name of 70 kB", post(_SIZED, b"a" * 70_000 + b": b"), 431),
    Sent("10 kB in each of 7 fields", post(_SIZED, *[b"a: " + b"b" * 10_000] * 7), 431),
    Sent("130 fields", post(_SIZED, *[b"a: b"] * 130), 431),
    Sent("a trailer of 70 kB", chunked(_CHUNK + b"0\r\na: " + b"b" * 70_000 + b"\r\n\r\n"), 431),
    Sent("a chunk extension of 600 kB", chunked(b"1d;a=" + b"b" * 600_000 + b"\r\n" + ASK + b"\r\n" + _END), 431),
    Sent("600 kB of leading zeros in a size", chunked(b"0" * 600_000 + _CHUNK + _END), 431),
    Sent("a length of 17 MiB", post(b"content-length: %d" % (17 * 2**20)), 413),
    Sent("a good request, then a length and chunks", post(_SIZED) + post(_SIZED, _CHUNKED), 400, (ASK,)),
    Sent("a body longer than its length", post(b"content-length: 28"), 400, (ASK[:-1],)),
    Sent("a body without a length", post(), 400, (b"",)),
    Sent("the coding under a name with an underscore", post(b"transfer_encoding: chunked", body=_CHUNK), 400, (b"",)),
    Sent("the length under a name with an underscore", post(b"content_length: 29"), 400, (b"",)),
]

_SERVED = [
    Sent("a length", post(_SIZED), bodies=(ASK,)),
    Sent("a length with leading zeros", post(b"content-length: 00029"), bodies=(ASK,)),
    Sent("a length between blanks and tabs", post(b"content-length: \t 29 \t"), bodies=(ASK,)),
    Sent("chunks", chunked(_CHUNK + _END), bodies=(ASK,)),
    Sent("a chunk a byte", chunked(b"".join(b"1\r\n%c\r\n" % c for c in ASK) + _END), bodies=(ASK,)),
    Sent("the coding in capitals", post(b"Transfer-Encoding: CHUNKED", body=_CHUNK + _END), bodies=(ASK,)),
    Sent("a size in capitals with leading zeros", chunked(b"0001D\r\n" + ASK + b"\r\n000\r\n\r\n"), bodies=(ASK,)),
    Sent("extensions", chunked(b'1d;a;b=c;d="e;f"\r\n' + ASK + b"\r\n0;last\r\n\r\n"), bodies=(ASK,)),
    Sent("trailers", chunked(_CHUNK + b"0\r\nx-sum: 1\r\n\r\n"), bodies=(ASK,)),
    Sent("trailers that would change the target", chunked(_CHUNK + b"0\r\nhost: evil\r\n\r\n"), bodies=(ASK,)),
    Sent("a request inside the body", post(b"content-length: %d" % len(_HIDDEN), body=_HIDDEN), bodies=(_HIDDEN,)),
    Sent("a request inside a chunk", chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_HIDDEN), _HIDDEN)), bodies=(_HIDDEN,)),
    Sent("three requests at once", post(_SIZED) + chunked(_CHUNK + _END) + post(_SIZED), bodies=(ASK,) * 3),
    Sent("an empty line before the request", b"\r\n" + post(_SIZED), bodies=(ASK,)),
    Sent("a target with a host of its own", head(_SIZED, line=_ELSEWHERE) + ASK, bodies=(ASK,)),
    *(
        Sent(f"the host {v.decode()!r}", head(_SIZED, host=b"host: " + v) + ASK, bodies=(ASK,))
        for v in (b"h.example:8000", b"127.0.0.1:80", b"[::1]:80", b"[fe80::1%25eth0]", b"", b"h:", b"a_b-c.d", b"%41")
    ),
    Sent("no host from HTTP/1.0", head(_SIZED, _KEEP, line=_LINE.replace(b"1.1", b"1.0"), host=b"") + ASK, 0, (ASK,)),
    Sent("RTSP in the body", post(b"content-length: %d" % len(_RTSP), body=_RTSP), bodies=(_RTSP,)),
    Sent(
        "RTSP in a body, and the next request",
        post(b"content-length: 27", body=_RTSP[:27]) + post(_SIZED),
        0,
        (_RTSP[:27], ASK),
    ),
    Sent("two blanks before the version", head(_SIZED, line=_LINE.replace(b" H", b"  H")) + ASK, bodies=(ASK,)),
    Sent("fields that steer an engine", post(_SIZED, b"x-paceline-token: guess", b"x-slo-tpot-ms: 1"), 0, (ASK,)),
    Sent("an upgrade to HTTP/2", post(_SIZED, b"connection: upgrade", b"upgrade: h2c"), bodies=(ASK,)),
    Sent("fields named as hops", post(_SIZED, b"connection: content-length", b"te: trailers"), bodies=(ASK,)),
    Sent("Latin-1 in a value", post(_SIZED, b"a: \xe4\xff"), bodies=(ASK,)),
    Sent("an empty value", post(_SIZED, b"a:"), bodies=(ASK,)),
]

CORPUS = [*_REFUSED, *_SERVED]
