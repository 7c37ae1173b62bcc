"""Load clients for `router.py`: protocols that read no more of an answer than they must, so that routers are measured.

    python benchmarks/router_load.py JSON

The one argument is an `Order`; the last line printed is a JSON object, those before it frame what was measured. A
closed loop keeps `connections` requests in flight; an open one starts `rate_rps` streams a second at seeded moments. An
answer counts only if it is a 200 with the engine's own bytes: whole ones by their body, streams by each event in order
and [DONE].
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from functools import partial
from typing import cast

import uvloop
from router_engines import WHOLE
from router_orders import VARIANTS, Order, requests
from router_paced import Streams

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Whole(asyncio.Protocol):
    """One connection of the closed loop: the next request follows the answer."""

    def __init__(self, bodies: list[bytes], at: int, seen: list[float], until: list[float]) -> None:
        self._requests, self._at, self._seen, self._until = bodies, at, seen, until
        self._read = b""
        self._need = 0
        self._sent_at = 0.0
        self.failed = 0
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.failed += 1
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        read = self._read + data if self._read else data
        if not self._need:
            head = read.find(b"\r\n\r\n")
            length = _LENGTH.search(read, 0, head) if head >= 0 else None
            if head >= 0 and length is None:  # chunked
                self._need = len(read) if read.endswith(b"0\r\n\r\n") else 0
            elif length is not None:
                self._need = head + 4 + int(length[1])
        if not self._need or len(read) < self._need:
            self._read = read
            return
        self._read, self._need = b"", 0
        now = time.monotonic()
        if read.startswith(b"HTTP/1.1 200") and WHOLE in read:
            self._seen.append(now - self._sent_at)
        else:
            self.failed += 1
        if now < self._until[0]:
            self._send()
        else:
            self.ended.set_result(None)
            self._transport.close()

    def _send(self) -> None:
        self._at += 1
        self._sent_at = time.monotonic()
        self._transport.write(self._requests[self._at % VARIANTS])


async def closed(order: Order) -> dict[str, object]:
    loop, made = asyncio.get_running_loop(), requests(order)
    seen: list[float] = []
    until = [time.monotonic() + order.warm_up_s + order.seconds]
    clients = []
    for i in range(order.connections):
        made_one = partial(Whole, made, i, seen, until)
        clients.append((await loop.create_connection(made_one, "127.0.0.1", order.port))[1])
    await asyncio.sleep(order.warm_up_s)
    seen.clear()
    began_s, cpu_s = time.monotonic(), time.process_time()
    print("begun", flush=True)
    await asyncio.sleep(order.seconds)
    took_s, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
    latencies = sorted(seen)
    print("ended", flush=True)
    await asyncio.wait([client.ended for client in clients], timeout=10.0)
    failed = sum(client.failed + (not client.ended.done()) for client in clients)
    p50, p99 = (latencies[int(len(latencies) * q)] * 1e3 if latencies else 0.0 for q in (0.5, 0.99))
    return {"done": len(latencies), "failed": failed, "took_s": took_s, "cpu_s": cpu_s, "p50_ms": p50, "p99_ms": p99}


async def _main(order: Order) -> None:
    print(json.dumps(await (Streams(order).run() if order.tokens else closed(order))), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(Order(**json.loads(sys.argv[1]))))
