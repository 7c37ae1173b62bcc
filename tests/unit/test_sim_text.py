"""The stand-in tokenizer and the made-up answers: deterministic, exact in their counts, shared by shared prefixes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.sim import text

IDS = st.lists(st.integers(0, 1 << 31), min_size=1, max_size=200)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("a", 1),
        ("hello", 2),
        ("Hello there friend", 6),
        ("a  b", 3),
        ("\n\n\n", 1),
        ("日本語のテキスト", 2),
        (" ", 1),
    ],
    ids=["a letter", "a word", "words", "two blanks", "blank lines", "another script", "a blank"],
)
def test_a_text_has_a_token_for_about_four_characters(prompt: str, tokens: int) -> None:
    assert text.of_text(prompt, 16).tokens == tokens


@given(st.text(max_size=300))
def test_no_text_has_fewer_tokens_than_a_fifth_of_its_length(prompt: str) -> None:
    tokens = text.of_text(prompt, 16).tokens
    assert len(prompt) / text.LONGEST_PIECE <= tokens <= len(prompt)


@given(st.integers(0, (1 << 64) - 1), st.integers(1, 100))
def test_an_answer_read_as_a_prompt_has_as_many_tokens_as_it_was_made_of(seed: int, tokens: int) -> None:
    answer = text.answer(seed, tokens)
    assert answer.isascii()
    assert text.of_text(answer, 16).tokens == tokens


def test_a_chat_counts_its_template() -> None:
    assert text.of_chat([("user", "hi")], 16).tokens == 1 + 5 + 3
    assert text.of_chat([("system", "hi"), ("user", "hi")], 16).tokens == 2 * (1 + 5) + 3


@given(IDS, IDS, IDS)
def test_prompts_share_the_hashes_of_the_blocks_that_they_share(prefix: list[int], a: list[int], b: list[int]) -> None:
    first, second = text.of_ids(prefix + a, 16), text.of_ids(prefix + b, 16)
    assert len(first.block_hashes) == len(prefix + a) // 16
    shared = len(prefix) // 16
    assert first.block_hashes[:shared] == second.block_hashes[:shared]
    assert (first == second) == (a == b)


def test_a_block_has_another_hash_after_another_prefix() -> None:
    block = list(range(16))
    assert text.of_ids([1] * 16 + block, 16).block_hashes[1] != text.of_ids([2] * 16 + block, 16).block_hashes[1]


def test_words_are_fixed_for_ever() -> None:
    """A change of the words would tell a P/D fleet of two versions apart."""
    prompt = text.of_text("Hello there friend", 16)
    assert text.answer(prompt.seed, 4) == "sova raku mama nabe"


def test_natural_lengths_are_exponential_around_their_mean() -> None:
    lengths = [text.natural_tokens(text.of_ids([i], 16).seed) for i in range(4000)]
    assert min(lengths) >= 1
    assert sum(lengths) / len(lengths) == pytest.approx(200, rel=0.1)
    assert sum(n > 200 for n in lengths) / len(lengths) == pytest.approx(0.37, abs=0.05)
