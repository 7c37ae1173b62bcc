"""The text of generated requests: token ids or words, decided by the seed alone.

Two prompts agree on a 512-token block exactly when they carry the same block id there, so prefix caching works as in
the trace; what no block covers belongs to its request alone. Ids stay within [FIRST_ID, FIRST_ID + IDS), which every
usual vocabulary has and where no tokenizer keeps its special tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BLOCK_TOKENS = 512  # Mooncake's hash_ids
FIRST_ID = 512
IDS = 4096

_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
_MASK = 2**64 - 1
_WORDS = (
    "time",
    "year",
    "day",
    "way",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "work",
    "point",
    "home",
    "room",
    "story",
)

Tokens = npt.NDArray[np.int64]


def token_ids(seed: int, request: int, prompt_tokens: int, prefix_blocks: Sequence[int] = ()) -> Tokens:
    """The prompt's ids, shape (prompt_tokens,). `request` numbers the request within its run."""
    blocks = -(-prompt_tokens // BLOCK_TOKENS)
    shared = prefix_blocks[:blocks]
    own = (_mix(_mix(seed, 2 * request + 1), index) for index in range(blocks - len(shared)))
    keys = np.array([*(_mix(seed, 2 * block) for block in shared), *own], dtype=np.uint64)
    grid = ((keys[:, None] ^ _PLACES[None, :]) * np.uint64(_ODD)) >> np.uint64(64 - IDS.bit_length() + 1)
    return grid.ravel()[:prompt_tokens].astype(np.int64) + FIRST_ID


def words(seed: int, request: int, prompt_tokens: int, prefix_blocks: Sequence[int] = ()) -> str:
    """About `prompt_tokens` tokens of text: one common word a token; the true count is in the answer's `usage`."""
    return " ".join(_WORDS[i % len(_WORDS)] for i in token_ids(seed, request, prompt_tokens, prefix_blocks))


def _mix(seed: int, value: int) -> int:
    """splitmix64 of the sum (Steele, Lea and Flood, OOPSLA'14)."""
    z = (seed * _ODD + value + 1) * _ODD & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


_PLACES = np.array([_mix(0, place) for place in range(BLOCK_TOKENS)], dtype=np.uint64)
