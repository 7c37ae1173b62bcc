"""What every engine owes its callers, whatever computes the tokens: checks that run against both runtimes over HTTP.

`ALONE` asks one engine, `APART` a prefill and a decode engine; the last of these drains the first for good. A check
leaves engines as idle as it found them and judges counters by what they gained, so that all of one table may ask the
same engines in turn. Engines serve the model m with the token TOKEN and recompute KV that is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson
from engine_peer import CHAT, COMPLETIONS, RESPONSES, TOKEN, TRUSTED, Peer, events, holds
from metric_names import engine_families
from paceline_engine.drain import drain, left_requests
from paceline_engine.http1 import Header
from paceline_engine.pd import KV_PARAMS, LEASE_S, decode_leg, prefill_leg, prefill_leg_of_response

SIMULATED = engine_families()
ONLY_SIMULATED = frozenset({"paceline_sim_lateness_seconds", "paceline_kv_leases_expired"})
PROMPT = [10 + 7 * i % 7000 for i in range(300)]


def ask(**over: Any) -> dict[str, Any]:
    """A greedy completion of a fixed length."""
    return {"model": "m", "prompt": PROMPT, "max_tokens": 8, "ignore_eos": True, "temperature": 0, **over}


def text_of(answer: Mapping[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


# --- one engine


async def an_answer_says_what_it_used(peer: Peer) -> None:
    answer = await peer.complete(**ask())
    assert answer["usage"]["prompt_tokens"] == len(PROMPT)
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["object"] == "text_completion"
    assert text_of(answer)
    assert answer.get(KV_PARAMS) is None


async def a_stream_is_the_answer_in_parts(peer: Peer) -> None:
    answer = await peer.post(COMPLETIONS, ask(stream=True, stream_options={"include_usage": True}))
    assert (answer.header(b"content-type") or b"").startswith(b"text/event-stream")
    *chunks, usage, done = events(answer)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 8
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"][0]["finish_reason"]] == ["length"]
    assert "".join(c["choices"][0]["text"] for c in chunks) == text_of(await peer.complete(**ask()))


async def a_chat_begins_with_its_role(peer: Peer) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Say something"}], "stream": True, "temperature": 0}
    answer = await peer.post(CHAT, {**body, "max_completion_tokens": 6, "ignore_eos": True})
    first, *chunks, done = events(answer)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert not first["choices"][0]["delta"].get("content")
    assert any(c["choices"][0]["delta"].get("content") for c in chunks)
    assert {c["object"] for c in (first, *chunks)} == {"chat.completion.chunk"}
    assert done == "[DONE]"


async def it_says_what_it_serves_and_how_it_is(peer: Peer) -> None:
    (model,) = orjson.loads((await peer.get("/v1/models")).body)["data"]
    assert model["id"] == "m"
    assert model["max_model_len"] >= 4096
    for path in ("/health", "/readyz", "/metrics"):
        assert (await peer.get(path)).status == 200
    assert (await peer.get("/readyz")).body == b"ready"
    assert ((await peer.get("/metrics")).header(b"content-type") or b"").startswith(b"text/plain")
    assert (await peer.get("/nowhere")).status == 404
    assert (await peer.get(COMPLETIONS)).status == 405


def respond(**over: Any) -> dict[str, Any]:
    """A greedy response of a fixed length."""
    return {
        "model": "m",
        "input": "Say something",
        "max_output_tokens": 8,
        "ignore_eos": True,
        "temperature": 0,
        **over,
    }


def words_of(response: Mapping[str, Any]) -> str:
    (message,) = (item for item in response["output"] if item["type"] == "message")
    return "".join(part["text"] for part in message["content"])


async def a_response_says_what_it_used(peer: Peer) -> None:
    answer = await peer.post(RESPONSES, respond(instructions="Be brief", store=False))
    assert answer.status == 200, answer.body
    response = orjson.loads(answer.body)
    assert response["object"] == "response"
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["usage"]["output_tokens"] == response["max_output_tokens"] == 8
    assert response["usage"]["input_tokens"] > 2
    assert response["instructions"] == "Be brief"
    assert response.get(KV_PARAMS) is None
    assert words_of(response)


async def a_streamed_response_is_typed_events_and_no_done(peer: Peer) -> None:
    answer = await peer.post(RESPONSES, respond(stream=True))
    assert (answer.header(b"content-type") or b"").startswith(b"text/event-stream")
    sent = events(answer)
    kinds = [event["type"] for event in sent]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert [event["sequence_number"] for event in sent] == list(range(len(sent)))
    assert [line[7:].decode() for line in answer.body.split(b"\n") if line.startswith(b"event: ")] == kinds
    response = sent[-1]["response"]
    assert response["usage"]["output_tokens"] == 8
    said = "".join(event["delta"] for event in sent if event["type"] == "response.output_text.delta")
    assert said == words_of(response) == words_of(orjson.loads((await peer.post(RESPONSES, respond())).body))


async def responses_are_not_kept(peer: Peer) -> None:
    assert (await peer.post(RESPONSES, respond(background=True))).status == 400
    assert (await peer.post(RESPONSES, respond(previous_response_id="resp_1"))).status == 404
    assert (await peer.post(RESPONSES, respond(max_output_tokens=0))).status == 400
    assert (await peer.post(RESPONSES, respond(model="other"))).status == 404
    assert (await peer.post(RESPONSES, respond(max_output_tokens=20_000))).status == 400


async def it_counts_tokens_as_usage_does_and_reads_them_back(peer: Peer) -> None:
    prompt = "Hello there, friend"
    answer = await peer.post("/tokenize", {"model": "m", "prompt": prompt, "return_token_strs": True})
    assert answer.status == 200, answer.body
    found = orjson.loads(answer.body)
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"]) > 0
    assert found["max_model_len"] >= 4096
    usage = (await peer.complete(**ask(prompt=prompt)))["usage"]
    assert found["count"] == usage["prompt_tokens"]
    assert text_of(await peer.complete(**ask(prompt=prompt))) == text_of(
        await peer.complete(**ask(prompt=found["tokens"]))
    )
    back = await peer.post("/detokenize", {"tokens": found["tokens"]})
    assert prompt in orjson.loads(back.body)["prompt"]
    messages = [{"role": "user", "content": prompt}]
    chat = orjson.loads((await peer.post("/tokenize", {"messages": messages})).body)
    assert chat["count"] > found["count"]
    for body in ({"model": "other", "prompt": prompt}, {"model": "m"}):
        refused = await peer.post("/tokenize", body)
        assert refused.status == (404 if body["model"] == "other" else 400), refused.body
        assert orjson.loads(refused.body)["error"]["message"]


async def a_model_that_generates_embeds_nothing(peer: Peer) -> None:
    assert (await peer.post("/v1/embeddings", {"model": "m", "input": "hi"})).status == 404


REFUSED: Mapping[str, tuple[object, int]] = {
    "a body that is not JSON": (b"{", 400),
    "a body that is no object": ([], 400),
    "another model": (ask(model="other"), 404),
    "an empty prompt": (ask(prompt=""), 400),
    "a negative id": (ask(prompt=[-1]), 400),
    "no length": (ask(max_tokens=0), 400),
    "a negative length": (ask(max_tokens=-5), 400),
    "half a token": (ask(max_tokens=1.5), 400),
    "min_tokens above max_tokens": (ask(min_tokens=9), 400),
    "longer than the context": (ask(prompt=[17] * 20_000), 400),
}


async def what_it_cannot_serve_is_refused_with_openais_error(peer: Peer) -> None:
    async with peer.gains() as gained:
        for name, (body, status) in REFUSED.items():
            answer = await peer.post(COMPLETIONS, body)
            assert answer.status == status, (name, answer.body)
            error = orjson.loads(answer.body)["error"]
            assert error["message"], name
            assert {"type", "param", "code"} <= error.keys(), name
    assert gained["paceline_engine_legs_total rejected"] == len(REFUSED)
    assert gained["paceline_engine_legs_received_total"] == len(REFUSED)
    assert gained["vllm:generation_tokens_total"] == 0


BAD_OBJECTIVES: tuple[Header, ...] = (
    (b"x-slo-ttft-remaining-ms", b"soon"),
    (b"x-slo-ttft-remaining-ms", b"nan"),
    (b"x-slo-tpot-ms", b"0"),
    (b"x-slo-tpot-ms", b"-40"),
    (b"x-slo-tpot-ms", b"1e99"),
    (b"x-slo-max-stall-ms", b"inf"),
    (b"x-slo-class", b"x" * 64),
    (b"x-slo-class", b"\xff"),
)


async def an_objective_counts_only_with_the_token(peer: Peer) -> None:
    good = ((b"x-slo-ttft-remaining-ms", b"-40"), (b"x-slo-tpot-ms", b"50"), (b"x-slo-class", b"interactive"))
    assert (await peer.post(COMPLETIONS, ask(), (*TRUSTED, *good))).status == 200
    for header in BAD_OBJECTIVES:
        assert (await peer.post(COMPLETIONS, ask(), (header,))).status == 200, header
        assert (await peer.post(COMPLETIONS, ask(), ((b"x-paceline-token", b"guess"), header))).status == 200, header
        answer = await peer.post(COMPLETIONS, ask(), (*TRUSTED, header))
        assert answer.status == 400, header
        assert orjson.loads(answer.body)["error"]["param"] == header[0].decode()


REMOTE: Mapping[str, Any] = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1, 2, 3]],
    "remote_engine_id": "nobody",
    "remote_request_id": "r",
    "remote_host": "127.0.0.1",
    "remote_port": 9,
    "remote_num_tokens": len(PROMPT),
    "remote_blocks_expiry_time": 1.0,
    "tp_size": 1,
}
BAD_REMOTES: Mapping[str, Mapping[str, Any]] = {
    "a host that is not allowed": {"remote_host": "192.0.2.1"},
    "no host": {"remote_host": None},
    "no port": {"remote_port": 0},
    "a length that is a text": {"remote_num_tokens": "300"},
    "an expiry that is none": {"remote_blocks_expiry_time": {}},
    "a rank below one": {"tp_size": -1},
}


async def a_hand_over_counts_only_with_the_token(peer: Peer) -> None:
    for change in ({}, *BAD_REMOTES.values()):
        answer = await peer.post(COMPLETIONS, ask(kv_transfer_params={**REMOTE, **change}))
        assert answer.status == 200, (change, answer.body)
        assert orjson.loads(answer.body).get(KV_PARAMS) is None
    stranger = await peer.post(COMPLETIONS, prefill_leg(ask()))
    assert stranger.status == 200
    assert orjson.loads(stranger.body).get(KV_PARAMS) is None
    for name, change in BAD_REMOTES.items():
        answer = await peer.post(COMPLETIONS, ask(kv_transfer_params={**REMOTE, **change}), TRUSTED)
        assert answer.status == 400, (name, answer.body)
    assert (await peer.post(COMPLETIONS, ask(kv_transfer_params="{}"), TRUSTED)).status == 400
    two = {**prefill_leg(ask()), "max_tokens": 2}
    assert (await peer.post(COMPLETIONS, two, TRUSTED)).status == 400
    await peer.is_idle()


async def nobody_without_the_token_drains_it(peer: Peer) -> None:
    for headers in ((), ((b"x-paceline-token", b""),), ((b"x-paceline-token", b"guess"),)):
        assert (await peer.post("/paceline/drain", {}, headers)).status == 403
    assert (await peer.get("/readyz")).status == 200


async def its_metrics_bear_the_same_names_types_and_labels(peer: Peer) -> None:
    await peer.complete(**ask())
    theirs = engine_families(await peer.page())
    for name, (kind, labels) in SIMULATED.items():
        if name not in ONLY_SIMULATED:
            assert name in theirs, name
            assert theirs[name][0] == kind, name
            assert labels <= theirs[name][1], name


async def its_counters_say_what_was_done(peer: Peer) -> None:
    prompts = [[k, *PROMPT] for k in (11, 12, 13)]  # new ones: a prefix cache may know PROMPT
    async with peer.gains() as gained:
        await asyncio.gather(*(peer.complete(**ask(prompt=prompt)) for prompt in prompts))
    assert gained["vllm:generation_tokens_total"] == 24
    assert gained["vllm:request_success_total length"] == 3
    assert gained["paceline_engine_legs_total finished"] == gained["paceline_engine_legs_received_total"] == 3
    for name in ("time_to_first_token_seconds", "request_time_per_output_token_seconds", "e2e_request_latency_seconds"):
        assert gained[f"vllm:{name}_count"] == 3
    assert gained["vllm:inter_token_latency_seconds_count"] == 21
    assert gained["paceline_step_tokens_sum prefill"] == 3 * len(prompts[0])
    assert gained["paceline_step_tokens_sum decode"] == 21
    steps = gained["paceline_step_seconds_count measured"]
    assert gained["paceline_step_seconds_count predicted"] == steps >= 8


async def a_client_that_leaves_frees_what_it_held(peer: Peer) -> None:
    async with peer.gains() as gained:
        leaving = asyncio.create_task(peer.post(COMPLETIONS, ask(max_tokens=3500, stream=True)))

        async def runs() -> bool:
            samples = await peer.metrics()
            return samples["vllm:num_requests_running"] == 1 and samples["paceline_context_tokens"] >= len(PROMPT)

        await holds(runs)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
    assert gained["paceline_engine_legs_total aborted"] == 1
    assert 0 < gained["vllm:generation_tokens_total"] < 3500


ALONE: Mapping[str, Callable[[Peer], Awaitable[None]]] = {
    check.__name__: check
    for check in (
        an_answer_says_what_it_used,
        a_stream_is_the_answer_in_parts,
        a_chat_begins_with_its_role,
        a_response_says_what_it_used,
        a_streamed_response_is_typed_events_and_no_done,
        responses_are_not_kept,
        it_counts_tokens_as_usage_does_and_reads_them_back,
        a_model_that_generates_embeds_nothing,
        it_says_what_it_serves_and_how_it_is,
        what_it_cannot_serve_is_refused_with_openais_error,
        an_objective_counts_only_with_the_token,
        a_hand_over_counts_only_with_the_token,
        nobody_without_the_token_drains_it,
        its_metrics_bear_the_same_names_types_and_labels,
        its_counters_say_what_was_done,
        a_client_that_leaves_frees_what_it_held,
    )
}

# --- a prefill and a decode engine

LOST = ("unread", "late", "gone", "timeout", "unreachable", "mismatch")


async def prefilled(prefill: Peer, **over: Any) -> dict[str, Any]:
    """The kv_transfer_params of a prefill leg."""
    answer = await prefill.post(COMPLETIONS, prefill_leg(ask(**over)), TRUSTED)
    assert answer.status == 200, answer.body
    params = orjson.loads(answer.body)[KV_PARAMS]
    assert isinstance(params, dict)
    return params


async def decoded(decode: Peer, params: Mapping[str, Any], **over: Any) -> str:
    return text_of(await decode.complete(TRUSTED, **decode_leg(ask(**over), params)))


async def lost(peer: Peer) -> float:
    """KV that could not be had so far, for whatever reason."""
    samples = await peer.metrics()
    return sum(samples.get(f"paceline_kv_transfer_failures_total {cause}", 0.0) for cause in LOST)


async def the_decode_engine_computes_no_prompt(prefill: Peer, decode: Peer) -> None:
    for k in (21, 22, 23):
        prompt = [k, *PROMPT]
        async with prefill.gains() as theirs, decode.gains() as gained:
            params = await prefilled(prefill, prompt=prompt)
            assert params["remote_num_tokens"] == len(prompt)
            assert 0 < params["remote_blocks_expiry_time"] - time.time() <= LEASE_S
            assert (await prefill.metrics())["paceline_kv_parked_requests"] == 1
            answer = await decoded(decode, params, prompt=prompt)
        assert theirs["paceline_step_tokens_sum prefill"] == len(prompt)
        assert gained["paceline_step_tokens_sum prefill"] <= 1  # the last token, whose output is the first
        assert gained["vllm:generation_tokens_total"] == 8
        assert answer == text_of(await decode.complete(**ask(prompt=prompt)))


async def a_response_is_handed_over_too(prefill: Peer, decode: Peer) -> None:
    body = respond(input="Tell me more. " * 40)
    async with prefill.gains() as theirs, decode.gains() as gained:
        first = await prefill.post(RESPONSES, prefill_leg_of_response(body), TRUSTED)
        assert first.status == 200, first.body
        params = orjson.loads(first.body)[KV_PARAMS]
        second = await decode.post(RESPONSES, decode_leg({**body, "stream": True}, params), TRUSTED)
    assert events(second)[-1]["type"] == "response.completed"
    assert 0 < theirs["paceline_step_tokens_sum prefill"] <= params["remote_num_tokens"]  # a prefix may be known
    assert gained["paceline_step_tokens_sum prefill"] <= 1
    assert gained["vllm:generation_tokens_total"] == 8


async def kv_that_nobody_keeps_is_computed_again_and_counted(prefill: Peer, decode: Peer) -> None:
    prompt = [31, *PROMPT]
    expected = text_of(await decode.complete(**ask(prompt=prompt)))
    for change in ({"remote_port": 9, "remote_engine_id": "nobody"}, {"remote_blocks_expiry_time": time.time() - 1}):
        before = await lost(decode)
        params = await prefilled(prefill, prompt=prompt)
        if "remote_blocks_expiry_time" in change:  # and it has expired indeed
            await prefill.is_idle()
        assert await decoded(decode, {**params, **change}, prompt=prompt) == expected
        assert await lost(decode) == before + 1
        await decode.is_idle()
        await prefill.is_idle()


async def kv_that_nobody_reads_is_freed(prefill: Peer, decode: Peer) -> None:
    await prefilled(prefill, prompt=[41, *PROMPT])
    samples = await prefill.metrics()
    assert samples["paceline_kv_parked_requests"] == 1
    assert samples["vllm:kv_cache_usage_perc"] > 0
    assert left_requests((await prefill.page()).encode()) >= 1
    await prefill.is_idle()


async def a_client_that_leaves_a_decode_leg_leaves_nothing_behind(prefill: Peer, decode: Peer) -> None:
    params = await prefilled(prefill, prompt=[51, *PROMPT])
    body = decode_leg(ask(prompt=[51, *PROMPT], max_tokens=3500, stream=True), params)
    async with decode.gains() as gained:
        leaving = asyncio.create_task(decode.post(COMPLETIONS, body, TRUSTED))

        async def runs() -> bool:
            return (await decode.metrics())["paceline_context_tokens"] > 0

        await holds(runs)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
    assert gained["paceline_engine_legs_total aborted"] == 1
    await prefill.is_idle()


async def a_prefill_engine_that_drains_waits_until_its_kv_was_read(prefill: Peer, decode: Peer) -> None:
    prompt = [61, *PROMPT]
    expected = text_of(await decode.complete(**ask(prompt=prompt)))
    params = await prefilled(prefill, prompt=prompt)
    hook = asyncio.create_task(drain("127.0.0.1", prefill.pool.port, token=TOKEN, notice_s=0.0, timeout_s=60.0))

    async def refuses() -> bool:
        return (await prefill.post(COMPLETIONS, ask())).status == 503

    await holds(refuses)
    assert (await prefill.get("/readyz")).status == 503
    refused = await prefill.post(COMPLETIONS, ask())
    assert refused.header(b"retry-after") is not None
    assert orjson.loads(refused.body)["error"]["code"] == "no_endpoint"
    before = await lost(decode)
    assert await decoded(decode, params, prompt=prompt) == expected
    assert await lost(decode) == before, "its KV was there until it was read"
    assert await hook == "drained"
    await prefill.is_idle()


APART: Mapping[str, Callable[[Peer, Peer], Awaitable[None]]] = {
    check.__name__: check
    for check in (
        the_decode_engine_computes_no_prompt,
        a_response_is_handed_over_too,
        kv_that_nobody_keeps_is_computed_again_and_counted,
        kv_that_nobody_reads_is_freed,
        a_client_that_leaves_a_decode_leg_leaves_nothing_behind,
        a_prefill_engine_that_drains_waits_until_its_kv_was_read,
    )
}
