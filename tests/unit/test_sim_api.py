"""Whatever JSON a client sends to a simulated engine becomes a request or a refusal, never an exception."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.pd import KV_PARAMS, RemoteKV, decode_leg, prefill_leg
from paceline_engine.request import Leg
from paceline_engine.sim.api import Ask, Refused, Served, read_ask
from paceline_engine.sim.responses import answer_to, read_response
from paceline_engine.sim.tokens import detokenize, tokenize

SERVED = Served("m", 1000, 16, frozenset({"127.0.0.1"}))
REMOTE = RemoteKV("e", "r", "127.0.0.1", 8000, 3, 0.0)
LEAVES = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    *("model", "prompt", "messages", "max_tokens", "max_completion_tokens", "min_tokens", "ignore_eos", "n", "best_of"),
    *("stop", "stream", "stream_options", KV_PARAMS),
)


def make_body(**over: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": [1, 2, 3], "messages": [{"role": "user", "content": "hi"}], **over}


@given(st.booleans(), JSON, st.booleans())
def test_any_json_is_answered(chat: bool, body: object, trusted: bool) -> None:
    assert isinstance(read_ask(chat, body, SERVED, trusted=trusted), Ask | Refused)


@given(st.booleans(), st.dictionaries(st.sampled_from(FIELDS), JSON), st.booleans())
def test_any_field_may_hold_anything(chat: bool, fields: dict[str, object], trusted: bool) -> None:
    ask = read_ask(chat, make_body(**fields), SERVED, trusted=trusted)
    if isinstance(ask, Ask):
        assert 1 <= ask.answer_tokens <= ask.max_tokens
        assert ask.prompt.tokens + ask.max_tokens <= SERVED.max_model_len


@given(st.sampled_from(sorted(REMOTE.params())), JSON)
def test_any_field_of_the_transfer_may_hold_anything(field: str, value: object) -> None:
    body = make_body(**{KV_PARAMS: {**REMOTE.params(), field: value}})
    ask = read_ask(False, body, SERVED, trusted=True)
    if isinstance(ask, Ask) and ask.remote is not None:
        assert ask.remote.remote_host in SERVED.kv_hosts


@pytest.mark.parametrize(
    ("body", "trusted", "leg"),
    [
        (make_body(), True, Leg.WHOLE),
        (prefill_leg(make_body(max_tokens=50)), True, Leg.PREFILL),
        (prefill_leg(make_body(max_tokens=50)), False, Leg.WHOLE),
        (decode_leg(make_body(), REMOTE.params()), True, Leg.DECODE),
        (decode_leg(make_body(), REMOTE.params()), False, Leg.WHOLE),
        (make_body(kv_transfer_params={"do_remote_decode": False}), True, Leg.WHOLE),
    ],
    ids=["a whole one", "leg 1", "leg 1 without the token", "leg 2", "leg 2 without the token", "nothing asked for"],
)
def test_the_leg_follows_from_params_that_are_trusted(body: dict[str, Any], trusted: bool, leg: Leg) -> None:
    ask = read_ask(False, body, SERVED, trusted=trusted)
    assert isinstance(ask, Ask)
    assert ask.leg is leg


@pytest.mark.parametrize(
    ("chat", "asked", "max_tokens"),
    [(False, {}, 16), (True, {}, 1000 - 9), (True, {"max_completion_tokens": 7, "max_tokens": 9}, 7)],
    ids=["a completion's default is 16", "a chat may fill its context", "the newer name wins"],
)
def test_the_longest_answer_follows_vllms_defaults(chat: bool, asked: dict[str, int], max_tokens: int) -> None:
    ask = read_ask(chat, make_body(ignore_eos=True, **asked), SERVED, trusted=False)
    assert isinstance(ask, Ask)
    assert ask.max_tokens == ask.answer_tokens == max_tokens


RESPONSE_FIELDS = (
    *("model", "input", "instructions", "max_output_tokens", "ignore_eos", "stop", "stream", "stream_options", "tools"),
    *("background", "previous_response_id", "metadata", KV_PARAMS),
)


def make_response(**over: Any) -> dict[str, Any]:
    return {"model": "m", "input": "Say something", **over}


@given(JSON | st.dictionaries(st.sampled_from(RESPONSE_FIELDS), JSON).map(lambda fields: make_response(**fields)))
def test_any_response_may_be_asked_for(body: object) -> None:
    ask = read_response(body, SERVED, trusted=True)
    if isinstance(ask, Ask):
        assert ask.prompt.tokens + ask.max_tokens <= SERVED.max_model_len
        assert ask.echoed is not None
        assert ask.echoed["max_output_tokens"] == ask.max_tokens
        answer = answer_to(ask, "r", 0, "m")
        assert orjson.loads(answer.whole(1, "stop", None))["object"] == "response"
    else:
        assert ask.param not in ("messages", "max_completion_tokens")


@given(JSON | st.fixed_dictionaries({"prompt": JSON | st.text()}) | st.fixed_dictionaries({"messages": JSON}))
def test_any_json_may_be_tokenized(body: object) -> None:
    assert isinstance(tokenize(body, SERVED), dict | Refused)


@given(JSON | st.fixed_dictionaries({"tokens": JSON | st.lists(st.integers(0, 1 << 54))}))
def test_any_json_may_be_detokenized(body: object) -> None:
    assert isinstance(detokenize(body, SERVED), dict | Refused)


@given(st.text(min_size=1))
def test_the_ids_of_a_text_make_its_prompt(prompt: str) -> None:
    answer = tokenize({"prompt": prompt, "return_token_strs": True}, SERVED)
    assert isinstance(answer, dict)
    asked = [read_ask(False, make_body(prompt=p), SERVED, trusted=False) for p in (prompt, answer["tokens"])]
    first, second = asked
    assert isinstance(first, Ask)
    assert isinstance(second, Ask)
    assert first.prompt == second.prompt
    assert answer["count"] == first.prompt.tokens == len(answer["token_strs"])


@given(
    st.text(st.characters(max_codepoint=0x7F)) | st.text(st.characters(max_codepoint=0x7F)).map(lambda t: t + "\u00e9")
)
def test_short_pieces_are_read_back(prompt: str) -> None:
    answer = tokenize({"prompt": prompt}, SERVED)
    assert isinstance(answer, dict)
    assert detokenize({"tokens": answer["tokens"]}, SERVED) == {"prompt": prompt}


def test_a_chat_is_tokenized_under_its_template() -> None:
    messages = [{"role": "user", "content": "hi"}]
    opened, closed = (tokenize({"messages": messages, "add_generation_prompt": o}, SERVED) for o in (True, False))
    assert isinstance(opened, dict)
    assert isinstance(closed, dict)
    ask = read_ask(True, {"messages": messages}, SERVED, trusted=False)
    assert isinstance(ask, Ask)
    assert opened["count"] == ask.prompt.tokens == closed["count"] + 3
    assert detokenize({"tokens": closed["tokens"]}, SERVED) == {"prompt": "<|start|>user\nhi<|end|>\n"}


def test_an_id_of_a_longer_piece_is_read_as_unknown() -> None:
    answer = tokenize({"prompt": "a 日本語の"}, SERVED)
    assert isinstance(answer, dict)
    assert detokenize({"tokens": answer["tokens"]}, SERVED) == {"prompt": "a\ufffd"}
