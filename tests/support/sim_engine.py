"""Simulated engines inside a test's own event loop, on kernel-chosen ports, and short ways to call them.

Model time runs 20 times as fast as the wall and steps are exact (no noise, no stalls) unless flags say otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import uvloop
from engine_peer import TOKEN, Peer
from paceline_engine.alarms import Alarms
from paceline_engine.clock import Clock
from paceline_engine.sim.engine import Engine, Phase
from paceline_engine.sim.options import check, make_replica, parser
from paceline_engine.sim.server import EngineServer

TIME_SCALE = 20.0
_FLAGS = (
    *("--model=llama-3.1-8b", "--served-name=m", "--table=a100-sxm-80gb", "--max-model-len=4096"),
    *("--noise=0", "--stalls=0", "--lease-s=30", "--seed=1"),
)


class Client(Peer):
    """Calls one engine over HTTP."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.port)
        self.engine = engine


@asynccontextmanager
async def engines(
    *fleets: tuple[str, ...], token: str = TOKEN, scale: float = TIME_SCALE
) -> AsyncIterator[list[Client]]:
    """One ready engine for each tuple of flags, with one clock."""
    clock = Clock(scale)
    async with AsyncExitStack() as stack:
        alarms = Alarms(asyncio.get_running_loop())
        stack.callback(alarms.close)
        clients = []
        for i, flags in enumerate(fleets):
            options = check(parser().parse_args([*_FLAGS, f"--time-scale={scale}", *flags]))
            engine = Engine(f"{options.pool}-{i}", options, make_replica(options, i), clock, alarms, token)
            server = EngineServer(engine, token)
            await server.listen("127.0.0.1", 0)
            stack.push_async_callback(server.close, 0.5)
            engine.phase = Phase.READY
            clients.append(Client(engine))
            stack.callback(clients[-1].pool.close)
        yield clients


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await work()

    uvloop.run(main())
