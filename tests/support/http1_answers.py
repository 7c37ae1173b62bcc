"""Answers as broken or hostile servers send them: none may pass for a whole one.

Each is read on a fresh connection that the server then closes. Many hold a second answer, EVIL, which a reader that
takes the boundary elsewhere would find.
"""

from __future__ import annotations

from dataclasses import dataclass

EVIL = b'{"choices":[{"text":"evil"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
_BODY = b'{"choices":[{"text":"good"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
_SIZE = len(_BODY)
_SIZED = b"content-length: %d" % _SIZE
_CHUNKED = b"transfer-encoding: chunked"
_CHUNK = b"%x\r\n%b\r\n" % (_SIZE, _BODY)
_END = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Broken:
    says: str
    raw: bytes


def _answer(*fields: bytes, body: bytes = _BODY, line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([line, *fields, b"", body])


_EVIL = _answer(b"content-length: %d" % len(EVIL), body=EVIL)
_LENGTHS = [b"+%d" % _SIZE, b"-1", b"0x4f", b"%d, %d" % (_SIZE, _SIZE), b"%d.0" % _SIZE, b"7 9", b"", b"9" * 40]
_CODINGS = [b"gzip, chunked", b"chunked, gzip", b"chunked, chunked", b"xchunked", b"identity", b"chunked\x0b"]
_CODINGS += [b"chunked\r\ntransfer-encoding: chunked", b"gzip\r\ntransfer-encoding: chunked"]
_CHUNKS: list[tuple[str, bytes]] = [
    ("a negative size", b"-1\r\n" + _BODY + b"\r\n" + _END),
    ("a size with 0x", b"0x%x\r\n%b\r\n" % (_SIZE, _BODY) + _END),
    ("a size that overflows 64 bits", b"1%016x\r\n%b\r\n" % (_SIZE, _BODY) + _END),
    ("a size that ends with a bare LF", b"%x\n%b\r\n" % (_SIZE, _BODY) + _END),
    ("an extension that ends with a bare LF", b"%x;a\n%b\r\n" % (_SIZE, _BODY) + _END),
    ("data longer than its size", b"%x\r\n%b\r\n" % (_SIZE - 1, _BODY) + _END),
    ("data shorter than its size", b"%x\r\n%b\r\n" % (_SIZE + 1, _BODY) + _END),
    ("data that ends with a bare LF", b"%x\r\n%b\n" % (_SIZE, _BODY) + _END),
    ("no last chunk", _CHUNK),
    ("half a last chunk", _CHUNK + b"0\r\n"),
    ("a last chunk that ends with a bare LF", _CHUNK + b"0\n\n"),
    ("another answer in the place of trailers", _CHUNK + b"0\r\n" + _EVIL),
]
_FIELDS: list[tuple[str, bytes]] = [
    ("a blank before the colon of the length", b"content-length : %d" % _SIZE),
    ("a folded value", b"a: b\r\n c"),
    ("a bare LF", b"a: b\nc: d"),
    ("a bare CR", b"a: b\rc: d"),
    ("a NUL", b"a: \0"),
    ("no colon", b"a"),
    ("no name", b": a"),
    ("a blank in a name", b"a b: c"),
]
_LINES = [b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 abc OK", b"HTTP/2 200", b"HTTP/11 200 OK", b"ICY 200 OK"]
_LINES += [b"http/1.1 200 OK", b"HTTP/1.1  200 OK", b"HTTP/1.1 200 OK\nx: y", b"\xff\xfe\xfd"]

BROKEN = [
    Broken("a length and chunks", _answer(_SIZED, _CHUNKED, body=_CHUNK + _END)),
    Broken("chunks and a length that hides an answer", _answer(_CHUNKED, b"content-length: 5", body=_END + _EVIL)),
    Broken("two lengths that differ", _answer(_SIZED, b"content-length: 3")),
    Broken("a body shorter than its length", _answer(b"content-length: %d" % (_SIZE + 1))),
    *(Broken(f"the length {v.decode()!r}", _answer(b"content-length: " + v)) for v in _LENGTHS),
    *(Broken(f"the coding {v.decode()!r}", _answer(b"transfer-encoding: " + v, body=_CHUNK + _END)) for v in _CODINGS),
    *(Broken(f"a chunk with {says}", _answer(_CHUNKED, body=body)) for says, body in _CHUNKS),
    *(Broken(f"a field with {says}", _answer(_SIZED, field)) for says, field in _FIELDS),
    *(Broken(f"the status line {line.decode('latin-1')!r}", _answer(_SIZED, line=line)) for line in _LINES),
    Broken("a body before any head", _BODY),
    Broken("a request", b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"),
    Broken("interim answers and nothing more", b"HTTP/1.1 100 Continue\r\n\r\n" * 3),
    Broken("nothing", b""),
]


def _whole(body: bytes, line: bytes = b"HTTP/1.1 200 OK", *fields: bytes) -> bytes:
    return _answer(*fields, b"content-length: %d" % len(body), body=body, line=line)


# Whole and well-formed, and yet no answer to what was asked.
USELESS = [
    Broken("no JSON", _whole(b"evil")),
    Broken("JSON that is no object", _whole(b'"evil"')),
    Broken("no usage", _whole(b'{"text":"evil"}')),
    Broken("a negative usage", _whole(EVIL.replace(b'_tokens":1', b'_tokens":-1'))),
    Broken("an empty body", _whole(b"")),
    Broken("no content", _answer(line=b"HTTP/1.1 204 No Content", body=b"")),
    Broken("a part of it", _whole(EVIL, b"HTTP/1.1 206 Partial Content")),
    Broken("a redirect", _whole(EVIL, b"HTTP/1.1 307 Temporary Redirect", b"location: http://evil/")),
    Broken("not modified", _answer(line=b"HTTP/1.1 304 Not Modified", body=b"")),
    Broken("a status of no class", _whole(EVIL, b"HTTP/1.1 999 Evil")),
    Broken("the service's token refused", _whole(b"evil", b"HTTP/1.1 401 Unauthorized")),
]
