"""A streamed answer is read the same however the network cuts it."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st
from paceline_router.stream import AnswerStream, Usage

NEWLINES = st.sampled_from([b"\n\n", b"\r\n\r\n"])
TEXTS = st.lists(st.text(max_size=12) | st.just('"usage": {"finish_reason":"[DONE]'), max_size=8)


def event(payload: object) -> bytes:
    return b"data: " + orjson.dumps(payload)


@given(texts=TEXTS, role=st.booleans(), hide=st.booleans(), newline=NEWLINES, data=st.data())
def test_any_cut_gives_the_same_events(
    texts: list[str], role: bool, hide: bool, newline: bytes, data: st.DataObject
) -> None:
    first = [event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})] if role else []
    words = [event({"choices": [{"delta": {"content": text}, "finish_reason": None}]}) for text in texts]
    stop = event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    usage = event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(texts)}})
    sent = newline.join([*first, *words, stop, usage, b"data: [DONE]", b""])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    stream = AnswerStream(hide_usage=hide)
    passed, tokens = b"", 0
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        part = stream.feed(sent[start:end])
        assert not part or stream.content or stream.finished  # nothing before the first content
        passed += part
        tokens += stream.new_tokens
    expected = [*first, *words, stop, *([] if hide else [usage]), b"data: [DONE]", b""]
    assert passed == b"\n\n".join(expected)
    assert (stream.done, stream.finished, stream.error) == (True, True, None)
    assert stream.usage == Usage(7, len(texts))
    assert sum(map(bool, texts)) <= tokens <= len(texts)
