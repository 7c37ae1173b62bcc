"""What a request is expected to need, and the hashes that tell which prompts begin alike."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.slo import SLOClass
from paceline_engine.lengths import OutputLengths
from paceline_router.prefixes import SPAN_TOKENS
from paceline_router.prompt_spans import prompt_spans
from paceline_router.prompts import CHARS_PER_TOKEN
from paceline_router.replica import Size
from paceline_router.request import Kind, Request, Served, parse
from paceline_router.sizing import expected_size

CHAT = SLOClass("chat", 0.4, 0.04, ttft_s_per_1k_prompt_tokens=0.1)
IDS = list(range(1000, 1000 + 4 * SPAN_TOKENS))
TEXT = "".join(chr(ord("a") + i % 26) for i in range(4 * SPAN_TOKENS * CHARS_PER_TOKEN))


def make_lengths(*seen: int) -> OutputLengths:
    lengths = OutputLengths(few=1)
    for tokens in seen:
        lengths.observe("chat", tokens)
    return lengths


def test_a_size_is_due_at_its_limit_and_expects_what_its_class_had() -> None:
    lengths = make_lengths(*range(10, 110, 10))
    assert expected_size(CHAT, lengths, 5.0, 1000, 4096, (7,)) == Size(1000, 100, 5.0 + 0.4 + 0.1, 0.04, 60, (7,))


def test_no_more_output_is_reserved_than_the_request_may_have() -> None:
    assert expected_size(CHAT, make_lengths(500), 0.0, 10, 20).output_tokens == 20


def test_a_request_of_its_own_limits_is_sized_by_them_and_by_its_class_lengths() -> None:
    own = CHAT.tightened(0.2, 0.02)
    size = expected_size(own, make_lengths(300), 1.0, 5000, 4096)
    assert size == Size(5000, 300, 1.0 + 0.2, 0.02, 300)


def completion(prompt: object, **more: Any) -> tuple[int, ...]:
    return spans(Kind.COMPLETION, {"prompt": prompt, "max_tokens": 1, **more})


def chat(*turns: tuple[str, Any], **more: Any) -> tuple[int, ...]:
    messages = [{"role": role, "content": content} for role, content in turns]
    return spans(Kind.CHAT, {"messages": messages, "max_tokens": 1, **more})


def spans(kind: Kind, body: dict[str, Any]) -> tuple[int, ...]:
    assert isinstance(parse(kind, body, Served("m", 1 << 20)), Request)
    return prompt_spans(kind, body)


def shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Leading hashes that agree; none may agree behind one that does not."""
    same = [x == y for x, y in zip(a, b, strict=False)]
    assert same == sorted(same, reverse=True)
    return sum(same)


ALIKE = [
    ("ids that differ in the third span share two", completion(IDS), completion([*IDS[:300], 1, *IDS[301:]]), 2),
    ("a longer prompt shares what it begins with", completion(IDS), completion([*IDS, *IDS]), 4),
    ("one prompt in a list is the prompt", completion(IDS), completion([IDS]), 4),
    ("one text in a list is the text", completion(TEXT), completion([TEXT]), 4),
    ("texts are cut by characters", completion(TEXT), completion(TEXT[:1100] + "!" + TEXT[1101:]), 2),
    ("turns of a chat share the turns before", chat(("user", TEXT)), chat(("user", TEXT), ("assistant", "so")), 4),
    ("parts of text are text", chat(("user", TEXT)), chat(("user", [{"type": "text", "text": TEXT}])), 4),
    ("another role is another chat", chat(("user", TEXT)), chat(("system", TEXT)), 0),
    ("other tools come before the chat", chat(("user", TEXT)), chat(("user", TEXT), tools=[{"type": "function"}]), 0),
    ("salted caches are not shared", completion(IDS), completion(IDS, cache_salt="mine"), 0),
]


@pytest.mark.parametrize(("a", "b", "count"), [c[1:] for c in ALIKE], ids=[c[0] for c in ALIKE])
def test_prompts_that_begin_alike(a: tuple[int, ...], b: tuple[int, ...], count: int) -> None:
    assert len(a) == 4
    assert shared(a, b) == count


def test_an_image_ends_what_can_be_told() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:…"}}
    assert len(chat(("user", [{"type": "text", "text": TEXT[:1030]}, image, {"type": "text", "text": TEXT}]))) == 2


def test_a_prompt_shorter_than_a_span_has_none() -> None:
    assert completion(IDS[: SPAN_TOKENS - 1]) == completion("short") == chat(("user", None)) == ()


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8), st.integers(1, 600))
def test_any_ids_make_a_hash_a_full_span(some: list[int], count: int) -> None:
    ids = (some * count)[:count]
    found = prompt_spans(Kind.COMPLETION, {"prompt": ids})
    assert len(found) == len(ids) // SPAN_TOKENS
    assert found == prompt_spans(Kind.COMPLETION, {"prompt": [*ids, 5]})[: len(found)]


def test_without_a_limit_nothing_is_due() -> None:
    size = expected_size(SLOClass("best", inf, inf), OutputLengths(), 3.0, 10, 20)
    assert (size.due_s, size.tpot_s) == (inf, inf)
