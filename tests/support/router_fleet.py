"""A real router in one loop with scripted engines, over loopback HTTP, and what tests ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvloop
from engine_double import EngineDouble
from paceline_api.config import RouterConfig, StaticDiscovery
from paceline_engine.clock import Clock
from paceline_engine.http1 import ClientError, ClientPool, Response, Server, fetch
from paceline_router.server import Router
from prometheus_client.parser import text_string_to_metric_families
from waiting import until

JSON = [(b"content-type", b"application/json")]


@dataclass
class Fleet:
    """A running router, its engines by name, and a client pool."""

    router: Router
    server: Server
    engines: dict[str, EngineDouble]
    pool: ClientPool
    stop: asyncio.Event
    running: asyncio.Task[None] | None = None
    more: dict[str, Any] = field(default_factory=dict)

    async def post(self, path: str, body: object, headers: list[tuple[bytes, bytes]] | None = None) -> Response:
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        return await fetch(self.pool, b"POST", path.encode(), [*JSON, *(headers or [])], raw, timeout_s=5)

    async def get(self, path: str) -> Response:
        return await fetch(self.pool, b"GET", path.encode(), timeout_s=5)

    async def samples(self) -> dict[str, dict[tuple[str, ...], float]]:
        """name → values of its own labels → value."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families((await self.get("/metrics")).body.decode()):
            for s in family.samples:
                own = tuple(v for k, v in sorted(s.labels.items()) if not k.startswith("llmservice"))
                found.setdefault(s.name, {})[own] = s.value
        return found

    async def outcomes(self) -> dict[str, int]:
        """Outcomes that occurred; also checks that arrivals are their sum and what is in flight."""
        samples = await self.samples()
        totals: dict[str, int] = {}
        for (outcome, _), value in samples["paceline_requests_total"].items():
            if value:
                totals[outcome] = totals.get(outcome, 0) + int(value)
        flying = sum(samples["paceline_requests_in_flight"].values())
        assert sum(samples["paceline_requests_received_total"].values()) == sum(totals.values()) + flying
        return totals


def make_config(engines: dict[str, EngineDouble], **over: Any) -> RouterConfig:
    replicas = [
        {"name": name, "url": engine.url, "role": name.rstrip("0123456789"), "pool": "p"}
        for name, engine in engines.items()
    ]
    base: dict[str, Any] = {
        "service": "chat",
        "model": "m",
        "max_context_tokens": 4096,
        "default_class": "interactive",
        "classes": [
            {"name": "interactive", "ttft_s": 0.4, "tpot_s": 0.04},
            {"name": "batch", "ttft_s": 30, "tpot_s": 0.25},
        ],
        "discovery": {"kind": "static", "replicas": replicas},
    }
    return RouterConfig.model_validate({**base, **over})


@asynccontextmanager
async def fleet(*names: str, scale: float = 1.0, **over: Any) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        engines: dict[str, EngineDouble] = {}
        for name in names:
            engines[name] = await EngineDouble().start()
            stack.push_async_callback(engines[name].stop)
        config = make_config(engines, **over)
        assert isinstance(config.discovery, StaticDiscovery)
        router = Router(config, config.discovery, Clock(scale), token="secret")
        server = await router.listen("127.0.0.1", 0)
        stop = asyncio.Event()
        task = asyncio.create_task(router.run(server, stop))
        pool = ClientPool("127.0.0.1", server.port)
        up = Fleet(router, server, engines, pool, stop, task)
        try:
            await until(lambda: all(r.ready for r in router.shell.ledger.replicas.values()))
            yield up
        finally:
            pool.close()
            stop.set()
            await asyncio.wait_for(task, 5)


def run(test: Coroutine[Any, Any, None]) -> None:
    uvloop.run(test)


def events(response: Response) -> list[Any]:
    return [
        part[6:] if part == b"data: [DONE]" else orjson.loads(part[6:]) for part in response.body.split(b"\n\n") if part
    ]


def ask(**over: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": [1, 2, 3], "max_tokens": 5, **over}


def words(response: Response) -> str:
    return "".join(e["choices"][0].get("text", "") for e in events(response) if isinstance(e, dict) and e["choices"])


EXPECTED = " w0 w1 w2 w3 w4"


class Listener:
    def __init__(self, seen: list[bytes]) -> None:
        self.seen = seen
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_head(self, status: int, headers: object) -> None: ...
    def on_body(self, data: bytes) -> None:
        self.seen.append(data)

    def on_end(self) -> None:
        self.over.set_result(None)

    def on_error(self, error: ClientError) -> None:
        self.over.set_exception(error)


async def listen(up: Fleet, seen: list[bytes]) -> None:
    listener = Listener(seen)
    up.pool.request(b"POST", b"/v1/completions", JSON, orjson.dumps(ask(stream=True)), listener)
    await listener.over
