"""Server-sent events: the payloads do not depend on how the stream is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.http1 import EventSplitter, EventTooLargeError


@pytest.mark.parametrize(
    ("stream", "payloads"),
    [
        pytest.param(b'data: {"a":1}\n\ndata: [DONE]\n\n', [b'{"a":1}', b"[DONE]"], id="vLLM's form"),
        pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"], id="CRLF line ends"),
        pytest.param(b"data:a\n\n", [b"a"], id="no blank after the colon"),
        pytest.param(b"data:  a\n\n", [b" a"], id="only one blank is dropped"),
        pytest.param(b"data: a\ndata: b\n\n", [b"a\nb"], id="data lines are joined"),
        pytest.param(b": ping\n\ndata: a\n\n", [b"a"], id="a comment is no event"),
        pytest.param(b"event: x\nid: 1\ndata: a\n\n", [b"a"], id="other fields are dropped"),
        pytest.param(b"data\n\n", [b""], id="an empty data line"),
        pytest.param(b"database: a\n\n", [], id="another field that begins alike"),
        pytest.param(b"\n\n\n\n\ndata: a\n\n", [b"a"], id="surplus blank lines"),
        pytest.param(b"data: a\n\ndata: b\n", [b"a"], id="an event cut short is not given"),
        pytest.param(b"", [], id="nothing"),
    ],
)
def test_payloads(stream: bytes, payloads: list[bytes]) -> None:
    assert EventSplitter().feed(stream) == payloads


_lines = st.lists(
    st.sampled_from([b"data: x", b"data:", b"y", b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n"]), max_size=24
)


@given(_lines.map(b"".join), st.lists(st.integers(0, 60), max_size=8))
def test_cutting_changes_nothing(stream: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    splitter = EventSplitter()
    pieces = [splitter.feed(stream[a:b]) for a, b in itertools.pairwise(edges)]
    assert [payload for piece in pieces for payload in piece] == EventSplitter().feed(stream)


def test_an_endless_event_is_refused() -> None:
    splitter = EventSplitter(max_event_bytes=10)
    splitter.feed(b"data: 1234")
    with pytest.raises(EventTooLargeError):
        splitter.feed(b"5")


def test_pending_tells_of_an_event_cut_short() -> None:
    splitter = EventSplitter()
    splitter.feed(b"data: a\n\n")
    assert not splitter.pending
    splitter.feed(b"data: b")
    assert splitter.pending
