"""Two real vLLM engines, started as a pool's are: the contract of all engines, and prefill and decode apart over NIXL.

Tests run in the order of this file, against the same two engines: the later ones kill, drain and end them. No test
judges how long anything took; what must come to hold is waited for.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
from engine_contract import ALONE, APART, ask, decoded, lost, prefilled, text_of
from engine_peer import COMPLETIONS, TOKEN, TRUSTED, Peer, holds
from gaps import Stream, complete, prompt
from paceline_engine.http1 import ClientError
from paceline_engine.pd import decode_leg
from vllm_engine import Started, launch_spec, launched

pytestmark = pytest.mark.requires("vllm")
NO_CACHE = "--no-enable-prefix-caching"  # or a whole request would read what its other half has left
END = 2  # <|im_end|> of the made tokenizer
ROOM = "--kv-cache-memory-bytes=67108864"  # for 32,768 tokens
CUT_S = 3.0  # of the decode engine's drain
LENGTHS = (2, 15, 127, 128, 129, 300, 511, 1000)  # prompts, around vLLM's blocks of 128 tokens on a CPU
LAST = "a_prefill_engine_that_drains_waits_until_its_kv_was_read"


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def prefill(stack: ExitStack) -> Started:
    return stack.enter_context(launched(launch_spec("prefill"), TOKEN, NO_CACHE, ROOM))


@pytest.fixture(scope="module")
def decode(stack: ExitStack) -> Started:
    return stack.enter_context(launched(launch_spec("decode", drain_timeout_s=CUT_S), TOKEN, NO_CACHE))


@pytest.fixture(scope="module")
def another(stack: ExitStack) -> Started:
    """A prefill engine in the place of one that was killed."""
    return stack.enter_context(launched(launch_spec("prefill"), TOKEN, NO_CACHE))


def with_peers(work: Callable[..., Awaitable[None]], *engines: Started) -> None:
    async def run() -> None:
        peers = [Peer(engine.port, timeout_s=120) for engine in engines]
        try:
            await work(*peers)
        finally:
            for peer in peers:
                peer.pool.close()

    asyncio.run(run())


@pytest.mark.parametrize("check", ALONE)
def test_one_engine_keeps_the_contract(decode: Started, check: str) -> None:
    with_peers(ALONE[check], decode)


@pytest.mark.parametrize("check", [name for name in APART if name != LAST])
def test_a_prefill_and_a_decode_engine_keep_the_contract(prefill: Started, decode: Started, check: str) -> None:
    with_peers(APART[check], prefill, decode)


def test_200_greedy_answers_are_those_of_one_engine_and_decode_computes_no_prompt(
    prefill: Started, decode: Started
) -> None:
    async def work(p: Peer, d: Peer) -> None:
        rng = random.Random(7)
        before, wrong = await d.metrics(), []
        prompts = [prompt(k, rng.choice(LENGTHS) + k % 3) for k in range(200)]
        answers = [await decoded(d, await prefilled(p, prompt=ids), prompt=ids, max_tokens=12) for ids in prompts]
        after = await d.metrics()
        source = "vllm:prompt_tokens_by_source_total"
        external = after[f"{source} external_kv_transfer"] - before[f"{source} external_kv_transfer"]
        assert external == sum(map(len, prompts))
        assert after[f"{source} local_compute"] == before[f"{source} local_compute"]
        for ids, answer in zip(prompts, answers, strict=True):
            if answer != text_of(await d.complete(**ask(prompt=ids, max_tokens=12))):
                wrong.append(len(ids))
        assert wrong == []
        assert len(set(answers)) > 150
        await p.is_idle()
        await d.is_idle()

    with_peers(work, prefill, decode)


def test_kv_whose_lease_is_over_and_that_was_overwritten_is_never_read(prefill: Started, decode: Started) -> None:
    """Read late, it would be other prompts' (vLLM 0.32 answers 200 with wrong tokens)."""

    async def work(p: Peer, d: Peer) -> None:
        ids = prompt(901, 1000)
        expected = text_of(await d.complete(**ask(prompt=ids)))
        params = await prefilled(p, prompt=ids)
        await p.is_idle()  # nobody came; the lease is over
        for k in range(12):  # more than there is room for
            await p.complete(**ask(prompt=prompt(1000 + k, 4000), max_tokens=1))
        before = await lost(d)
        assert await decoded(d, params, prompt=ids) == expected
        assert await lost(d) == before + 1

    with_peers(work, prefill, decode)


def test_a_prompt_whose_first_token_would_end_it_is_handed_over(prefill: Started, decode: Started) -> None:
    async def work(p: Peer, d: Peer) -> None:
        body: dict[str, Any] = {"prompt": prompt(5, 300), "logit_bias": {str(END): 100}, "ignore_eos": False}
        whole = await d.complete(**ask(**body))
        assert whole["choices"][0]["finish_reason"] == "stop", "or it would not end early"
        params = await prefilled(p, **body)
        assert params["remote_num_tokens"] == 300
        answer = await d.complete(TRUSTED, **decode_leg(ask(**body), params))
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert text_of(answer) == text_of(whole)

    with_peers(work, prefill, decode)


