"""What an engine's stream may hold, and what of it reaches the client when."""

from __future__ import annotations

import orjson
import pytest
from paceline_router.stream import MAX_EVENT_BYTES, AnswerStream, Usage, error_message, has_content, read_usage

ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
WORD = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
END = b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'


def test_a_role_event_waits_for_the_first_content() -> None:
    stream = AnswerStream(hide_usage=True)
    assert stream.feed(ROLE) == b""
    assert stream.feed(b": still alive\n\n") == b""
    assert stream.feed(WORD) == ROLE + b": still alive\n\n" + WORD
    assert (stream.content, stream.new_tokens) == (True, 1)


def test_an_answer_without_content_goes_out_with_its_end() -> None:
    stream = AnswerStream(hide_usage=True)
    assert stream.feed(ROLE) == b""
    assert stream.feed(END) == ROLE + END
    assert (stream.content, stream.finished) == (False, True)


def test_tokens_of_one_read_are_counted_one_by_one() -> None:
    stream = AnswerStream(hide_usage=True)
    stream.feed(WORD)
    stream.feed(WORD * 3)
    assert stream.new_tokens == 3
    stream.feed(WORD + END)
    assert stream.new_tokens == 1


def test_usage_beside_content_stays_because_the_client_asked_for_it() -> None:
    both = b'data: {"choices":[{"text":"hi"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
    stream = AnswerStream(hide_usage=True)
    assert stream.feed(both) == both
    assert stream.usage == Usage(3, 1)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b'data: {"error":{"message":"out of memory"}}\n\n', "out of memory"),
        (b"data: {broken\n\n", "the engine sent an event that is not JSON"),
        (b"x" * (MAX_EVENT_BYTES + 1), f"the engine sent an event above {MAX_EVENT_BYTES} bytes"),
    ],
    ids=["an error event", "broken JSON", "an endless event"],
)
@pytest.mark.parametrize("amid", [True, False], ids=["amid a stream", "at its start"])
def test_an_error_ends_the_stream_and_is_not_passed_on(sent: bytes, error: str, amid: bool) -> None:
    stream = AnswerStream(hide_usage=True)
    if amid:
        stream.feed(WORD)
        if b"broken" in sent:  # content that is passed on unread: the client's own parser will see it
            return
    assert stream.feed(sent) == b""
    assert stream.error == error


CONTENT = [
    ({"text": "x"}, True),
    ({"text": ""}, False),
    ({"delta": {"content": "x"}}, True),
    ({"delta": {"role": "a", "content": ""}}, False),
    ({"delta": {"tool_calls": [{}]}}, True),
    ({"delta": {"reasoning_content": "x"}}, True),
    ({"delta": None}, False),
    ({}, False),
]


@pytest.mark.parametrize(("choice", "content"), CONTENT, ids=[orjson.dumps(c[0]).decode() for c in CONTENT])
def test_has_content(choice: dict[str, object], content: bool) -> None:
    assert has_content(choice) is content


USAGES = [
    ({"usage": {"prompt_tokens": 2, "completion_tokens": 3}}, Usage(2, 3)),
    ({"usage": {"prompt_tokens": 2}}, Usage(2, 0)),
    ({"usage": {"input_tokens": 2, "output_tokens": 3}}, Usage(2, 3)),
    ({"usage": {"input_tokens": 2}}, None),
    ({"usage": None}, None),
    ({"usage": {"prompt_tokens": -1, "completion_tokens": 3}}, None),
    ({"usage": {"prompt_tokens": "2"}}, None),
    ([], None),
]


@pytest.mark.parametrize(("answer", "usage"), USAGES, ids=[orjson.dumps(c[0]).decode() for c in USAGES])
def test_read_usage(answer: object, usage: Usage | None) -> None:
    assert read_usage(answer) == usage


def test_error_message_of_anything() -> None:
    assert error_message({"error": {"message": "m"}}) == "m"
    assert error_message({"error": "text"}) == "text"
    assert error_message(3) == error_message({"error": {}}) == "the engine reported an error"
