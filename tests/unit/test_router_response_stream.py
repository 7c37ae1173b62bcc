"""What the stream of a response may hold: which of its events carry tokens, which end it, and what goes out when."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_router.response_stream import ResponseStream
from paceline_router.stream import Usage


def event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({**fields, "type": kind}))


CREATED = event("response.created", response={"status": "in_progress", "usage": None, "error": None})
ADDED = event("response.output_item.added", item={"type": "message"})
WORD = event("response.output_text.delta", delta="hi")
DONE = event("response.output_text.done", text="hi")
USAGE = {"input_tokens": 3, "output_tokens": 2}
COMPLETED = event("response.completed", response={"usage": USAGE})


def test_what_announces_a_response_waits_for_its_first_token() -> None:
    stream = ResponseStream()
    assert stream.feed(CREATED + ADDED) == b""
    assert stream.feed(WORD) == CREATED + ADDED + WORD
    assert (stream.content, stream.new_tokens, stream.done) == (True, 1, False)
    assert stream.feed(WORD + DONE + WORD) == WORD + DONE + WORD
    assert stream.new_tokens == 2
    assert stream.feed(DONE + COMPLETED) == DONE + COMPLETED
    assert (stream.new_tokens, stream.done, stream.usage) == (0, True, Usage(3, 2))


@pytest.mark.parametrize(
    ("sent", "tokens"),
    [
        (event("response.reasoning_text.delta", delta="hm"), 1),
        (event("response.function_call_arguments.delta", delta="{"), 1),
        (event("response.output_item.added", item={"type": "function_call", "name": "f"}), 0),
        (event("response.output_item.added", item={"type": "custom_tool_call"}), 0),
    ],
    ids=["a thought", "an argument", "the name of a function", "the name of a tool"],
)
def test_other_beginnings_are_content_too(sent: bytes, tokens: int) -> None:
    stream = ResponseStream()
    assert stream.feed(CREATED + sent) == CREATED + sent
    assert (stream.content, stream.new_tokens) == (True, tokens)


@pytest.mark.parametrize("sent", [event("response.output_text.delta", delta=""), ADDED, CREATED, b": alive\n\n"])
def test_what_is_no_content_waits(sent: bytes) -> None:
    stream = ResponseStream()
    assert stream.feed(sent) == b""
    assert not stream.content


def test_an_answer_without_content_goes_out_with_its_end() -> None:
    stream = ResponseStream()
    incomplete = event("response.incomplete", response={"usage": USAGE})
    assert stream.feed(CREATED + incomplete) == CREATED + incomplete
    assert (stream.content, stream.finished, stream.done) == (False, True, True)


FAILURES = [
    ("as the engine's border says", b'data: {"error":{"message":"gone","code":"upstream_failed"}}\n\n', "gone", None),
    ("as vLLM says", b'data: {"error":{"message":"too long","code":400}}\n\n', "too long", 400),
    ("an event of OpenAI's", event("error", message="out of memory", code=None), "out of memory", None),
    ("a response that failed", event("response.failed", response={"error": {"message": "oom"}}), "oom", None),
    ("one that says nothing", event("response.failed"), "the engine reported an error", None),
    ("broken JSON", b"event: response.failed\ndata: {broken\n\n", "the engine sent an event that is not JSON", None),
]


@pytest.mark.parametrize("amid", [True, False], ids=["amid a stream", "at its start"])
@pytest.mark.parametrize(("sent", "error", "status"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES])
def test_a_failure_ends_the_stream_and_is_not_passed_on(
    sent: bytes, error: str, status: int | None, amid: bool
) -> None:
    stream = ResponseStream()
    if amid:
        stream.feed(CREATED + WORD)
    assert stream.feed(sent) == b""
    assert stream.error == error
    assert (stream.refusal[0] if stream.refusal else None) == status


TEXTS = st.lists(st.text(max_size=12) | st.just('event: response.completed\n"error":.delta\n'), max_size=8)


@given(texts=TEXTS, data=st.data())
def test_any_cut_gives_the_same_events(texts: list[str], data: st.DataObject) -> None:
    words = [event("response.output_text.delta", delta=text) for text in texts]
    sent = b"".join([CREATED, ADDED, *words, DONE, COMPLETED])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    stream = ResponseStream()
    passed, tokens = b"", 0
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        part = stream.feed(sent[start:end])
        assert not part or stream.content or stream.finished
        passed += part
        tokens += stream.new_tokens
    assert passed == sent
    assert (stream.done, stream.error, stream.usage) == (True, None, Usage(3, 2))
    assert sum(map(bool, texts)) <= tokens <= len(texts)
