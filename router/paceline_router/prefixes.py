"""Which replicas are thought to hold the KV of a prompt's first blocks: an approximate index of what was sent where.

Block hashes are chained, as vLLM's are: equal hashes mean equal prompts up to there, and a replica that holds a block
holds those before it. So only each SPAN-th block is kept, and the longest known prefix is found by bisection. Engines
evict without telling: entries expire, and each replica's are bounded by what its KV cache holds. Invariants: at most
`most_spans` entries a replica; an answer is a multiple of a span and never longer than the prompt. Times are seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

SPAN = 8  # blocks: 128 tokens of vLLM's blocks, below what a step computes anyhow
EXPIRE_S = 900.0  # model time without use
MOST_SPANS = 8192  # a replica whose KV capacity is not known: a million tokens
PROBES = 8  # shorter prefixes looked at, for replicas that hold less than the longest


class PrefixIndex:
    """Prompt prefixes by replica; `block_size` tokens a block."""

    def __init__(self, block_size: int = 16, expire_s: float = EXPIRE_S) -> None:
        self.block_size = block_size
        self._expire_s = expire_s
        self._holders: dict[int, dict[str, None]] = {}  # by hash of a span's last block
        self._used_s: dict[str, OrderedDict[int, float]] = {}  # by replica; the least recently used first

    def __len__(self) -> int:
        return sum(map(len, self._used_s.values()))

    def note(self, name: str, hashes: Sequence[int], now: float, kv_tokens: int | None = None) -> None:
        """A prompt is sent to a replica that computes and keeps it; its cache holds `kv_tokens`, None: not known."""
        used = self._used_s.setdefault(name, OrderedDict())
        for block_hash in reversed(hashes[SPAN - 1 :: SPAN]):  # the end of a prefix is evicted before its beginning
            used[block_hash] = now
            used.move_to_end(block_hash)
            self._holders.setdefault(block_hash, {})[name] = None
        most = MOST_SPANS if kv_tokens is None else max(kv_tokens // (SPAN * self.block_size), 1)
        while used and (len(used) > most or next(iter(used.values())) < now - self._expire_s):
            self._drop(name, used.popitem(last=False)[0])

    def forget(self, name: str) -> None:
        """A replica is gone, or its cache is."""
        for block_hash in self._used_s.pop(name, ()):
            self._drop(name, block_hash)

    def cached(self, hashes: Sequence[int], now: float) -> dict[str, int]:
        """Prompt tokens that each replica is thought to hold; those that hold none are left out.

        Exact for the replicas with the longest prefix, rounded down to one of PROBES lengths for the others.
        """
        longest = self._longest(hashes)
        if not longest:
            return {}
        found: dict[str, int] = {}
        for spans in dict.fromkeys(longest - longest * i // PROBES for i in range(PROBES)):
            block_hash = hashes[spans * SPAN - 1]
            for name in self._holders.get(block_hash, ()):
                if name not in found and self._used_s[name][block_hash] >= now - self._expire_s:
                    found[name] = spans * SPAN * self.block_size
        return found

    def tokens_at(self, name: str, hashes: Sequence[int], now: float) -> int:
        """Prompt tokens that one replica is thought to hold."""
        used = self._used_s.get(name)
        if not used:
            return 0
        low, high = 0, len(hashes) // SPAN
        while low < high:
            middle = (low + high + 1) // 2
            used_s = used.get(hashes[middle * SPAN - 1])
            if used_s is not None and used_s >= now - self._expire_s:
                low = middle
            else:
                high = middle - 1
        return low * SPAN * self.block_size

    def _longest(self, hashes: Sequence[int]) -> int:
        """Spans of the longest prefix that anyone holds."""
        holders = self._holders
        low, high = 0, len(hashes) // SPAN
        while low < high:
            middle = (low + high + 1) // 2
            if hashes[middle * SPAN - 1] in holders:
                low = middle
            else:
                high = middle - 1
        return low

    def _drop(self, name: str, block_hash: int) -> None:
        holders = self._holders[block_hash]
        del holders[name]
        if not holders:
            del self._holders[block_hash]
