"""Which replicas are thought to hold a prompt's first blocks, as prompts are sent, time passes and caches fill."""

from __future__ import annotations

from paceline_router.prefixes import EXPIRE_S, SPAN_TOKENS, PrefixIndex


def spans(count: int, chain: int = 0) -> tuple[int, ...]:
    return tuple(range(chain * 10_000, chain * 10_000 + count))


def test_a_prompt_that_was_sent_before_is_held_where_it_was_sent() -> None:
    index = PrefixIndex()
    index.note("a", spans(4), 0.0)
    index.note("b", spans(4, chain=1), 0.0)
    assert index.cached(spans(4), 1.0) == {"a": 4 * SPAN_TOKENS}
    assert index.tokens_at("a", spans(4), 1.0) == 4 * SPAN_TOKENS
    assert index.tokens_at("b", spans(4), 1.0) == index.tokens_at("c", spans(4), 1.0) == 0


def test_a_longer_prompt_shares_what_it_begins_with() -> None:
    index = PrefixIndex()
    index.note("a", spans(2), 0.0)
    index.note("b", spans(6), 0.0)
    found = index.cached(spans(9), 1.0)
    assert found["b"] == 6 * SPAN_TOKENS
    assert SPAN_TOKENS <= found["a"] <= 2 * SPAN_TOKENS


def test_what_is_not_used_expires() -> None:
    index = PrefixIndex()
    index.note("a", spans(2), 0.0)
    later = EXPIRE_S + 1.0
    assert index.cached(spans(2), later) == {}
    assert index.tokens_at("a", spans(2), later) == 0
    index.note("a", spans(1, chain=1), later)
    assert len(index) == 1


def test_a_full_cache_forgets_the_end_of_the_oldest_prefix_first() -> None:
    index = PrefixIndex()
    index.note("a", spans(4), 0.0, kv_tokens=5 * SPAN_TOKENS)
    index.note("a", spans(3, chain=1), 1.0, kv_tokens=5 * SPAN_TOKENS)
    assert index.tokens_at("a", spans(4), 1.0) == 2 * SPAN_TOKENS
    assert index.tokens_at("a", spans(3, chain=1), 1.0) == 3 * SPAN_TOKENS


def test_a_replica_that_is_gone_holds_nothing() -> None:
    index = PrefixIndex()
    index.note("a", spans(2), 0.0)
    index.forget("a")
    index.forget("never there")
    assert (len(index), index.cached(spans(2), 0.0)) == (0, {})
