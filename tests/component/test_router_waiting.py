"""A router with a waiting room before engines that are full: who waits, who is shed and how, who leaves by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from engine_double import Reply
from paceline_engine.http1 import Response
from router_fleet import Fleet, ask, fleet, run
from waiting import until

ROOM: dict[str, Any] = {"policy": "least-misses", "waiting_room": True, "max_context_tokens": 32_000}
FULL = 20  # requests of 16,000 tokens, prompt and answer, that fill the double's KV cache
PROMPT_TOKENS = 16_000 - 5
BUSY = 3  # interactive requests for which there is no room then


def send(up: Fleet, slo_class: str = "interactive", tokens: int = 100, number: int = 0) -> asyncio.Task[Response]:
    """Each `number` makes another prompt, of which no cache holds anything."""
    body = ask(stream=True, prompt=f"{number:04}" * tokens)
    return asyncio.create_task(up.post("/v1/completions", body, [(b"x-slo-class", slo_class.encode())]))


@asynccontextmanager
async def full(waiting_room: bool = True) -> AsyncIterator[tuple[Fleet, list[asyncio.Task[Response]]]]:
    """A fleet whose KV batch requests hold, whose answers stand still after their first token."""
    async with fleet("mixed0", **{**ROOM, "waiting_room": waiting_room}) as up:
        up.engines["mixed0"].script = lambda body: Reply(gap_s=30.0)
        replica = up.router.shell.ledger.replicas["mixed0"]
        tasks: list[asyncio.Task[Response]] = []
        try:
            for i in range(FULL):
                tasks.append(send(up, "batch", PROMPT_TOKENS, i))
                await until(lambda: replica.decodes == len(tasks))
            assert replica.kv_room == 0
            yield up, tasks
        finally:
            await drop(tasks)


async def drop(tasks: list[asyncio.Task[Response]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_an_idle_fleet_serves_at_once() -> None:
    async def body() -> None:
        async with fleet("mixed0", **ROOM) as up:
            assert [(await send(up)).status for _ in range(3)] == [200] * 3
            assert await up.outcomes() == {"completed": 3}

    run(body())


def test_what_cannot_be_in_time_any_more_is_told_when_to_come_again() -> None:
    async def body() -> None:
        async with full() as (up, _):
            answers = await asyncio.gather(*(send(up, number=FULL + i) for i in range(BUSY)))
            for answer in answers:
                assert answer.status == 429
                assert int(answer.header(b"retry-after") or 0) >= 1
                assert orjson.loads(answer.body)["error"]["code"] == "shed"
            assert await up.outcomes() == {"shed": BUSY}
            assert len(up.engines["mixed0"].asked) == FULL
            decided = (await up.samples())["paceline_slo_decided_total"]
            assert decided["unserved", "interactive"] + decided["ttft", "interactive"] == BUSY

    run(body())


def test_a_client_that_leaves_the_waiting_room_is_forgotten() -> None:
    async def body() -> None:
        async with full() as (up, held):
            patient = send(up, "batch", number=FULL)
            await until(lambda: len(up.router.shell.jobs) == FULL + 1)
            await drop([patient])
            await until(lambda: len(up.router.shell.jobs) == FULL)
            assert await up.outcomes() == {"client_gone": 1}
            await drop(held)
            await until(lambda: not up.router.shell.jobs)

    run(body())


def test_batch_work_waits_until_there_is_room_for_it() -> None:
    async def body() -> None:
        async with full() as (up, held):
            up.engines["mixed0"].script = lambda body: Reply()
            patient = send(up, "batch", number=FULL)
            await until(lambda: len(up.router.shell.jobs) == FULL + 1)
            assert len(up.engines["mixed0"].asked) == FULL
            await drop(held)
            assert (await patient).status == 200

    run(body())


def test_without_a_waiting_room_all_are_sent() -> None:
    async def body() -> None:
        async with full(waiting_room=False) as (up, held):
            held.append(send(up, number=FULL))
            await until(lambda: len(up.engines["mixed0"].asked) == FULL + 1)

    run(body())
