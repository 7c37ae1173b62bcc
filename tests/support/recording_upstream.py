"""An engine that reads HTTP as narrowly as possible and keeps what it was sent, with a router in front of it.

What it cannot read as exactly the requests that this router makes (one length, no coding, no field of a client's) is
kept in `strange` and answered by closing: another engine might read it differently. POSTs get one canned answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import assert_never, cast

from engine_double import METRICS
from paceline_api.config import StaticDiscovery
from paceline_engine.clock import Clock
from paceline_engine.http1 import ClientPool
from paceline_router.server import Router
from router_fleet import Fleet, make_config
from waiting import until

_REQUEST = re.compile(rb"(GET|POST) (/[!-~]*) HTTP/1\.1\r\n((?:[a-z0-9-]+: [!-~](?:[ -~]*[!-~])?\r\n)+)\r\n")
_LENGTH = re.compile(rb"^content-length: (0|[1-9][0-9]{0,7})\r$", re.MULTILINE)
_OURS = frozenset(
    b"host content-type content-length traceparent x-request-id x-paceline-token "
    b"x-slo-class x-slo-tpot-ms x-slo-max-stall-ms x-slo-ttft-remaining-ms".split()
)
ANSWER = b'{"choices":[{"index":0,"text":" w0"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'


def whole(body: bytes, status: bytes = b"200 OK") -> bytes:
    """An answer as it should be."""
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


class End(Enum):
    """What becomes of the connection after an answer."""

    KEEP = "keep"
    CLOSE = "close"
    HALF_CLOSE = "half-close"  # it says no more, and goes on listening
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Says:
    """An answer's bytes, right or wrong."""

    raw: bytes
    end: End = End.KEEP


_GOOD = Says(whole(ANSWER))


class Upstream:
    """`forwarded`: bodies of the POSTs, in the order in which they came. They get `first` one by one, then `always`.

    Several upstreams may share `first`, so that whoever is asked first gives it.
    """

    def __init__(self, first: list[Says] | None = None, always: Says = _GOOD) -> None:
        self._first = [] if first is None else first
        self._always = always
        self.forwarded: list[bytes] = []
        self.strange: list[bytes] = []
        self.port = 0

    def next_answer(self) -> Says:
        return self._first.pop(0) if self._first else self._always

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Upstream]:
        server = await asyncio.get_running_loop().create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    def read(self, method: bytes, path: bytes, fields: bytes) -> int | None:
        """The length of the request's body; None for one that this router does not make."""
        names = [line.partition(b":")[0] for line in fields.split(b"\r\n")[:-1]]
        hosts = fields.count(b"host: 127.0.0.1:%d\r\n" % self.port)
        lengths = _LENGTH.findall(fields)
        if len(set(names)) < len(names) or not _OURS.issuperset(names) or hosts != 1:
            return None
        if method == b"GET":
            return None if lengths or path not in (b"/readyz", b"/metrics") else 0
        return int(lengths[0]) if len(lengths) == 1 and path == b"/v1/completions" else None


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._held += data
        while self._held and self._take():
            pass

    def _take(self) -> bool:
        """Answers one request; False where there is no whole one."""
        upstream, found = self._upstream, _REQUEST.match(self._held)
        if found is None:
            if b"\r\n\r\n" in self._held:
                self._refuse()
            return False
        method, path, fields = found.groups()
        length = upstream.read(method, path, fields)
        if length is None:
            self._refuse()
            return False
        end = found.end() + length
        if len(self._held) < end:
            return False
        if method == b"POST":
            upstream.forwarded.append(self._held[found.end() : end])
            self._say(upstream.next_answer())
        else:
            self._say(Says(whole(METRICS.encode() if path == b"/metrics" else b"")))
        self._held = self._held[end:]
        return True

    def _say(self, says: Says) -> None:
        transport = self._transport
        transport.write(says.raw)
        match says.end:
            case End.KEEP:
                pass
            case End.CLOSE:
                transport.close()
            case End.HALF_CLOSE:
                transport.write_eof()
            case End.RESET:
                transport.abort()
            case _ as never:
                assert_never(never)

    def _refuse(self) -> None:
        self._upstream.strange.append(self._held)
        self._held = b""
        self._transport.close()


@asynccontextmanager
async def routed(*upstreams: Upstream) -> AsyncIterator[Fleet]:
    """A router whose replicas are `upstreams`, all ready."""
    async with AsyncExitStack() as stack:
        for upstream in upstreams:
            await stack.enter_async_context(upstream.listening())
        replicas = [
            {"name": f"mixed{i}", "url": f"http://127.0.0.1:{upstream.port}", "role": "mixed", "pool": "p"}
            for i, upstream in enumerate(upstreams)
        ]
        config = make_config({}, discovery={"kind": "static", "replicas": replicas})
        assert isinstance(config.discovery, StaticDiscovery)
        router = Router(config, config.discovery, Clock(), token="secret")
        server = await router.listen("127.0.0.1", 0)
        stop = asyncio.Event()
        running = asyncio.create_task(router.run(server, stop))
        pool = ClientPool("127.0.0.1", server.port)
        try:
            await until(lambda: all(r.ready for r in router.shell.ledger.replicas.values()))
            yield Fleet(router, server, {}, pool, stop, running)
        finally:
            pool.close()
            stop.set()
            await asyncio.wait_for(running, 5)
