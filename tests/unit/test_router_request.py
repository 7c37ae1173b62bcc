"""What the router makes of a body: lengths, limits, and each way to refuse it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_router.prompt_spans import prompt_spans
from paceline_router.request import Kind, Rejected, Request, Served, parse, passing_fault

SERVED = Served("m", 1000)
CHAT, COMPLETION, RESPONSES, EMBEDDINGS = Kind.CHAT, Kind.COMPLETION, Kind.RESPONSES, Kind.EMBEDDINGS


def say(*contents: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} for content in contents]


ACCEPTED: list[tuple[str, Kind, dict[str, Any], Request]] = [
    ("token ids are exact", COMPLETION, {"prompt": [1] * 600, "max_tokens": 400}, Request(COMPLETION, 600, True, 400)),
    (
        "ids may come as a list of one list",
        COMPLETION,
        {"prompt": [[7, 8]], "max_tokens": 1},
        Request(COMPLETION, 2, True, 1),
    ),
    (
        "text is 4 characters a token, rounded up",
        COMPLETION,
        {"prompt": "x" * 401, "max_tokens": 9},
        Request(COMPLETION, 101, False, 9),
    ),
    (
        "a list of one text is that text",
        COMPLETION,
        {"prompt": ["xxxx"], "max_tokens": 9},
        Request(COMPLETION, 1, False, 9),
    ),
    ("completions end after 16 tokens by default", COMPLETION, {"prompt": [1]}, Request(COMPLETION, 1, True, 16)),
    (
        "null asks for the rest of the context",
        COMPLETION,
        {"prompt": [1] * 10, "max_tokens": None},
        Request(COMPLETION, 10, True, 990),
    ),
    ("chat adds its template and goes on to the end", CHAT, {"messages": say("x" * 40)}, Request(CHAT, 17, False, 999)),
    (
        "parts and null contents are counted",
        CHAT,
        {"messages": say([{"type": "text", "text": "x" * 8}], None), "max_tokens": 5},
        Request(CHAT, 13, False, 5),
    ),
    (
        "max_completion_tokens goes before max_tokens",
        CHAT,
        {"messages": say("x"), "max_completion_tokens": 3, "max_tokens": 9},
        Request(CHAT, 8, False, 3),
    ),
    (
        "the model may be left out or named",
        COMPLETION,
        {"prompt": [1], "model": "m", "max_tokens": 1},
        Request(COMPLETION, 1, True, 1),
    ),
    (
        "n may be 1",
        COMPLETION,
        {"prompt": [1], "n": 1, "best_of": None, "max_tokens": 1},
        Request(COMPLETION, 1, True, 1),
    ),
    (
        "a stream with usage",
        COMPLETION,
        {"prompt": [1], "max_tokens": 1, "stream": True, "stream_options": {"include_usage": True}},
        Request(COMPLETION, 1, True, 1, True, True),
    ),
    (
        "text that may fit after all is the engine's to judge",
        COMPLETION,
        {"prompt": "x" * 8000, "max_tokens": 100},
        Request(COMPLETION, 999, False, 100),
    ),
    (
        "a response goes on to the end, and tells its usage unasked",
        RESPONSES,
        {"input": "x" * 40, "stream": True},
        Request(RESPONSES, 17, False, 999, True),
    ),
    (
        "instructions are a turn of their own",
        RESPONSES,
        {"input": "x" * 40, "instructions": "x" * 8, "max_output_tokens": 7},
        Request(RESPONSES, 23, False, 7),
    ),
    (
        "items that are no messages count by their texts",
        RESPONSES,
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "x" * 8}]},
                {"type": "function_call", "name": "f", "arguments": "x" * 4},
                {"type": "function_call_output", "output": "x" * 4},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x" * 4}]},
            ],
            "max_output_tokens": 1,
            "tools": [{"type": "function"}, {"type": "custom"}],
        },
        Request(RESPONSES, 24, False, 1),
    ),
    (
        "tools that an engine may run keep a response on one replica",
        RESPONSES,
        {"input": "x", "max_output_tokens": 1, "tools": [{"type": "web_search_preview"}]},
        Request(RESPONSES, 8, False, 1, whole=True),
    ),
    (
        "an input that may be cut is never too long",
        RESPONSES,
        {"input": "x" * 200_000, "truncation": "auto", "max_output_tokens": 9},
        Request(RESPONSES, 999, False, 9),
    ),
    (
        "fields that say that nothing is kept are welcome",
        RESPONSES,
        {"input": "x", "background": False, "previous_response_id": None, "max_output_tokens": 1},
        Request(RESPONSES, 8, False, 1),
    ),
    (
        "a text to embed may fill the context",
        EMBEDDINGS,
        {"input": [7] * 1000},
        Request(EMBEDDINGS, 1000, True, 1, whole=True),
    ),
    (
        "texts to embed are counted together, each computed by itself",
        EMBEDDINGS,
        {"input": ["x" * 400, "x" * 4000]},
        Request(EMBEDDINGS, 1100, False, 1, whole=True),
    ),
    (
        "lists of ids to embed are exact",
        EMBEDDINGS,
        {"input": [[1, 2], [3]]},
        Request(EMBEDDINGS, 3, True, 1, whole=True),
    ),
    (
        "messages may be embedded, as vLLM does",
        EMBEDDINGS,
        {"messages": say("x" * 40)},
        Request(EMBEDDINGS, 17, False, 1, whole=True),
    ),
]


@pytest.mark.parametrize(("kind", "body", "request_"), [c[1:] for c in ACCEPTED], ids=[c[0] for c in ACCEPTED])
def test_accepted(kind: Kind, body: dict[str, Any], request_: Request) -> None:
    assert parse(kind, body, SERVED) == request_


REFUSED: list[tuple[str, Kind, object, str | None, int]] = [
    ("no object", COMPLETION, [1], None, 400),
    ("another model", COMPLETION, {"prompt": [1], "model": "x"}, "model", 404),
    ("a model that is no name", COMPLETION, {"prompt": [1], "model": 3}, "model", 404),
    ("no prompt", COMPLETION, {}, "prompt", 400),
    ("an empty text", COMPLETION, {"prompt": ""}, "prompt", 400),
    ("an empty list", COMPLETION, {"prompt": []}, "prompt", 400),
    ("an empty list in a list", COMPLETION, {"prompt": [[]]}, "prompt", 400),
    ("several texts", COMPLETION, {"prompt": ["a", "b"]}, "prompt", 400),
    ("several lists", COMPLETION, {"prompt": [[1], [2]]}, "prompt", 400),
    ("a truth value among the ids", COMPLETION, {"prompt": [1, True]}, "prompt", 400),
    ("a fraction among the ids", COMPLETION, {"prompt": [1, 1.5]}, "prompt", 400),
    ("a negative id", COMPLETION, {"prompt": [5, -1]}, "prompt", 400),
    ("a prompt that is an object", COMPLETION, {"prompt": {"a": 1}}, "prompt", 400),
    ("ids that fill the context", COMPLETION, {"prompt": [1] * 1000, "max_tokens": 1}, "prompt", 400),
    ("ids and an output beyond the context", COMPLETION, {"prompt": [1] * 600, "max_tokens": 401}, "prompt", 400),
    ("text that no tokeniser makes fit", COMPLETION, {"prompt": "x" * 128_001}, "prompt", 400),
    ("an output as long as the context", CHAT, {"messages": say("x"), "max_tokens": 1000}, "messages", 400),
    ("an absurd output", CHAT, {"messages": say("x"), "max_tokens": 10**30}, "messages", 400),
    ("a negative output", COMPLETION, {"prompt": [1], "max_tokens": -1}, "max_tokens", 400),
    ("no output", COMPLETION, {"prompt": [1], "max_tokens": 0}, "max_tokens", 400),
    ("an output that is a text", COMPLETION, {"prompt": [1], "max_tokens": "5"}, "max_tokens", 400),
    (
        "an output that is a fraction",
        CHAT,
        {"messages": say("x"), "max_completion_tokens": 2.5},
        "max_completion_tokens",
        400,
    ),
    ("an output that is a truth value", COMPLETION, {"prompt": [1], "max_tokens": True}, "max_tokens", 400),
    ("a stream that is a number", COMPLETION, {"prompt": [1], "stream": 1}, "stream", 400),
    ("stream options that are no object", COMPLETION, {"prompt": [1], "stream_options": []}, "stream_options", 400),
    ("two answers", COMPLETION, {"prompt": [1], "n": 2}, "n", 400),
    ("the best of two", COMPLETION, {"prompt": [1], "best_of": 2}, "best_of", 400),
    ("no messages", CHAT, {"prompt": [1]}, "messages", 400),
    ("messages that are empty", CHAT, {"messages": []}, "messages", 400),
    ("messages that are a text", CHAT, {"messages": "hi"}, "messages", 400),
    ("a message without a role", CHAT, {"messages": [{"content": "x"}]}, "messages[0]", 400),
    ("a content that is a number", CHAT, {"messages": say("x", 3)}, "messages[1].content", 400),
    ("a response to nothing", RESPONSES, {}, "input", 400),
    ("a response to no item", RESPONSES, {"input": []}, "input", 400),
    ("a response to a number", RESPONSES, {"input": 3}, "input", 400),
    ("an item that is a text", RESPONSES, {"input": ["hi"]}, "input[0]", 400),
    ("an item whose content is a number", RESPONSES, {"input": [{"content": 3}]}, "input[0].content", 400),
    ("instructions that are a list", RESPONSES, {"input": "x", "instructions": ["x"]}, "instructions", 400),
    ("a response of no length", RESPONSES, {"input": "x", "max_output_tokens": 0}, "max_output_tokens", 400),
    ("a response beyond the context", RESPONSES, {"input": "x", "max_output_tokens": 1000}, "input", 400),
    ("an input that no tokeniser makes fit", RESPONSES, {"input": "x" * 128_001}, "input", 400),
    ("a response in the background", RESPONSES, {"input": "x", "background": True}, "background", 400),
    ("a background that is a text", RESPONSES, {"input": "x", "background": "no"}, "background", 400),
    (
        "a response after another",
        RESPONSES,
        {"input": "x", "previous_response_id": "resp_1"},
        "previous_response_id",
        400,
    ),
    ("a response in a conversation", RESPONSES, {"input": "x", "conversation": {"id": "c"}}, "conversation", 400),
    ("a response of another model", RESPONSES, {"input": "x", "model": "x"}, "model", 404),
    ("a response whose stream is a number", RESPONSES, {"input": "x", "stream": 1}, "stream", 400),
    ("nothing to embed", EMBEDDINGS, {}, "input", 400),
    ("an empty text to embed", EMBEDDINGS, {"input": ""}, "input", 400),
    ("an empty list to embed", EMBEDDINGS, {"input": []}, "input", 400),
    ("an object to embed", EMBEDDINGS, {"input": {"a": 1}}, "input", 400),
    ("ids and texts to embed", EMBEDDINGS, {"input": [1, "a"]}, "input", 400),
    ("texts and ids to embed", EMBEDDINGS, {"input": ["a", 1]}, "input", 400),
    ("a negative id to embed", EMBEDDINGS, {"input": [[1], [-1]]}, "input", 400),
    ("a list of no ids to embed", EMBEDDINGS, {"input": [[]]}, "input", 400),
    ("a text to embed beyond the context", EMBEDDINGS, {"input": [[7] * 1001, [1]]}, "input", 400),
    ("messages to embed that are none", EMBEDDINGS, {"messages": "hi"}, "messages", 400),
]


@pytest.mark.parametrize(("kind", "body", "param", "status"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused(kind: Kind, body: object, param: str | None, status: int) -> None:
    refused = parse(kind, body, SERVED)
    assert isinstance(refused, Rejected)
    assert (refused.param, refused.status) == (param, status)
    assert "\n" not in refused.message
    assert len(refused.message) < 300


def test_an_unknown_model_is_openais_own_error() -> None:
    refused = parse(COMPLETION, {"prompt": [1], "model": "x"}, SERVED)
    assert isinstance(refused, Rejected)
    assert refused.code == "model_not_found"
    assert "'m'" in refused.message


LEAVES = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=5)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    *("model", "prompt", "messages", "input", "instructions", "tools", "truncation", "background", "conversation"),
    *("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "stream", "stream_options"),
)
ITEMS = st.lists(st.dictionaries(st.sampled_from(("role", "type", "content", "arguments", "output")), JSON))


@given(st.sampled_from(Kind), st.dictionaries(st.sampled_from(FIELDS), JSON | ITEMS))
def test_any_field_may_hold_anything(kind: Kind, body: dict[str, Any]) -> None:
    found = parse(kind, body, SERVED)
    if isinstance(found, Request):
        assert found.prompt_tokens >= 1
        assert found.max_tokens >= 1
        assert not found.exact or kind is EMBEDDINGS or found.prompt_tokens + found.max_tokens <= 1000
        assert prompt_spans(kind, {**body, "tools": None}) == prompt_spans(kind, {**body, "tools": None})


@pytest.mark.parametrize(
    ("body", "status"),
    [({"prompt": 3}, None), ({"model": "m"}, None), ({"model": "x"}, 404), ([1], 400), (None, 400)],
    ids=["what it says is the engine's to judge", "our model", "another model", "no object", "nothing"],
)
def test_of_what_is_not_for_tokens_only_the_model_is_checked(body: object, status: int | None) -> None:
    fault = passing_fault(body, SERVED)
    assert (fault.status if fault else None) == status
