"""10,000 mutated requests against a live engine, started as a decode engine of a pool is: none ends or clogs it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from engine_contract import ask, text_of
from engine_peer import Peer
from paceline_engine.http1 import fetch
from vllm_engine import Started, launch_spec, launched
from vllm_odd_bodies import Odd, odd_requests

pytestmark = pytest.mark.requires("vllm")
COUNT, SEED, CLIENTS = 10_000, 20_261_122, 24
ANSWERED_S = 60.0  # each, with 23 others at work
SHORT = "--max-model-len=384"  # an answer without a limit ends there
STEP = "--max-num-batched-tokens=256"  # longer prompts are cut, whatever the machine's speed
DETAILS = "--enable-prompt-tokens-details"
TOKEN = "service-token"


@pytest.fixture(scope="module")
def engine() -> Iterator[Started]:
    with launched(launch_spec("decode"), TOKEN, SHORT, STEP, DETAILS) as engine:
        yield engine


async def status(peer: Peer, odd: Odd) -> int | str:
    """Of the answer, or what came instead of one."""
    try:
        answer = await fetch(peer.pool, b"POST", odd.path.encode(), odd.headers, odd.body, timeout_s=ANSWERED_S)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return answer.status


def test_a_seed_gives_the_same_answer_however_the_prompt_is_cut(engine: Started) -> None:
    request = ask(prompt=list(range(1000, 1352)), seed=7, temperature=1.0)

    async def run() -> None:
        async with Peer(engine.port, timeout_s=60) as peer:
            cut = await peer.complete(**request)
            whole = await peer.complete(**request)  # but for its end, from the prefix cache
            other = await peer.complete(**{**request, "seed": 8})
        assert text_of(cut) == text_of(whole) != text_of(other)
        assert [a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in (cut, whole)] == [0, 256]

    asyncio.run(run())


def test_10_000_mutated_requests_are_answered_and_leave_nothing_behind(engine: Started) -> None:
    requests = odd_requests(COUNT, SEED)
    seen: Counter[int | str] = Counter()
    wrong: list[tuple[int | str, Odd]] = []

    async def work(peer: Peer) -> None:
        for odd in requests:
            found = await status(peer, odd)
            seen[found] += 1
            if not (found == 200 or (isinstance(found, int) and 400 <= found < 500)):
                wrong.append((found, odd))

    async def run() -> None:
        async with Peer(engine.port, timeout_s=60) as peer:
            expected = text_of(await peer.complete(**ask()))
            await asyncio.gather(*(work(peer) for _ in range(CLIENTS)))
            print(dict(seen))
            assert wrong == []
            assert text_of(await peer.complete(**ask())) == expected
            await peer.is_idle()

    asyncio.run(run())
    assert sum(seen.values()) == COUNT
    assert 0.1 * COUNT < seen[200] < 0.9 * COUNT, "or they are not odd, or nothing but odd"
