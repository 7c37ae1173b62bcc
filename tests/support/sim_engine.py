"""Simulated engines inside a test's own event loop, on kernel-chosen ports, and short ways to call them.

Model time runs 20 times as fast as the wall and steps are exact (no noise, no stalls) unless flags say otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import uvloop
from paceline_engine.alarms import Alarms
from paceline_engine.clock import Clock
from paceline_engine.http1 import ClientPool, EventSplitter, Header, Response, fetch
from paceline_engine.sim.engine import Engine, Phase
from paceline_engine.sim.options import check, make_replica, parser
from paceline_engine.sim.server import EngineServer
from prometheus_client.parser import text_string_to_metric_families

TOKEN = "service-token"
TRUSTED: tuple[Header, ...] = ((b"x-paceline-token", TOKEN.encode()),)
TIME_SCALE = 20.0
_FLAGS = (
    *("--model=llama-3.1-8b", "--served-name=m", "--table=a100-sxm-80gb", "--max-model-len=4096"),
    *("--noise=0", "--stalls=0", "--lease-s=30", "--seed=1"),
)


class Client:
    """Calls one engine over HTTP."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.pool = ClientPool("127.0.0.1", engine.port)

    async def get(self, path: str) -> Response:
        return await fetch(self.pool, b"GET", path.encode(), timeout_s=10)

    async def post(self, path: str, body: object, headers: tuple[Header, ...] = ()) -> Response:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        return await fetch(self.pool, b"POST", path.encode(), headers, data, timeout_s=10)

    async def complete(self, headers: tuple[Header, ...] = (), /, **body: Any) -> dict[str, Any]:
        """The decoded answer of /v1/completions, which must be 200."""
        answer = await self.post("/v1/completions", {"model": "m", **body}, headers)
        assert answer.status == 200, answer.body
        return dict(orjson.loads(answer.body))

    async def metrics(self) -> dict[str, float]:
        """Samples by name and own labels: `paceline_engine_legs_total finished`."""
        page = await self.get("/metrics")
        return {
            " ".join((s.name, *(v for k, v in sorted(s.labels.items()) if k not in ("model_name", "engine")))): s.value
            for family in text_string_to_metric_families(page.body.decode())
            for s in family.samples
        }


def events(answer: Response) -> list[Any]:
    """The events of a streamed answer, `[DONE]` as a string."""
    splitter = EventSplitter()
    return ["[DONE]" if e == b"[DONE]" else orjson.loads(e) for e in splitter.feed(answer.body)]


@asynccontextmanager
async def engines(*fleets: tuple[str, ...], token: str = TOKEN) -> AsyncIterator[list[Client]]:
    """One ready engine for each tuple of flags, with one clock."""
    clock = Clock(TIME_SCALE)
    async with AsyncExitStack() as stack:
        alarms = Alarms(asyncio.get_running_loop())
        stack.callback(alarms.close)
        clients = []
        for i, flags in enumerate(fleets):
            options = check(parser().parse_args([*_FLAGS, f"--time-scale={TIME_SCALE}", *flags]))
            engine = Engine(f"{options.pool}-{i}", options, make_replica(options, i), clock, alarms, token)
            server = EngineServer(engine, token)
            await server.listen("127.0.0.1", 0)
            stack.push_async_callback(server.close, 0.5)
            engine.phase = Phase.READY
            clients.append(Client(engine))
            stack.callback(clients[-1].pool.close)
        yield clients


async def until(test: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Waits for something that becomes true by itself."""
    async with asyncio.timeout(timeout_s):
        while not test():  # noqa: ASYNC110 (what is waited for knows nothing of events)
            await asyncio.sleep(0.002)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    uvloop.run(main())
