"""Engines that answer their probes and give no tokens are found and left out, slow ones are left alone."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import orjson
import pytest
from engine_double import EngineDouble, Reply
from paceline_engine.http1 import ClientError
from paceline_router.outliers import MOST_ERRORS
from paceline_router.retry_budget import RATIO, REFILL_RPS
from paceline_router.silence import ENDS, WARM_SIGNS
from router_fleet import EXPECTED, Fleet, ask, fleet, listen, run, words
from waiting import until

LEAST_S = 0.5
_HANG = Reply(hang=True)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline_router.vigil.LEAST_S", LEAST_S)


async def _warm(up: Fleet) -> None:
    """Every engine has given enough signs not to be taken for one that compiles."""
    for engine in up.engines.values():
        engine.script = lambda _: Reply(gap_s=0.001)
    while any(r.signs < WARM_SIGNS for r in up.router.shell.ledger.replicas.values()):
        await up.post("/v1/completions", ask(stream=True, max_tokens=WARM_SIGNS))


def _hang(up: Fleet, name: str, reply: Reply = _HANG) -> EngineDouble:
    up.engines[name].script = lambda _: reply
    up.engines[name].asked.clear()
    return up.engines[name]


async def _ejections(up: Fleet, cause: str) -> float:
    found = (await up.samples())["paceline_replica_ejections_total"]
    return sum(value for (why, _), value in found.items() if why == cause)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "not streamed"])
def test_what_waits_for_its_first_byte_is_asked_for_elsewhere(stream: bool) -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1", policy="round-robin") as up:
            await _warm(up)
            for engine in up.engines.values():
                engine.steps = 1000  # of an unstreamed answer only pages tell
            await until(lambda: all(r.told.steps for r in up.router.shell.ledger.replicas.values()))
            hung = _hang(up, "mixed0")
            begun_at = monotonic()
            answers = await asyncio.gather(*(up.post("/v1/completions", ask(stream=stream)) for _ in range(4)))
            assert [answer.status for answer in answers] == [200] * 4
            if stream:
                assert {words(answer) for answer in answers} == {EXPECTED}
            assert LEAST_S < monotonic() - begun_at < LEAST_S + 1.5
            assert len(hung.aborted) == len(hung.asked) == 2
            assert await _ejections(up, "silent") == 1
            for _ in range(4):  # and it gets nothing new, though its probes are good
                await up.post("/v1/completions", ask(stream=stream))
            assert len(hung.asked) == 2
            assert up.router.shell.ledger.replicas["mixed0"].ready
            assert set(await up.outcomes()) == {"completed"}

    run(body())


def test_leg_1_is_done_by_another_prefill_replica() -> None:
    async def body() -> None:
        async with fleet("prefill0", "prefill1", "decode0", policy="round-robin") as up:
            for engine in up.engines.values():
                engine.steps = 1000
            await until(lambda: all(r.told.steps for r in up.router.shell.ledger.replicas.values()))
            hung = _hang(up, "prefill0")
            for _ in range(2):
                assert words(await up.post("/v1/completions", ask(stream=True))) == EXPECTED
            assert len(hung.asked) == 1
            assert (await up.samples())["paceline_retries_total"][("silent", "prefill", "PrefillElsewhere")] == 1

    run(body())


def test_a_stream_that_stops_midway_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline_router.silence.LEAST_END", ENDS)

    async def body() -> None:
        async with fleet("mixed0", "mixed1", policy="round-robin") as up:
            await _warm(up)
            for name in up.engines:
                _hang(up, name, Reply(stop_after=2))
            seen: list[bytes] = []
            begun_at = monotonic()
            with pytest.raises(ClientError):
                await listen(up, seen)
            assert ENDS * LEAST_S < monotonic() - begun_at < ENDS * LEAST_S + 1.5
            parts = b"".join(seen).split(b"\n\n")
            assert orjson.loads(parts[-2][6:])["error"]["code"] == "upstream_failed"
            assert sum(b'"text"' in part for part in parts) == 2
            assert sum(len(engine.asked) for engine in up.engines.values()) == 1
            assert (await up.outcomes())["upstream_failed"] == 1

    run(body())


def test_an_engine_that_pauses_and_goes_on_loses_no_stream_and_is_trusted_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1", policy="round-robin") as up:
            await _warm(up)
            for name in up.engines:
                _hang(up, name, Reply(gap_s=3 * LEAST_S))
            assert words(await up.post("/v1/completions", ask(stream=True, max_tokens=2))) == " w0 w1"
            (name,) = (name for name, engine in up.engines.items() if engine.asked)
            assert f"replica={name} heard_after_s=" in caplog.text
            await until(lambda: not up.router.shell.ledger.replicas[name].left_out)
            assert set(await up.outcomes()) == {"completed"}

    caplog.set_level("INFO")
    run(body())


def test_an_engine_that_answers_with_errors_alone_is_left_out() -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1", policy="round-robin") as up:
            broken = _hang(up, "mixed0", Reply(status=500))
            for _ in range(4 * MOST_ERRORS):
                assert (await up.post("/v1/completions", ask())).status == 200
                if len(broken.asked) == MOST_ERRORS:
                    await until(lambda: up.router.shell.ledger.replicas["mixed0"].left_out)
            assert len(broken.asked) == MOST_ERRORS
            assert await _ejections(up, "erring") == 1
            assert await up.outcomes() == {"completed": 4 * MOST_ERRORS}

    run(body())


def test_a_request_that_no_engine_can_take_leaves_nobody_out() -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1") as up:
            for name in up.engines:
                _hang(up, name, Reply(status=500))
            for _ in range(MOST_ERRORS):
                assert (await up.post("/v1/completions", ask())).status == 502
            await asyncio.sleep(0.2)  # some looks
            for name in up.engines:
                _hang(up, name, Reply())
            assert (await up.post("/v1/completions", ask())).status == 200
            assert up.router.shell.is_ready

    run(body())


def test_where_every_engine_errs_the_load_is_not_multiplied() -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1", "mixed2", policy="round-robin") as up:
            for name in up.engines:
                _hang(up, name, Reply(status=500))
            budget, clock = up.router.shell.guide.budget, up.router.shell.clock
            while budget.take(0, clock.now()):
                pass
            since_s = clock.now()
            for _ in range(30):
                assert (await up.post("/v1/completions", ask())).status == 502
            more = RATIO * 30 + REFILL_RPS * (clock.now() - since_s) + 1
            assert 30 <= sum(len(engine.asked) for engine in up.engines.values()) <= 30 + more
            assert (await up.samples())["paceline_retries_total"][("errored", "whole", "OverBudget")]

    run(body())


UNHURT: list[tuple[str, bool, int, dict[str, Any], Reply]] = [
    ("a long prompt that takes its time", True, 40_000, {"stream": True}, Reply(wait_s=4 * LEAST_S)),
    ("an engine that compiles at its first request", False, 3, {"stream": True}, Reply(wait_s=4 * LEAST_S)),
    ("a whole answer of an engine that counts no steps", True, 3, {"stream": False}, Reply(gap_s=4 * LEAST_S)),
]


@pytest.mark.parametrize(
    ("warm", "prompt_tokens", "over", "reply"), [row[1:] for row in UNHURT], ids=[row[0] for row in UNHURT]
)
def test_no_alarm_for(warm: bool, prompt_tokens: int, over: dict[str, Any], reply: Reply) -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1", max_context_tokens=131_072) as up:
            if warm:
                await _warm(up)
            for name in up.engines:
                _hang(up, name, reply)
            answer = await up.post("/v1/completions", ask(prompt=[1] * prompt_tokens, **over))
            assert answer.status == 200
            assert sum(len(engine.asked) for engine in up.engines.values()) == 1
            assert await _ejections(up, "silent") == 0
            assert "paceline_retries_total" not in await up.samples()

    run(body())


@pytest.mark.parametrize("draining", [False, True], ids=["", "while it drains"])
def test_no_alarm_for_an_engine_whose_page_counts_on(draining: bool) -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1", scale=4.0) as up:  # a page each 0.25 s
            for name, engine in up.engines.items():
                _hang(up, name, Reply(gap_s=4 * LEAST_S))
                engine.steps = 1000
            await until(lambda: all(r.told.steps for r in up.router.shell.ledger.replicas.values()))
            asked = asyncio.create_task(up.post("/v1/completions", ask()))
            while not asked.done():
                await asyncio.sleep(LEAST_S / 4)
                for engine in up.engines.values():
                    engine.steps += 1
                    engine.ready = not draining or not engine.asked
            assert (await asked).status == 200
            assert await _ejections(up, "silent") == 0

    run(body())


def test_when_all_engines_hang_nobody_is_left_out_and_those_that_come_back_serve() -> None:
    async def body() -> None:
        async with fleet("mixed0", "mixed1", policy="round-robin") as up:
            await _warm(up)
            for name in up.engines:
                _hang(up, name, Reply(wait_s=4 * LEAST_S))  # twice that is within what `post` waits
            answers = await asyncio.gather(*(up.post("/v1/completions", ask(stream=True)) for _ in range(4)))
            assert {words(answer) for answer in answers} == {EXPECTED}
            assert sum(len(engine.asked) for engine in up.engines.values()) <= 6  # one may be found before the other
            await until(lambda: not any(r.left_out for r in up.router.shell.ledger.replicas.values()))

    run(body())
