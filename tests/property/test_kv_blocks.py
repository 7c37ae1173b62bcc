"""No KV block is lost, held twice by one pool, or freed twice, whatever sequence of operations a scheduler makes."""

from __future__ import annotations

import pytest
from engines import make_request
from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.kv_blocks import KVBlocks
from paceline_engine.request import Request

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["open", "grow", "seal", "release"]), st.integers(0, 7), st.integers(1, 200)), max_size=80
)


@given(operations=OPERATIONS, capacity=st.integers(4, 40))
def test_every_block_is_in_exactly_one_place_after_any_sequence(
    operations: list[tuple[str, int, int]], capacity: int
) -> None:
    kv = KVBlocks(capacity, 16)
    holders: dict[int, Request] = {}
    for operation, who, amount in operations:
        holder = holders.get(who)
        if operation == "open" and holder is None:
            prefix = who % 3  # some prompts begin alike
            hashes = tuple(hash((prefix, i if i < 3 else (who, i))) for i in range(amount // 16))
            holder = holders[who] = make_request(str(who), prompt_tokens=amount, block_hashes=hashes)
            assert kv.share(holder, amount) <= amount
        elif operation == "grow" and holder is not None:
            before, free = len(holder.blocks), kv.available
            if not kv.grow(holder, amount):
                assert (len(holder.blocks), kv.available) == (before, free), "a refusal changes nothing"
            else:
                assert len(holder.blocks) * 16 >= amount
        elif operation == "seal" and holder is not None:
            kv.seal(holder, len(holder.blocks) * 16)
        elif operation == "release" and holder is not None:
            kv.release(holders.pop(who))
        kv.check(list(holders.values()))
    for holder in holders.values():
        kv.release(holder)
    assert kv.available == capacity


def test_a_second_release_of_the_same_blocks_is_caught() -> None:
    kv = KVBlocks(4)
    holder = make_request()
    kv.grow(holder, 20)
    again = make_request()
    again.blocks = list(holder.blocks)
    kv.release(holder)
    with pytest.raises(AssertionError, match="released twice"):
        kv.release(again)


def test_a_prefix_is_shared_and_survives_its_first_holder() -> None:
    kv = KVBlocks(8)
    first = make_request("a", prompt_tokens=48, block_hashes=(1, 2, 3))
    kv.grow(first, 48)
    kv.seal(first, 48)
    kv.release(first)
    second = make_request("b", prompt_tokens=64, block_hashes=(1, 2, 9, 10))
    assert kv.cached_tokens(second.block_hashes) == 32
    assert kv.share(second, 64) == 32
    kv.check([second])


def test_cached_blocks_are_evicted_least_recently_used_and_deepest_first() -> None:
    kv = KVBlocks(4)
    old = make_request("old", prompt_tokens=32, block_hashes=(1, 2))
    new = make_request("new", prompt_tokens=32, block_hashes=(3, 4))
    for holder in (old, new):
        kv.grow(holder, 32)
        kv.seal(holder, 32)
    kv.release(old)
    kv.release(new)
    kv.grow(make_request("taker"), 16)
    assert kv.cached_tokens((1, 2)) == 16, "the end of the oldest prefix went first"
    assert kv.cached_tokens((3, 4)) == 32
