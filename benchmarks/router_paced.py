"""The streaming half of `router_load.py`: an open load of streams, and when each event of each was sent and came."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from random import Random
from typing import cast

from router_orders import VARIANTS, Order, requests

_CHUNK_CUT = re.compile(rb"\r\n[0-9a-fA-F]+\r\n")
_STAMP = re.compile(rb'"content":" (\d{10}\.\d{6})"')


@dataclass(slots=True)
class Seen:
    """One stream: when it was asked for, when each event came and was sent, by the clock of all processes."""

    asked_s: float
    came_s: list[float]
    sent_s: list[float]
    whole: bool = False


class Streamed(asyncio.Protocol):
    """One stream after the other over one connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self.seen: Seen | None = None
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._end(whole=False)

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> Seen:
        assert self._transport is not None
        self._rest = b""
        self.seen = seen = Seen(time.monotonic(), [], [])
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done
        return seen

    def data_received(self, data: bytes) -> None:
        seen = self.seen
        if seen is None:
            return
        now = time.monotonic()
        rest = self._rest + data if self._rest else data
        stamps = _STAMP.findall(rest)
        if stamps:
            seen.came_s += [now] * len(stamps)
            seen.sent_s += map(float, stamps)
            rest = rest[rest.rfind(stamps[-1]) + len(stamps[-1]) :]
        if rest.endswith(b"0\r\n\r\n"):
            self._end(whole=b"data: [DONE]" in _CHUNK_CUT.sub(b"", rest))
        elif len(rest) > 4096 and not stamps:
            self._end(whole=False)
        else:
            self._rest = rest

    def _end(self, *, whole: bool) -> None:
        if self._done is not None and not self._done.done():
            assert self.seen is not None
            self.seen.whole = whole
            self.seen = None
            self._done.set_result(None)


class Streams:
    """An open load of streams over as many connections as are needed at once."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._requests = requests(order)
        self._idle: list[Streamed] = []
        self.seen: dict[int, Seen | None] = {}

    async def one(self, number: int) -> None:
        connection = self._idle.pop() if self._idle else None
        if connection is None or not connection.usable:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Streamed, "127.0.0.1", self._order.port)
        self.seen[number] = None
        seen = await connection.ask(self._requests[number % VARIANTS])
        self.seen[number] = seen
        if seen.whole and connection.usable:
            self._idle.append(connection)

    async def run(self) -> dict[str, object]:
        order, loop = self._order, asyncio.get_running_loop()
        rng, began, due, number = Random(order.seed), loop.time(), 0.0, 0
        late = 0.0
        print("begun", flush=True)
        async with asyncio.TaskGroup() as group:
            while due < order.seconds and number < order.most:
                if (wait_s := began + due - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                late = max(late, loop.time() - began - due)
                group.create_task(self.one(number))
                number += 1
                due += rng.expovariate(order.rate_rps)
        print("ended", flush=True)
        streams = [self.seen[i] for i in range(number)]
        good = [[s.asked_s, s.came_s, s.sent_s] if s is not None and _is_good(s, order) else None for s in streams]
        return {"streams": good, "late_s": late}


def _is_good(seen: Seen, order: Order) -> bool:
    return seen.whole and len(seen.came_s) == order.tokens and seen.sent_s == sorted(seen.sent_s)
