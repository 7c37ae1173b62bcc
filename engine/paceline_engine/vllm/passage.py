"""One request on its way through an ASGI application, and its answer on the way back.

The body has been read already and is handed in whole; the answer passes untouched, but that of a prefill leg, which is
short and may be amended. `cut` ends it from outside: the application is told that its client left, so that it frees
what it holds, and the client gets an error where the rest would have been. Invariant: an answer that began ends
complete, or with an error event, or with its connection; it never hangs. Wall seconds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from paceline_api import headers
from paceline_api.outcomes import error_body

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LEAVE_S = 1.0  # for an application that was told that its client left, and for a client to take its error
RETRY_AFTER = (b"retry-after", b"1")
_OURS = frozenset(name.encode() for name in headers.ENGINE_ONLY | headers.CLIENT_SLO)
_FRAMING = (b"content-length", b"transfer-encoding")
_EVENTS = b"text/event-stream"
_CUT = "the engine shut down before the answer was complete"


class TooLarge(Exception):
    """The body is larger than allowed."""


async def read_body(receive: Receive, most_bytes: int) -> bytes | None:
    """The whole body; None where the client left. TooLarge as soon as it is."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > most_bytes:
            raise TooLarge
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def error(message: str, *, code: str, status: int, param: str | None = None) -> bytes:
    """OpenAI's error body."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return json.dumps(error_body(code, message, type_=kind, param=param)).encode()


async def respond(
    send: Send, status: int, body: bytes, *extra: tuple[bytes, bytes], kind: str = "application/json"
) -> None:
    """A whole answer."""
    fields = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body)), *extra]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class Given:
    """A request's head as it came."""

    __slots__ = ("_headers", "scope")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._headers: list[tuple[bytes, bytes]] = [(k.lower(), v) for k, v in scope.get("headers", ())]

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, by its lower-case name."""
        return next((value for key, value in self._headers if key == name), None)

    def stripped(self, length: int | None = None) -> Scope:
        """The scope for vLLM: without what is only for this border, with the length of the body that goes on."""
        kept = [(k, v) for k, v in self._headers if k not in _OURS and (length is None or k not in _FRAMING)]
        if length is not None:
            kept.append((b"content-length", b"%d" % length))
        return {**self.scope, "headers": kept}


class Passage:
    """`amend` gets the whole body of an answer with status 200 and gives the one that is sent."""

    def __init__(
        self, body: bytes, receive: Receive, send: Send, amend: Callable[[bytes], bytes] | None = None
    ) -> None:
        self._body: bytes | None = body
        self._receive = receive
        self._send = send
        self._amend = amend
        self._held: Message | None = None  # the head of an answer that is amended
        self._parts: list[bytes] = []
        self._limit: asyncio.Timeout | None = None
        self._waits: set[asyncio.Timeout] = set()
        self._events = False
        self.status = 0  # of the answer, once it began
        self.complete = False
        self.is_left = False  # its client has gone before the end
        self.is_cut = False

    async def go(self, app: App, scope: Scope) -> None:
        """Returns when the answer has ended."""
        try:
            async with asyncio.timeout(None) as self._limit:
                if not self.is_cut:
                    await app(scope, self.receive, self.send)
        except Exception:
            if not self.is_cut:  # once cut, how it ends is all the same
                raise
        if self.is_cut and not self.complete:
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self._say_cut()

    def cut(self) -> None:
        """Ends it; what the application still sends is dropped."""
        if self.is_cut or self.complete:
            return
        self.is_cut = True
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            wait.reschedule(now)
        if self._limit is not None:
            self._limit.reschedule(now + LEAVE_S)

    async def receive(self) -> Message:
        """The body, then what the server says: that the client left, in the end."""
        if self.is_cut:
            return {"type": "http.disconnect"}
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        try:
            async with asyncio.timeout(None) as wait:
                self._waits.add(wait)
                try:
                    message = await self._receive()
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            return {"type": "http.disconnect"}
        self.is_left = self.is_left or (message["type"] == "http.disconnect" and not self.complete)
        return message

    async def send(self, message: Message) -> None:
        if self.is_cut:
            return
        if message["type"] == "http.response.start":
            if self._amend is not None and message["status"] == 200:
                self._held = message
                return
            self._began(message)
        elif self._held is not None:
            await self._hold(message)
            return
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        await self._send(message)

    def _began(self, head: Message) -> None:
        self.status = head["status"]
        self._events = any(k.lower() == b"content-type" and v.startswith(_EVENTS) for k, v in head.get("headers", ()))

    async def _hold(self, message: Message) -> None:
        """Keeps the body until it is whole, then sends what is made of it."""
        assert self._amend is not None
        assert self._held is not None
        self._parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body = self._amend(b"".join(self._parts))
        head, self._held = self._held, None
        kept = [(k, v) for k, v in head.get("headers", ()) if k.lower() != b"content-length"]
        self._began(head)
        self.complete = True
        await self._send({**head, "headers": [*kept, (b"content-length", b"%d" % len(body))]})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _say_cut(self) -> None:
        """A status if none was sent, an error event in a stream; else the server closes the connection."""
        body = error(_CUT, code="upstream_failed", status=503)
        if not self.status:
            self.status = 503
            await respond(self._send, 503, body, RETRY_AFTER)
        elif self._events:
            await self._send({"type": "http.response.body", "body": b"data: %b\n\n" % body, "more_body": False})
