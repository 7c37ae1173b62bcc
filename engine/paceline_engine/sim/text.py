"""A stand-in tokenizer, and the text that a simulated engine answers with: both follow from the prompt alone.

A text becomes pieces of up to four characters, each with the blank before it (about 1.5 pieces an English word, as
byte-pair encodings give); a message of a chat adds five tokens of template and the answer's turn three. Output token i
is a made-up word of four letters drawn by (hash of the prompt, i), so that prefill/decode and aggregated answers are
the same, and each word is one token of this tokenizer again. Prompts that share leading blocks share block hashes.
Ids that are shown spell their piece where it is short, so that they can be read back; others are hashes. Pure.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import log
from zlib import crc32

_PIECE = re.compile(r" ?\S{1,4}|\s{1,4}")
LONGEST_PIECE = 5  # characters: no text has fewer tokens than a fifth of its length
_START, _END, _LINE = 1 << 32, (1 << 32) + 1, (1 << 32) + 2  # the chat template's own tokens: no piece has these ids
_TEMPLATE = {_START: "<|start|>", _END: "<|end|>", _LINE: "\n"}
SPELLED = 1 << 52  # from here on an id spells its piece; all stay below what JSON's readers take for whole numbers
_SPELLED_BYTES = 6
UNKNOWN = "\ufffd"  # what an id that spells nothing is read as
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
    return of_ids(_chat(messages, _id, _ids), block_size)


def chat_ids(messages: Iterable[tuple[str, str]], *, opening: bool = True) -> list[int]:
    """The ids of that prompt to be shown; without the `opening` of the assistant's turn if that is not wanted."""
    return _chat(messages, _spelled, text_ids)[: None if opening else -3]


def _chat(
    messages: Iterable[tuple[str, str]], id_: Callable[[str], int], ids_of: Callable[[str], Iterable[int]]
) -> list[int]:
    ids: list[int] = []
    for role, content in messages:
        ids += (_START, id_(role), _LINE, *ids_of(content), _END, _LINE)
    ids += (_START, id_("assistant"), _LINE)
    return ids


def text_ids(text: str) -> list[int]:
    """The ids of a text to be shown."""
    return [_spelled(piece) for piece in _PIECE.findall(text)]


def piece(id_: int) -> str:
    """What an id stands for."""
    if not SPELLED <= id_ < 2 * SPELLED:
        return _TEMPLATE.get(id_, UNKNOWN)
    return _bytes(id_).decode("utf-8", "replace")


def from_outside(ids: Sequence[int], block_size: int) -> Prompt:
    """The prompt of ids that a client sent: those of a text make that text's prompt."""
    return of_ids([_hashed(id_) for id_ in ids] if max(ids) >= SPELLED else ids, block_size)


def _ids(text: str) -> Iterable[int]:
    return (crc32(piece.encode("utf-8", "surrogatepass")) for piece in _PIECE.findall(text))


def _id(piece: str) -> int:
    return crc32(piece.encode("utf-8", "surrogatepass"))


def _spelled(piece: str) -> int:
    data = piece.encode("utf-8", "surrogatepass")
    if len(data) > _SPELLED_BYTES:
        return crc32(data)
    return SPELLED | len(data) << 8 * _SPELLED_BYTES | int.from_bytes(data, "big")


def _hashed(id_: int) -> int:
    """The id by which prompts are told apart."""
    return crc32(_bytes(id_)) if SPELLED <= id_ < 2 * SPELLED else id_


def _bytes(spelled: int) -> bytes:
    length = min(spelled >> 8 * _SPELLED_BYTES & 0xF, _SPELLED_BYTES)
    return (spelled & (1 << 8 * _SPELLED_BYTES) - 1).to_bytes(_SPELLED_BYTES, "big")[_SPELLED_BYTES - length :]


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
