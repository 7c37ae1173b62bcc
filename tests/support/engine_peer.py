"""A test's HTTP side of one engine, simulated or real: short ways to call it, and to see on /metrics what it did."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import orjson
from paceline_engine.http1 import ClientPool, EventSplitter, Header, Response, fetch
from prometheus_client.parser import text_string_to_metric_families

TOKEN = "service-token"
TRUSTED: tuple[Header, ...] = ((b"x-paceline-token", TOKEN.encode()),)
COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"


class Peer:
    """One engine's HTTP side. Wall seconds."""

    def __init__(self, port: int, timeout_s: float = 10.0) -> None:
        self.pool = ClientPool("127.0.0.1", port)
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.pool.close()

    async def get(self, path: str) -> Response:
        return await fetch(self.pool, b"GET", path.encode(), timeout_s=self._timeout_s)

    async def post(self, path: str, body: object, headers: tuple[Header, ...] = ()) -> Response:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        sent = (*headers, (b"content-type", b"application/json"))
        return await fetch(self.pool, b"POST", path.encode(), sent, data, timeout_s=self._timeout_s)

    async def complete(self, headers: tuple[Header, ...] = (), /, **body: Any) -> dict[str, Any]:
        """The decoded answer of /v1/completions, which must be 200."""
        answer = await self.post(COMPLETIONS, {"model": "m", **body}, headers)
        assert answer.status == 200, answer.body
        return dict(orjson.loads(answer.body))

    async def page(self) -> str:
        return (await self.get("/metrics")).body.decode()

    async def metrics(self) -> dict[str, float]:
        """Samples by name and own labels: `paceline_engine_legs_total finished`."""
        return {
            " ".join((s.name, *(v for k, v in sorted(s.labels.items()) if k not in ("model_name", "engine")))): s.value
            for family in text_string_to_metric_families(await self.page())
            for s in family.samples
        }

    @asynccontextmanager
    async def gains(self) -> AsyncIterator[dict[str, float]]:
        """What each sample gained within the block; filled when the engine is idle again."""
        before = await self.metrics()
        found: dict[str, float] = {}
        yield found
        await self.is_idle()
        after = await self.metrics()
        found.update({name: value - before.get(name, 0.0) for name, value in after.items()})

    async def is_idle(self) -> None:
        """Waits until nothing runs, waits or holds KV."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        ours = ("paceline_engine_legs_in_progress", "paceline_kv_parked_requests", "paceline_context_tokens")

        async def idle() -> bool:
            samples = await self.metrics()
            return not any(samples[name] for name in (*names, *ours)) and not samples["paceline_queued_prompt_tokens"]

        await holds(idle)


async def holds(test: Callable[[], Awaitable[bool]], timeout_s: float = 30.0) -> None:
    """Waits for something that comes to hold by itself."""
    async with asyncio.timeout(timeout_s):
        while not await test():  # noqa: ASYNC110 (another process knows nothing of events)
            await asyncio.sleep(0.02)


def events(answer: Response) -> list[Any]:
    """The events of a streamed answer, `[DONE]` as a string."""
    splitter = EventSplitter()
    return ["[DONE]" if e == b"[DONE]" else orjson.loads(e) for e in splitter.feed(answer.body)]
