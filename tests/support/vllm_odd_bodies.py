"""Bodies and headers that nobody should send an engine: valid ones, mutated in their JSON and in their bytes.

Everything follows from the generator that is given. What is left out is what only takes long: many answers, long ones.
Pure.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from engine_peer import CHAT, COMPLETIONS, TRUSTED
from paceline_engine.http1 import Header

FOREIGN: dict[str, Any] = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1, 2]],
    "remote_engine_id": "e-1",
    "remote_request_id": "cmpl-1",
    "remote_host": "198.51.100.7",  # nobody's (RFC 5737), and no host that KV may come from
    "remote_port": 5600,
    "remote_num_tokens": 8,
    "tp_size": 1,
    "remote_blocks_expiry_time": 4e9,
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
VALID: tuple[tuple[str, dict[str, Any]], ...] = (
    (COMPLETIONS, {"prompt": "def f(x):", "max_tokens": 2, "temperature": 0}),
    (
        COMPLETIONS,
        {
            "prompt": [11, 12, 13],
            "max_tokens": 1,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 5,
            "min_p": 0.1,
            "seed": 7,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.5,
            "repetition_penalty": 1.1,
        },
    ),
    (
        COMPLETIONS,
        {
            "prompt": [[11, 12], [13, 14, 15]],
            "max_tokens": 1,
            "n": 2,
            "logprobs": 3,
            "echo": True,
            "prompt_logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        },
    ),
    (
        COMPLETIONS,
        {
            "prompt": ["a", "b"],
            "max_tokens": 2,
            "min_tokens": 1,
            "ignore_eos": True,
            "stop": ["x", "yz"],
            "stop_token_ids": [5],
            "bad_words": ["z"],
            "include_stop_str_in_output": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "stream_interval": 1,
        },
    ),
    (
        COMPLETIONS,
        {
            "prompt": "abc " * 8,
            "max_tokens": 2,
            "logit_bias": {"5": 3.0},
            "allowed_token_ids": [5, 6, 7],
            "truncate_prompt_tokens": 4,
            "truncation_side": "left",
            "priority": 0,
            "cache_salt": "s",
            "user": "u",
            "skip_special_tokens": False,
            "add_special_tokens": False,
            "logprobs": 1,
            "logprob_token_ids": [5],
        },
    ),
    (COMPLETIONS, {"prompt": "1", "max_tokens": 2, "structured_outputs": {"regex": "[0-9]{1,3}"}}),
    (COMPLETIONS, {"prompt": "1", "max_tokens": 2, "structured_outputs": {"choice": ["yes", "no"]}}),
    (COMPLETIONS, {"prompt": "1", "max_tokens": 2, "structured_outputs": {"json": SCHEMA}, "request_id": "r"}),
    (COMPLETIONS, {"prompt": [1, 2, 3], "max_tokens": 1, "kv_transfer_params": FOREIGN}),
    (
        COMPLETIONS,
        {
            "prompt": [1, 2, 3],
            "max_tokens": 1,
            "kv_transfer_params": {"do_remote_decode": True},
            "vllm_xargs": {"slo_tpot_ms": 20, "slo_class": "c", "mine": [1, "a", 0.5]},
        },
    ),
    (
        COMPLETIONS,
        {
            "prompt": "b",
            "max_tokens": 2,
            "use_beam_search": True,
            "n": 2,
            "length_penalty": 1.0,
            "repetition_detection": {"max_pattern_size": 4, "min_pattern_size": 2, "min_count": 2},
        },
    ),
    (CHAT, {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}),
    (
        CHAT,
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "a"}], "name": "n"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ],
            "max_completion_tokens": 2,
            "logprobs": True,
            "top_logprobs": 2,
            "n": 2,
            "stream": True,
            "add_generation_prompt": True,
            "chat_template_kwargs": {"x": 1},
        },
    ),
    (
        CHAT,
        {
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 2,
            "reasoning_effort": "low",
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
            "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
            "tool_choice": "none",
            "parallel_tool_calls": False,
            "thinking_token_budget": 1,
        },
    ),
)
NESTED: list[Any] = [[[[[[[[]]]]]]]]
ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 21, 1 << 31, 1 << 32, 1 << 63, 1 << 64, -(1 << 63), 10**30, 0.5, -0.0, 1e308),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        "",
        "x",
        "\x00",
        "\ud800",
        "a" * 3000,
        "-1",
        "[",
        "{{",
        "(?=a)",
        "http://x",
    ),
    *([], {}, [[]], [None], {"a": 1}, [1, "a", None], [1 << 40], [-1], {"type": "x"}, {"": {}}, NESTED),
)
TOKENS = (
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"{",
    b"]",
    b'"',
    b",",
    b":",
    b"1e999",
    b"NaN",
    b"-",
    b"\\ud800",
    b"\\",
    b"[" * 2000,
)
LIMITS = (
    "20",
    "0",
    "-1",
    "1e309",
    "nan",
    "inf",
    "",
    "abc",
    "9" * 400,
    "0x10",
    "1,2",
    "\xff",
    "1e-320",
    " 5 ",
    "-0",
    "1_0",
)
OBJECTIVES = (
    b"x-slo-ttft-remaining-ms",
    b"x-slo-tpot-ms",
    b"x-slo-max-stall-ms",
    b"x-slo-class",
    b"x-llm-d-slo-tpot-ms",
)
OTHERS = (b"x-prefiller-host-port", b"x-request-id", b"x-data-parallel-rank", b"x-session-id")
KINDS = (b"application/json",) * 30 + (b"text/plain", b"", b"application/x-www-form-urlencoded", b"multipart/form-data")


@dataclass(frozen=True, slots=True)
class Odd:
    """A request."""

    path: str
    headers: tuple[Header, ...]
    body: bytes


def odd_requests(count: int, seed: int) -> Iterator[Odd]:
    rng = Random(seed)
    for _ in range(count):
        path, valid = rng.choice(VALID)
        body = _mutated({"model": "m", **copy.deepcopy(valid)}, rng)
        yield Odd(path, _headers(rng), body)


def _mutated(body: dict[str, Any], rng: Random) -> bytes:
    for _ in range(rng.choice((0, 0, 1, 1, 1, 3))):
        _mutate(body, rng)
    data = json.dumps(body).encode()
    for _ in range(rng.choice((0, 0, 0, 0, 1, 3))):
        data = _cut(data, rng)
    return data


def _mutate(body: dict[str, Any], rng: Random) -> None:
    """One change somewhere in it."""
    at: Any = body
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(at[key], dict | list) or rng.random() < 0.4:
            break
        at = at[key]
    match rng.randrange(6):
        case 0:
            del at[key]
        case 1 if isinstance(at, dict):
            _, other = rng.choice(VALID)
            name = rng.choice(list(other))
            at[name] = rng.choice((other[name], rng.choice(ODD)))
        case 2:
            at[key] = [at[key], copy.deepcopy(at[key])]
        case _:
            at[key] = copy.deepcopy(rng.choice(ODD))


def _cut(data: bytes, rng: Random) -> bytes:
    """Some bytes lost, twisted, doubled or put in."""
    i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    match rng.randrange(5):
        case 0:
            return data[:i]
        case 1:
            return data[:i] + rng.choice(TOKENS) + data[i:]
        case 2:
            return data[:i] + bytes(b ^ 1 << rng.randrange(8) for b in data[i : i + 3]) + data[i + 3 :]
        case 3:
            return data[:j] + data[i:j] + data[j:]
        case _:
            return data[:i] + data[min(j, i + 8) :]


def _headers(rng: Random) -> tuple[Header, ...]:
    given: list[Header] = [(b"content-type", rng.choice(KINDS))]
    if rng.random() < 0.5:
        given += TRUSTED
    elif rng.random() < 0.1:
        given.append((b"x-paceline-token", rng.choice((b"", b"wrong", b"\xff" * 40))))
    for _ in range(rng.choice((0, 0, 1, 2))):
        given.append((rng.choice(OBJECTIVES), rng.choice(LIMITS[:1] * 12 + LIMITS).encode("latin-1")))
    if rng.random() < 0.1:
        given.append((rng.choice(OTHERS), rng.choice(LIMITS).encode("latin-1")))
    return tuple(given)
