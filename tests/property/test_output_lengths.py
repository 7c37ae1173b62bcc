"""The survival curve of output lengths: asked for many requests at once it answers as for each by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.lengths import OutputLengths
from paceline_engine.request import Objective, Request

names = st.sampled_from(["", "chat", "batch"])


def make_request(class_name: str, emitted_tokens: int) -> Request:
    request = Request("r", 10, 4096, 0.0, Objective(class_name, 1.0, 0.1, 0.3))
    request.emitted_tokens = emitted_tokens
    return request


@given(
    seen=st.lists(st.tuples(names, st.integers(1, 300)), max_size=120),
    asked=st.lists(st.tuples(names, st.integers(0, 400)), max_size=20),
)
def test_many_at_once_are_each_by_itself(seen: list[tuple[str, int]], asked: list[tuple[str, int]]) -> None:
    lengths = OutputLengths(window=50)
    for name, tokens in seen:
        lengths.observe(name, tokens)
    found = lengths.medians([make_request(*of) for of in asked])
    assert found == [lengths.remaining(*of) for of in asked]


@given(st.lists(st.integers(1, 300), min_size=16, max_size=60), st.integers(0, 400))
def test_what_remains_is_at_least_one_token_and_no_more_than_the_longest_seen(seen: list[int], emitted: int) -> None:
    lengths = OutputLengths()
    for tokens in seen:
        lengths.observe("chat", tokens)
    assert 1 <= lengths.remaining("chat", emitted) <= max(seen)
