"""KV block accounting with prefix caching by block hash, as vLLM v1's block pool does it.

Every block is in exactly one of three places: free, cached (no holder, but its content can still be shared; evicted in
least-recently-used order when plain free blocks run out), or held by one or more requests. `grow` takes all that it
needs or nothing, so no failure leaves a block behind. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol


class Holder(Protocol):
    """What owns blocks; a `Request`, or a prefill whose KV waits to be pulled."""

    blocks: list[int]
    block_hashes: tuple[int, ...]


class KVBlocks:
    """The pool of one engine replica: `capacity` blocks of `block_size` tokens."""

    __slots__ = ("_block_of", "_cached", "_free", "_hash_of", "_refs", "block_size", "capacity")

    def __init__(self, capacity: int, block_size: int = 16) -> None:
        if capacity < 1 or block_size < 1:
            raise ValueError(f"a KV pool needs at least one block of one token, got {capacity} of {block_size}")
        self.capacity = capacity
        self.block_size = block_size
        self._free = list(range(capacity - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._refs = [0] * capacity
        self._hash_of: dict[int, int] = {}
        self._block_of: dict[int, int] = {}

    @property
    def available(self) -> int:
        """Blocks that a request can take now, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def watermark(self) -> int:
        """Blocks that vLLM v0 leaves free on admission, so that decodes can grow (1 % of the pool)."""
        return self.capacity // 100

    @property
    def usage(self) -> float:
        return 1.0 - self.available / self.capacity

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def missing(self, holder: Holder, tokens: int) -> int:
        """Blocks that `holder` lacks to hold `tokens` tokens."""
        return max(0, -(-tokens // self.block_size) - len(holder.blocks))

    def cached_tokens(self, hashes: Sequence[int]) -> int:
        """Tokens of the longest leading run of `hashes` whose KV is in the pool."""
        run = 0
        for block_hash in hashes:
            if block_hash not in self._block_of:
                break
            run += 1
        return run * self.block_size

    def share(self, holder: Holder, tokens: int) -> int:
        """Give a holder without blocks the cached run of its prefix, at most `tokens` tokens; the tokens it got."""
        if holder.blocks:
            raise ValueError("a prefix is shared before anything else is held")
        for block_hash in holder.block_hashes[: tokens // self.block_size]:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            if self._refs[block] == 0:
                del self._cached[block]
            self._refs[block] += 1
            holder.blocks.append(block)
        return len(holder.blocks) * self.block_size

    def grow(self, holder: Holder, tokens: int) -> bool:
        """Make `holder` hold `tokens` tokens; False, and nothing changed, when the pool has too few blocks."""
        lacking = -(-tokens // self.block_size) - len(holder.blocks)
        if lacking <= 0:
            return True
        free = self._free
        if lacking > len(free):
            if lacking > len(free) + len(self._cached):
                return False
            self._evict(lacking - len(free))
        taken = free[-lacking:]
        del free[-lacking:]
        for block in taken:
            self._refs[block] = 1
        holder.blocks += taken
        return True

    def seal(self, holder: Holder, computed_tokens: int) -> None:
        """Note the content of the prompt blocks that `computed_tokens` have filled, so that others can share them."""
        for block, block_hash in zip(
            holder.blocks, holder.block_hashes[: computed_tokens // self.block_size], strict=False
        ):
            if block_hash not in self._block_of and block not in self._hash_of:
                self._block_of[block_hash] = block
                self._hash_of[block] = block_hash

    def release(self, holder: Holder) -> None:
        """Give back all that `holder` holds; the last blocks of a prefix become the first to be evicted."""
        if not holder.blocks:
            return
        refs, hash_of = self._refs, self._hash_of
        for block in reversed(holder.blocks):
            refs[block] -= 1
            if refs[block] < 0:
                raise AssertionError(f"KV block {block} released twice")
            if refs[block] == 0:
                if block in hash_of:
                    self._cached[block] = None
                else:
                    self._free.append(block)
        holder.blocks = []

    def _evict(self, count: int) -> None:
        for _ in range(count):
            block, _none = self._cached.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
            self._free.append(block)

    def check(self, holders: Sequence[Holder]) -> None:
        """Raise AssertionError unless every block is in exactly one place and every reference has its holder."""
        held: dict[int, int] = {}
        for holder in holders:
            for block in holder.blocks:
                held[block] = held.get(block, 0) + 1
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & cached, "a block is both free and cached"
        assert not free & held.keys(), "a free block is held"
        assert not cached & held.keys(), "a cached block without holder is held"
        assert len(free) + len(cached) + len(held) == self.capacity, "a block is lost"
        assert all(self._refs[block] == count for block, count in held.items()), "a reference has no holder"
        assert {b: h for h, b in self._block_of.items()} == self._hash_of, "the prefix index is not one to one"
