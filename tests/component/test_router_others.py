"""Two real routers of one service, before two simulated engines: each sees the other's requests through the engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from engine_peer import TOKEN
from paceline_api.config import RouterConfig, StaticDiscovery
from paceline_engine.clock import Clock
from paceline_engine.http1 import ClientPool, Response, fetch
from paceline_engine.sim.metrics import LegResult
from paceline_router.server import Router
from router_fleet import JSON, ask
from sim_engine import TIME_SCALE, Client, engines, run
from waiting import until

NAMES = ("m0", "m1")


def make_config(clients: list[Client]) -> RouterConfig:
    replicas = [
        {"name": name, "url": f"http://127.0.0.1:{client.engine.port}", "role": "mixed", "pool": "p"}
        for name, client in zip(NAMES, clients, strict=True)
    ]
    return RouterConfig.model_validate(
        {
            "service": "chat",
            "model": "m",
            "max_context_tokens": 4096,
            "default_class": "interactive",
            "classes": [{"name": "interactive", "ttft_s": 0.4, "tpot_s": 0.04}],
            "policy": "least-misses",
            "discovery": {"kind": "static", "replicas": replicas},
        }
    )


@asynccontextmanager
async def router(config: RouterConfig) -> AsyncIterator[tuple[Router, ClientPool]]:
    assert isinstance(config.discovery, StaticDiscovery)
    made = Router(config, config.discovery, Clock(TIME_SCALE), TOKEN)
    server, stop = await made.listen("127.0.0.1", 0), asyncio.Event()
    task = asyncio.create_task(made.run(server, stop))
    pool = ClientPool("127.0.0.1", server.port)
    try:
        await until(lambda: made.shell.is_ready)
        yield made, pool
    finally:
        pool.close()
        stop.set()
        await asyncio.wait_for(task, 5)


async def post(pool: ClientPool, **over: Any) -> Response:
    body = orjson.dumps(ask(stream=True, ignore_eos=True, **over))
    return await fetch(pool, b"POST", b"/v1/completions", JSON, body, timeout_s=20)


def test_what_one_router_sends_keeps_the_other_away() -> None:
    async def work() -> None:
        async with engines(("--role=mixed",), ("--role=mixed",)) as clients:
            config = make_config(clients)
            async with router(config) as (first, to_first), router(config) as (second, to_second):
                told = second.shell.ledger.replicas
                first.shell.ledger.retire("m1", True)
                long = [asyncio.create_task(post(to_first, max_tokens=3000, prompt=[7] * 400)) for _ in range(4)]
                await until(lambda: told["m0"].others.paces == {0.04: 4})
                assert not told["m1"].others.paces
                assert not first.shell.ledger.replicas["m0"].others.paces  # they are its own
                assert (await post(to_second, max_tokens=2)).status == 200
                assert [client.engine.metrics.legs[LegResult.FINISHED] for client in clients] == [0, 1]
                for task in long:
                    task.cancel()
                await asyncio.gather(*long, return_exceptions=True)
                await until(lambda: not told["m0"].others.paces)

    run(work)
