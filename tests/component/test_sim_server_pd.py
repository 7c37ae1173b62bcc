"""Prefill and decode on two simulated engines: the same answer as on one, and every way in which the KV can be lost."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from engine_peer import TRUSTED
from paceline_engine.sim.engine import Phase
from sim_engine import Client, engines, run
from waiting import until

PREFILL, DECODE, MIXED = ("--role=prefill",), ("--role=decode",), ("--role=mixed",)
PROMPT = list(range(1000))
LEG1 = {"prompt": PROMPT, "max_tokens": 1, "min_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
LEG2 = {"prompt": PROMPT, "max_tokens": 12, "ignore_eos": True}
LEASES = 4.0  # the scale of time at which a lease of a second outlives a pause of the event loop


async def leg1(prefill: Client, **over: Any) -> dict[str, Any]:
    """The kv_transfer_params of a prefill leg."""
    answer = await prefill.complete(TRUSTED, **{**LEG1, **over})
    params = answer["kv_transfer_params"]
    assert isinstance(params, dict)
    return params


async def text_of_leg2(decode: Client, params: object) -> str:
    answer = await decode.complete(TRUSTED, **LEG2, kv_transfer_params=params)
    assert answer["usage"]["completion_tokens"] == 12
    return str(answer["choices"][0]["text"])


async def aggregated(client: Client) -> str:
    return str((await client.complete(**LEG2))["choices"][0]["text"])


def test_a_pd_answer_is_the_aggregated_one_and_only_the_prefill_engine_computes_the_prompt() -> None:
    async def work() -> None:
        async with engines(PREFILL, DECODE, MIXED) as (prefill, decode, mixed):
            params = await leg1(prefill)
            assert params["remote_port"] == prefill.engine.port
            assert params["remote_num_tokens"] == 1000
            assert (await prefill.metrics())["paceline_kv_parked_requests"] == 1
            assert await text_of_leg2(decode, params) == await aggregated(mixed)
            assert (await prefill.metrics())["vllm:prompt_tokens_total"] == 1000
            assert (await decode.metrics())["vllm:prompt_tokens_total"] == 0
            await until(lambda: not prefill.engine.replica.parked)  # released once it was read
            assert not list(decode.engine.replica.holders())

    run(work)


def test_a_hand_over_takes_the_machines_time() -> None:
    async def work() -> None:
        async with engines(PREFILL, (*DECODE, "--kv-constant-ms=900")) as (prefill, decode):
            params = await leg1(prefill)
            began_s = decode.engine.clock.now()
            await text_of_leg2(decode, params)
            assert decode.engine.clock.now() - began_s > 0.9
            assert decode.engine.metrics.kv_failures == dict.fromkeys(decode.engine.metrics.kv_failures, 0)

    run(work)


def test_kv_transfer_params_without_the_token_are_dropped() -> None:
    async def work() -> None:
        async with engines(PREFILL, DECODE) as (prefill, decode):
            assert (await prefill.complete(**LEG1))["kv_transfer_params"] is None
            assert not prefill.engine.replica.parked
            forged = {**(await leg1(prefill)), "remote_host": "192.0.2.1"}
            await decode.complete(**LEG2, kv_transfer_params=forged)
            assert (await decode.metrics())["vllm:prompt_tokens_total"] == 1000

    run(work)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"remote_host": "192.0.2.1"}, "none of the hosts"),
        ({"remote_host": None}, "remote_host"),
        ({"remote_port": 0}, "remote_port"),
        ({"remote_num_tokens": "1000"}, "remote_num_tokens"),
        ({"remote_blocks_expiry_time": "nan"}, "finite"),
        ({"remote_blocks_expiry_time": {}}, "float"),
        ({"tp_size": -1}, "tp_size"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_params_that_would_crash_or_misuse_an_engine_are_refused(change: dict[str, Any], says: str) -> None:
    async def work() -> None:
        async with engines(PREFILL, DECODE) as (prefill, decode):
            params = {**(await leg1(prefill)), **change}
            answer = await decode.post("/v1/completions", {**LEG2, "kv_transfer_params": params}, TRUSTED)
            assert answer.status == 400
            assert says in orjson.loads(answer.body)["error"]["message"]

    run(work)


async def _expire(prefill: Client) -> None:
    await until(lambda: not prefill.engine.replica.parked)


async def _restart(prefill: Client) -> None:
    prefill.engine.leases.engine_id = "another"


async def _forget(prefill: Client) -> None:
    for request_id in list(prefill.engine.replica.parked):
        prefill.engine.replica.release(request_id)


async def _nothing(prefill: Client) -> None:
    return


LOSSES = [
    pytest.param("gone", ("--lease-s=0.5",), (), {}, _expire, id="its lease ended"),
    pytest.param("gone", (), (), {}, _restart, id="the prefill engine was restarted on the same port"),
    pytest.param("gone", (), (), {}, _forget, id="another engine has taken it"),
    pytest.param("unreachable", (), (), {"remote_port": 1}, _nothing, id="the prefill engine is down"),
    pytest.param("mismatch", (), (), {"remote_num_tokens": 999}, _nothing, id="it is another prompt's"),
    pytest.param(
        "late", ("--lease-s=1",), ("--kv-constant-ms=1200",), {}, _nothing, id="its lease ends during the read"
    ),
    pytest.param("timeout", (), ("--kv-constant-ms=900", "--kv-timeout-ms=500"), {}, _nothing, id="it takes too long"),
]


@pytest.mark.parametrize(("cause", "prefill_flags", "decode_flags", "change", "harm"), LOSSES)
def test_lost_kv_is_computed_again_and_counted(
    cause: str, prefill_flags: tuple[str, ...], decode_flags: tuple[str, ...], change: dict[str, Any], harm: Any
) -> None:
    async def work() -> None:
        fleet = engines((*PREFILL, *prefill_flags), (*DECODE, *decode_flags), scale=LEASES)
        async with fleet as (prefill, decode):
            params = {**(await leg1(prefill)), **change}
            await harm(prefill)
            assert await text_of_leg2(decode, params) == await aggregated(decode)
            samples = await decode.metrics()
            assert samples[f"paceline_kv_transfer_failures_total {cause}"] == 1
            assert samples["paceline_engine_legs_total finished"] == 2
            assert not list(decode.engine.replica.holders())

    run(work)


@pytest.mark.parametrize(("cause", "prefill_flags", "decode_flags", "change", "harm"), LOSSES)
def test_lost_kv_fails_the_request_where_that_is_the_policy(
    cause: str, prefill_flags: tuple[str, ...], decode_flags: tuple[str, ...], change: dict[str, Any], harm: Any
) -> None:
    async def work() -> None:
        flags = (*DECODE, *decode_flags, "--kv-on-failure=fail")
        async with engines((*PREFILL, *prefill_flags), flags, scale=LEASES) as (prefill, decode):
            params = {**(await leg1(prefill)), **change}
            await harm(prefill)
            answer = await decode.post("/v1/completions", {**LEG2, "kv_transfer_params": params}, TRUSTED)
            assert answer.status == 500
            assert "KV transfer failed" in orjson.loads(answer.body)["error"]["message"]
            samples = await decode.metrics()
            assert samples[f"paceline_kv_transfer_failures_total {cause}"] == 1
            assert samples["paceline_engine_legs_total failed"] == 1
            assert not list(decode.engine.replica.holders())

    run(work)


def test_kv_that_nobody_reads_is_freed_when_its_lease_ends() -> None:
    async def work() -> None:
        async with engines((*PREFILL, "--lease-s=1"), scale=LEASES) as (prefill,):
            await leg1(prefill)
            assert prefill.engine.replica.view.kv.usage > 0
            await _expire(prefill)
            assert prefill.engine.replica.view.kv.usage == 0
            assert (await prefill.metrics())["paceline_kv_leases_expired_total"] == 1

    run(work)


def test_a_decode_leg_that_waits_for_room_keeps_its_lease_alive() -> None:
    async def work() -> None:
        small = (*DECODE, "--kv-blocks=100", "--max-model-len=1600", "--lease-s=2")
        async with engines((*PREFILL, "--lease-s=2"), small, scale=LEASES) as (prefill, decode):
            first, second = await leg1(prefill), await leg1(prefill, prompt=PROMPT[::-1])
            long = {**LEG2, "max_tokens": 500, "kv_transfer_params": first}
            in_progress = decode.engine.loop.create_task(decode.post("/v1/completions", long, TRUSTED))
            await until(lambda: decode.engine.running == 1)
            began_s = decode.engine.clock.now()
            body = {**LEG2, "prompt": PROMPT[::-1], "kv_transfer_params": second}
            assert (await decode.post("/v1/completions", body, TRUSTED)).status == 200
            assert decode.engine.clock.now() - began_s > 4  # two leases
            assert (await in_progress).status == 200
            samples = await decode.metrics()
            assert samples["vllm:prompt_tokens_total"] == 0
            assert (await prefill.metrics())["paceline_kv_leases_expired_total"] == 0

    run(work)


def test_a_client_that_leaves_during_the_hand_over_leaves_nothing_behind() -> None:
    async def work() -> None:
        async with engines(PREFILL, (*DECODE, "--kv-constant-ms=1000")) as (prefill, decode):
            params = await leg1(prefill)
            body = {**LEG2, "kv_transfer_params": params}
            call = decode.engine.loop.create_task(decode.post("/v1/completions", body, TRUSTED))
            await until(lambda: decode.engine.running == 1)
            call.cancel()
            await until(lambda: decode.engine.running == 0)
            assert not list(decode.engine.replica.holders())
            await until(lambda: not prefill.engine.replica.parked)
            assert decode.engine.in_progress == 0

    run(work)


def test_a_prefill_engine_that_drains_waits_until_its_kv_was_read() -> None:
    async def work() -> None:
        async with engines(PREFILL, DECODE) as (prefill, decode):
            params = await leg1(prefill)
            assert (await prefill.post("/paceline/drain", {}, TRUSTED)).status == 202
            await until(lambda: prefill.engine.phase is Phase.DRAINING)
            assert (await prefill.get("/readyz")).status == 503
            assert (await prefill.post("/v1/completions", LEG1, TRUSTED)).status == 503
            assert (await prefill.metrics())["paceline_kv_parked_requests"] == 1
            await text_of_leg2(decode, params)
            assert (await decode.metrics())["vllm:prompt_tokens_total"] == 0
            await prefill.engine.drain()
            assert (await prefill.metrics())["paceline_kv_parked_requests"] == 0

    run(work)
