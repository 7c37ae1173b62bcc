"""Requests per second of a trivial relay: load → relay (server and pool) → upstream, three processes on loopback.

    python benchmarks/http1_relay.py [--seconds 5] [--concurrency 64] [--stream 0]

Prints requests per second, and the relay's own CPU time per request, which other load on the machine moves less.
With `--stream N` every answer is a stream of N events instead of one piece.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection

import uvloop
from paceline_engine.http1 import Call, ClientError, ClientPool, Exchange, Header, serve

_EVENT = b'data: {"choices":[{"text":" token"}]}\n\n'
_BODY = b'{"model":"m","prompt":[1,2,3],"max_tokens":8}'


def _run_upstream(pipe: Connection, events: int) -> None:
    def answer(exchange: Exchange) -> None:
        if not events:
            exchange.respond(200, _EVENT)
            return
        loop = asyncio.get_running_loop()
        exchange.start(200)

        def emit(left: int) -> None:
            exchange.write(_EVENT)
            if left > 1:
                loop.call_later(0.002, emit, left - 1)
            else:
                exchange.end()

        emit(events)

    uvloop.run(_serve_until_told(pipe, answer))


class _WholeRelay:
    """Copies one upstream answer into one exchange when it is complete."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._status = 0
        self._body = b""
        self.call: Call | None = None

    def on_head(self, status: int, headers: list[Header]) -> None:
        self._status = status

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_end(self) -> None:
        self._exchange.respond(self._status, self._body)

    def on_error(self, error: ClientError) -> None:
        self._exchange.respond(502)


class _StreamRelay:
    """Copies one upstream answer into one exchange as it comes."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.call: Call | None = None

    def on_head(self, status: int, headers: list[Header]) -> None:
        self._exchange.start(status, [(b"content-type", b"text/event-stream")])

    def on_body(self, data: bytes) -> None:
        if not self._exchange.write(data) and self.call is not None:
            self.call.pause()

    def on_end(self) -> None:
        self._exchange.end()

    def on_error(self, error: ClientError) -> None:
        if self._exchange.started:
            self._exchange.abort()
        else:
            self._exchange.respond(502)


def _run_relay(pipe: Connection, upstream_port: int, events: int) -> None:
    pool = ClientPool("127.0.0.1", upstream_port)

    def relay(exchange: Exchange) -> None:
        listener = _StreamRelay(exchange) if events else _WholeRelay(exchange)
        listener.call = call = pool.request(b"POST", b"/v1/completions", (), exchange.body, listener)
        exchange.on_gone = call.abort
        exchange.on_writable = call.resume

    uvloop.run(_serve_until_told(pipe, relay))


async def _serve_until_told(pipe: Connection, handler: object) -> None:
    assert callable(handler)
    server = await serve(handler, "127.0.0.1", 0)
    pipe.send(server.port)
    cpu_s = time.process_time()
    await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
    pipe.send(time.process_time() - cpu_s)
    await server.close()


class _Load:
    """Keeps `concurrency` requests in flight until `until`."""

    def __init__(self, pool: ClientPool, until: float, concurrency: int) -> None:
        self._pool = pool
        self._until = until
        self._running = concurrency
        self.done = 0
        self.failed = 0
        self.finished = asyncio.Event()

    def send(self) -> None:
        self._pool.request(b"POST", b"/v1/completions", [(b"content-type", b"application/json")], _BODY, self)

    def on_head(self, status: int, headers: list[Header]) -> None:
        self.failed += status != 200

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None:
        self.done += 1
        self._next()

    def on_error(self, error: ClientError) -> None:
        self.failed += 1
        self._next()

    def _next(self) -> None:
        if time.monotonic() < self._until:
            self.send()
            return
        self._running -= 1
        if not self._running:
            self.finished.set()


async def _load(port: int, seconds: float, concurrency: int) -> tuple[int, int, float]:
    pool = ClientPool("127.0.0.1", port, max_idle=concurrency)
    start = time.monotonic()
    load = _Load(pool, start + seconds, concurrency)
    for _ in range(concurrency):
        load.send()
    await load.finished.wait()
    elapsed_s = time.monotonic() - start
    pool.close()
    return load.done, load.failed, elapsed_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--stream", type=int, default=0, help="events per answer")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    near_upstream, far_upstream = context.Pipe()
    near_relay, far_relay = context.Pipe()
    upstream = context.Process(target=_run_upstream, args=(far_upstream, args.stream))
    upstream.start()
    relay = context.Process(target=_run_relay, args=(far_relay, near_upstream.recv(), args.stream))
    relay.start()
    done, failed, elapsed_s = uvloop.run(_load(near_relay.recv(), args.seconds, args.concurrency))
    near_relay.send("stop")
    near_upstream.send("stop")
    relay_cpu_s = near_relay.recv()
    relay.join()
    upstream.join()
    print(
        f"requests={done} failed={failed} rps={done / elapsed_s:.0f} "
        f"relay_cpu_us_per_request={relay_cpu_s / max(1, done) * 1e6:.1f} "
        f"concurrency={args.concurrency} events={args.stream}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
