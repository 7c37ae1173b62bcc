"""What the router does when an engine refuses, breaks off, dies, hangs or comes back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
from engine_double import Reply
from paceline_engine.http1 import ClientError
from router_fleet import EXPECTED, ask, fleet, listen, run, words
from waiting import until


@dataclass(frozen=True)
class Failure:
    says: str
    engines: tuple[str, ...]
    scripts: dict[str, list[Reply]]  # replies in order; then good ones
    status: int
    outcomes: dict[str, int]
    legs: dict[str, int]  # asked of each role
    over: dict[str, Any] = field(default_factory=dict)


BUSY, DEAD, CUT = Reply(status=503), Reply(status=500), Reply(break_after=0)


FAIL_KV = {"kv_transfer": {"on_failure": "fail"}}


FAILURES = [
    Failure(
        "a refusal is retried on another replica",
        ("mixed0", "mixed1"),
        {"mixed": [BUSY]},
        200,
        {"completed": 1},
        {"mixed": 2},
    ),
    Failure(
        "an error before the first byte is retried",
        ("mixed0", "mixed1"),
        {"mixed": [DEAD]},
        200,
        {"completed": 1},
        {"mixed": 2},
    ),
    Failure(
        "a cut before the first content is retried",
        ("mixed0", "mixed1"),
        {"mixed": [CUT]},
        200,
        {"completed": 1},
        {"mixed": 2},
    ),
    Failure(
        "an error event before the first content is retried",
        ("mixed0", "mixed1"),
        {"mixed": [Reply(error_after=0)]},
        200,
        {"completed": 1},
        {"mixed": 2},
    ),
    Failure(
        "an error event of a 400 before the first content is the client's own fault",
        ("mixed0", "mixed1"),
        {"mixed": [Reply(error_after=0, error_code=400)]},
        400,
        {"rejected": 1},
        {"mixed": 1},
    ),
    Failure(
        "one of a 503 is a refusal, retried on another replica",
        ("mixed0", "mixed1"),
        {"mixed": [Reply(error_after=0, error_code=503)]},
        200,
        {"completed": 1},
        {"mixed": 2},
    ),
    Failure(
        "with nowhere left to go it has failed upstream",
        ("mixed0",),
        {"mixed": [DEAD]},
        502,
        {"upstream_failed": 1},
        {"mixed": 1},
    ),
    Failure(
        "an engine's 400 is the client's own fault",
        ("mixed0",),
        {"mixed": [Reply(status=400)]},
        400,
        {"rejected": 1},
        {"mixed": 1},
    ),
    Failure(
        "an engine's 403 is not the client's fault",
        ("mixed0",),
        {"mixed": [Reply(status=403)]},
        502,
        {"upstream_failed": 1},
        {"mixed": 1},
    ),
    Failure(
        "a failed prefill is done by another prefill replica",
        ("prefill0", "prefill1", "decode0"),
        {"prefill": [DEAD]},
        200,
        {"completed": 1},
        {"prefill": 2, "decode": 1},
    ),
    Failure(
        "a second failed prefill is recomputed by the decode replica",
        ("prefill0", "prefill1", "decode0"),
        {"prefill": [DEAD, DEAD]},
        200,
        {"completed": 1},
        {"prefill": 2, "decode": 1},
    ),
    Failure(
        "or fails where the service says so",
        ("prefill0", "prefill1", "decode0"),
        {"prefill": [DEAD, DEAD]},
        502,
        {"upstream_failed": 1},
        {"prefill": 2, "decode": 0},
        FAIL_KV,
    ),
    Failure(
        "a prefill answer without KV parameters is a failed prefill",
        ("prefill0", "decode0"),
        {"prefill": [Reply(without_kv=True)]},
        200,
        {"completed": 1},
        {"prefill": 1, "decode": 1},
    ),
    Failure(
        "a failed transfer is prefilled again",
        ("prefill0", "prefill1", "decode0", "decode1"),
        {"decode": [DEAD]},
        200,
        {"completed": 1},
        {"prefill": 2, "decode": 2},
    ),
    Failure(
        "a failed transfer is prefilled elsewhere for the same decode replica",
        ("prefill0", "prefill1", "decode0"),
        {"decode": [DEAD]},
        200,
        {"completed": 1},
        {"prefill": 2, "decode": 2},
    ),
    Failure(
        "a failed transfer from the only prefill replica is recomputed",
        ("prefill0", "decode0"),
        {"decode": [DEAD]},
        200,
        {"completed": 1},
        {"prefill": 1, "decode": 2},
    ),
    Failure(
        "a decode replica that dies over its fetch is left for another, and the prompt computed again",
        ("prefill0", "decode0", "decode1"),
        {"decode": [CUT]},
        200,
        {"completed": 1},
        {"prefill": 2, "decode": 2},
    ),
    Failure(
        "a decode replica that refuses leaves the KV to another",
        ("prefill0", "decode0", "decode1"),
        {"decode": [BUSY]},
        200,
        {"completed": 1},
        {"prefill": 1, "decode": 2},
    ),
]


@pytest.mark.parametrize("case", FAILURES, ids=lambda case: case.says.replace(" ", "-"))
def test_before_the_first_byte(case: Failure) -> None:
    async def body() -> None:
        async with fleet(*case.engines, **case.over) as up:
            for role, replies in case.scripts.items():
                queue = list(replies)
                for name, engine in up.engines.items():
                    if name.startswith(role):
                        engine.script = lambda _, queue=queue: queue.pop(0) if queue else Reply()  # type: ignore[misc]  # the default binds
            answer = await up.post("/v1/completions", ask(stream=True))
            assert answer.status == case.status, answer.body
            if case.status == 200:
                assert words(answer) == EXPECTED
            elif case.status != 400:
                assert orjson.loads(answer.body)["error"]["code"] in case.outcomes
            assert await up.outcomes() == case.outcomes
            for role, legs in case.legs.items():
                assert sum(len(e.asked) for n, e in up.engines.items() if n.startswith(role)) == legs
            replicas = up.router.shell.ledger.replicas.values()
            assert all(r.legs == r.kv_reserved == r.decodes == r.incoming == r.prefill_queue == 0 for r in replicas)

    run(body())


def test_a_dead_prefill_pool_is_stood_in_for_by_decode_replicas() -> None:
    async def body() -> None:
        async with fleet("prefill0", "decode0") as up:
            await up.engines["prefill0"].stop()
            for _ in range(2):
                assert words(await up.post("/v1/completions", ask(stream=True))) == EXPECTED
            assert "kv_transfer_params" not in up.engines["decode0"].asked[-1].body
            assert await up.outcomes() == {"completed": 2}

    run(body())


def test_after_the_first_byte_an_error_event_ends_the_stream_and_nothing_is_retried() -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1") as up:
            for engine in up.engines.values():
                engine.script = lambda _: Reply(break_after=2)
            seen: list[bytes] = []
            with pytest.raises(ClientError):
                await listen(up, seen)
            parts = b"".join(seen).split(b"\n\n")
            assert orjson.loads(parts[-2][6:])["error"]["code"] == "upstream_failed"
            assert sum(b'"text"' in part for part in parts) == 2
            assert sum(len(engine.asked) for engine in up.engines.values()) == 1
            assert await up.outcomes() == {"upstream_failed": 1}
            samples = await up.samples()
            assert samples["paceline_slo_decided_total"][("unserved", "interactive")] == 1
            assert samples["paceline_miss_total"][("failure", "interactive")] == 1

    run(body())


def test_what_waits_on_a_replica_that_answers_nobody_goes_elsewhere() -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1") as up:
            for engine in up.engines.values():
                engine.script = lambda _: Reply(hang=True) if not up.more.setdefault("hung", False) else Reply()
            asked = asyncio.create_task(up.post("/v1/completions", ask(stream=True)))
            await until(lambda: any(engine.asked for engine in up.engines.values()))
            up.more["hung"] = True
            (name,) = (name for name, engine in up.engines.items() if engine.asked)
            up.router.shell.abandon(name)
            assert words(await asked) == EXPECTED
            assert len(up.engines[name].aborted) == 1
            assert await up.outcomes() == {"completed": 1}

    run(body())


def test_an_engine_that_comes_back_on_its_port_gets_requests_again(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with fleet("mixed0") as up:
            engine = up.engines["mixed0"]
            await engine.stop()
            assert (await up.post("/v1/completions", ask())).status == 502
            assert (await up.post("/v1/completions", ask())).status == 503
            await until(lambda: "replica=mixed0 answers no probe" in caplog.text)
            await engine.start(engine.port)
            await until(lambda: up.router.shell.is_ready)
            assert (await up.post("/v1/completions", ask())).status == 200
            assert await up.outcomes() == {"upstream_failed": 1, "no_endpoint": 1, "completed": 1}

    run(body())
