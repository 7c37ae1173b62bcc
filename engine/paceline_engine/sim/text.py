"""A stand-in tokenizer, and the text that a simulated engine answers with: both follow from the prompt alone.

A text becomes pieces of up to four characters, each with the blank before it (about 1.5 pieces an English word, as
byte-pair encodings give); a message of a chat adds five tokens of template and the answer's turn three. Output token i
is a made-up word of four letters drawn by (hash of the prompt, i), so that prefill/decode and aggregated answers are
the same, and each word is one token of this tokenizer again. Prompts that share leading blocks share block hashes.
Pure.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import log
from zlib import crc32

_PIECE = re.compile(r" ?\S{1,4}|\s{1,4}")
LONGEST_PIECE = 5  # characters: no text has fewer tokens than a fifth of its length
_START, _END, _LINE = 1 << 32, (1 << 32) + 1, (1 << 32) + 2  # the chat template's own tokens: no piece has these ids
_SYLLABLES = tuple(c + v for c in "bdfghklmnprstvwz" for v in "aeiou")
_MASK = (1 << 64) - 1
_MEAN_ANSWER_TOKENS = 200  # of answers that end by themselves: exponential, near the mean of public chat traces (211)


@dataclass(frozen=True, slots=True)
class Prompt:
    """`seed` is a hash of all of it, `block_hashes` one chained hash for each full block of tokens."""

    tokens: int
    seed: int
    block_hashes: tuple[int, ...]


def of_ids(ids: Sequence[int], block_size: int) -> Prompt:
    """The prompt of token ids; OverflowError for an id beyond 63 bits."""
    data = array("q", ids).tobytes()
    width = 8 * block_size
    whole = len(data) // width * width
    digest = b""
    hashes = []
    for at in range(0, whole, width):
        digest = blake2b(digest + data[at : at + width], digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "big"))
    seed = int.from_bytes(blake2b(digest + data[whole:], digest_size=8).digest(), "big")
    return Prompt(len(ids), seed, tuple(hashes))


def of_text(text: str, block_size: int) -> Prompt:
    return of_ids(list(_ids(text)), block_size)


def of_chat(messages: Iterable[tuple[str, str]], block_size: int) -> Prompt:
    """The prompt of (role, content) pairs and the opening of the assistant's turn."""
    ids: list[int] = []
    for role, content in messages:
        ids += (_START, crc32(role.encode()), _LINE, *_ids(content), _END, _LINE)
    ids += (_START, crc32(b"assistant"), _LINE)
    return of_ids(ids, block_size)


def _ids(text: str) -> Iterable[int]:
    return (crc32(piece.encode("utf-8", "surrogatepass")) for piece in _PIECE.findall(text))


def word(seed: int, i: int) -> str:
    """Output token i, with the blank before it unless it is the first; ASCII letters only."""
    x = _mix(seed + i)
    drawn = _SYLLABLES[x % 80] + _SYLLABLES[(x >> 32) % 80]
    return f" {drawn}" if i else drawn


def answer(seed: int, tokens: int) -> str:
    return "".join(word(seed, i) for i in range(tokens))


def natural_tokens(seed: int) -> int:
    """The length at which this prompt's answer ends by itself, at least 1."""
    uniform = ((_mix(~seed & _MASK) >> 11) + 0.5) / (1 << 53)
    return 1 + int(-_MEAN_ANSWER_TOKENS * log(uniform))


def _mix(x: int) -> int:
    """splitmix64's output function (Steele et al., OOPSLA 2014)."""
    x = (x * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