def test_odd_bodies_leave_both_engines_alive(prefill: Started, decode: Started) -> None:
    values: tuple[Any, ...] = (None, True, -1, 0, 1, 1 << 40, 0.5, "", "x", [], {}, [[]], {"a": 1}, [1, "a"], "\ud800")

    async def work(p: Peer, d: Peer) -> None:
        rng = random.Random(11)
        params = await prefilled(p)
        keys = (*ask(), "kv_transfer_params", "vllm_xargs", "n", "stop", "logprobs", "min_tokens", "messages", "stream")
        theirs = tuple(params.keys() - {"remote_port", "remote_engine_id"})  # each wrong one is waited for
        bodies = []
        for _ in range(200):
            body: dict[str, Any] = {**ask(max_tokens=2), "kv_transfer_params": dict(params)}
            for _ in range(rng.randrange(1, 4)):
                odd: dict[str, Any] = body if rng.random() < 0.5 else body["kv_transfer_params"]
                if not isinstance(body.get("kv_transfer_params"), dict):
                    break
                odd[rng.choice(keys if odd is body else theirs)] = rng.choice(values)
            bodies.append(orjson.dumps(body) if rng.random() < 0.9 and _is_json(body) else rng.randbytes(200))
        for at in range(0, len(bodies), 8):
            asked = [
                peer.post(COMPLETIONS, body, TRUSTED if k % 2 else ())
                for k, body in enumerate(bodies[at : at + 8])
                for peer in (p, d)
            ]
            assert {answer.status for answer in await asyncio.gather(*asked)} <= {200, 400, 404, 422}
        for peer in (p, d):
            assert text_of(await peer.complete(**ask()))
            await peer.is_idle()

    with_peers(work, prefill, decode)


async def runs(peer: Peer) -> bool:
    return (await peer.metrics())["vllm:num_requests_running"] > 0


def _is_json(body: object) -> bool:
    try:
        orjson.dumps(body)
    except (TypeError, orjson.JSONEncodeError):
        return False
    return True


def cpu_s(leader: int) -> float:
    """Seconds of CPU that the processes of a session have used."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def test_idle_engines_take_next_to_nothing(prefill: Started, decode: Started) -> None:
    """NIXL's progress thread would take a core each. 4 % on a calm machine; shared cores make more of the same work."""
    for engine in (prefill, decode):
        shares: list[float] = []
        while len(shares) < 20 and not any(share <= 0.08 for share in shares):
            before, since = cpu_s(engine.child.pid), time.monotonic()
            time.sleep(3)
            shares.append((cpu_s(engine.child.pid) - before) / (time.monotonic() - since))
        print(f"of a core, idle: {shares}")
        assert min(shares) <= 0.08


def test_the_start_is_told(prefill: Started, decode: Started) -> None:
    async def work(p: Peer, d: Peer) -> None:
        for peer in (p, d):
            assert 1 < (await peer.metrics())["paceline_engine_start_seconds"] < 240

    with_peers(work, prefill, decode)


def test_an_engine_that_is_killed_costs_others_nothing_but_work(prefill: Started, decode: Started) -> None:
    """It had KV that the other one reads later, was reading the other one's, and more of that waits for it."""

    async def work(p: Peer, d: Peer) -> None:
        ids = [prompt(2000 + k, 1000) for k in range(3)]
        expected = text_of(await d.complete(**ask(prompt=ids[0])))
        kept = await prefilled(p, prompt=ids[0])
        read, unread = await prefilled(d, prompt=ids[1]), await prefilled(d, prompt=ids[2])
        assert unread["remote_request_id"]
        body = decode_leg(ask(prompt=ids[1], max_tokens=4000, stream=True), read)
        stream = asyncio.create_task(p.post(COMPLETIONS, body, TRUSTED))
        await holds(lambda: runs(p))
        prefill.kill()
        with pytest.raises(ClientError):
            await stream
        before = await lost(d)
        assert await decoded(d, kept, prompt=ids[0]) == expected
        assert await lost(d) == before + 1
        await d.is_idle()
        assert text_of(await d.complete(**ask(prompt=ids[0]))) == expected

    with_peers(work, prefill, decode)


def test_another_prefill_engine_drains_as_the_contract_says(another: Started, decode: Started) -> None:
    with_peers(APART[LAST], another, decode)


def test_told_to_end_an_engine_refuses_what_is_new_and_cuts_what_is_late_with_an_error(decode: Started) -> None:
    async def work(d: Peer) -> None:
        late, short = Stream(), Stream()
        streams = [
            asyncio.create_task(complete(decode.port, late, prompt=prompt(1, 64), max_tokens=8000, ignore_eos=True)),
            asyncio.create_task(complete(decode.port, short, prompt=prompt(2, 64), max_tokens=60, ignore_eos=True)),
        ]
        await asyncio.gather(late.settled.wait(), short.settled.wait())
        decode.child.terminate()
        refused = await d.post(COMPLETIONS, ask())
        assert (refused.status, refused.header(b"retry-after")) == (503, b"1")
        await asyncio.gather(*streams)
        assert (short.complete, short.error) == (True, "")
        assert not late.complete
        assert "shut down" in late.error

    with_peers(work, decode)
    assert decode.child.wait(60) == 0
