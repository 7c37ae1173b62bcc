"""Which replicas are thought to hold the KV of a prompt's beginning: an approximate index of what was sent where.

A prompt's beginning is told by one hash for each full span of SPAN_TOKENS. The hashes are chained, as vLLM's of blocks
are: equal ones mean equal prompts up to there, and a replica that holds a span holds those before it, so the longest
known prefix is found by bisection. Engines evict without telling: entries expire, and each replica's are bounded by
what its KV cache holds. Invariants: at most that many entries a replica; an answer is a multiple of a span and never
longer than the prompt. Times are seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import inf

SPAN_TOKENS = 128  # whole blocks of any engine, and below what a step computes anyhow
EXPIRE_S = 900.0  # model time without use
MOST_SPANS = 8192  # a replica whose KV capacity is not known: a million tokens
PROBES = 8  # shorter prefixes looked at, for replicas that hold less than the longest


class PrefixIndex:
    """Prompt prefixes by replica."""

    def __init__(self, expire_s: float = EXPIRE_S) -> None:
        self._expire_s = expire_s
        self._holders: dict[int, dict[str, None]] = {}  # by hash of a span
        self._used_s: dict[str, OrderedDict[int, float]] = {}  # by replica; the least recently used first

    def __len__(self) -> int:
        return sum(map(len, self._used_s.values()))

    def note(self, name: str, hashes: Sequence[int], now: float, kv_tokens: int | None = None) -> None:
        """A prompt is sent to a replica that computes and keeps it; its cache holds `kv_tokens`, None: not known."""
        used = self._used_s.setdefault(name, OrderedDict())
        for span_hash in reversed(hashes):  # the end of a prefix is evicted before its beginning
            used[span_hash] = now
            used.move_to_end(span_hash)
            self._holders.setdefault(span_hash, {})[name] = None
        most = MOST_SPANS if kv_tokens is None else max(kv_tokens // SPAN_TOKENS, 1)
        while used and (len(used) > most or next(iter(used.values())) < now - self._expire_s):
            self._drop(name, used.popitem(last=False)[0])

    def forget(self, name: str) -> None:
        """A replica is gone, or its cache is."""
        for span_hash in self._used_s.pop(name, ()):
            self._drop(name, span_hash)

    def cached(self, hashes: Sequence[int], now: float) -> dict[str, int]:
        """Prompt tokens that each replica is thought to hold; those that hold none are left out.

        Exact for the replicas with the longest prefix, rounded down to one of PROBES lengths for the others.
        """
        longest = _spans(hashes, self._holders.__contains__)
        if not longest:
            return {}
        found: dict[str, int] = {}
        for spans in dict.fromkeys(longest - longest * i // PROBES for i in range(PROBES)):
            span_hash = hashes[spans - 1]
            for name in self._holders.get(span_hash, ()):
                if name not in found and self._used_s[name][span_hash] >= now - self._expire_s:
                    found[name] = spans * SPAN_TOKENS
        return found

    def tokens_at(self, name: str, hashes: Sequence[int], now: float) -> int:
        """Prompt tokens that one replica is thought to hold."""
        used = self._used_s.get(name)
        if not used:
            return 0
        since_s = now - self._expire_s
        return SPAN_TOKENS * _spans(hashes, lambda span_hash: used.get(span_hash, -inf) >= since_s)

    def _drop(self, name: str, span_hash: int) -> None:
        holders = self._holders[span_hash]
        del holders[name]
        if not holders:
            del self._holders[span_hash]


def _spans(hashes: Sequence[int], held: Callable[[int], bool]) -> int:
    """How many from the first on are held: whoever holds one holds those before it."""
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high + 1) // 2
        if held(hashes[middle - 1]):
            low = middle
        else:
            high = middle - 1
    return low
