"""A prompt's beginning as one chained hash for each full span: what tells prompts that begin alike (prefixes.py).

Token ids are cut exactly. Text is cut where the estimate of its tokens says (request.py): the same text is cut in the
same places, which is all that is compared. What stands before the prompt, or keeps engines from sharing its KV (tools,
`cache_salt`), is hashed first; text ends at the first part that is none. Hashes are this process' own, so nobody
outside can make two prompts look alike. Invariant: equal hashes at one place mean equal beginnings up to there. Pure.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from paceline_router.prefixes import SPAN_TOKENS
from paceline_router.prompts import CHARS_PER_TOKEN
from paceline_router.request import Kind

SPAN_CHARS = CHARS_PER_TOKEN * SPAN_TOKENS
SPAN_BYTES = 8 * SPAN_TOKENS  # of ids


def prompt_spans(kind: Kind, body: Mapping[str, Any]) -> tuple[int, ...]:
    """Of the prompt in a body that `parse` has admitted; empty for what is embedded, and for less than a span."""
    if kind is Kind.EMBEDDINGS:
        return ()
    before = hash((repr(body.get("tools")), repr(body.get("cache_salt"))))
    if kind is Kind.CHAT:
        return _chained("".join(_texts(body["messages"])), SPAN_CHARS, before)
    if kind is Kind.RESPONSES:
        return _chained("".join(_texts(_turns(body))), SPAN_CHARS, before)
    prompt = body["prompt"]
    if not isinstance(prompt, str) and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return _chained(prompt, SPAN_CHARS, before)
    return _chained(array("Q", prompt).tobytes(), SPAN_BYTES, before)


def _chained(prompt: str | bytes, width: int, before: int) -> tuple[int, ...]:
    hashes: list[int] = []
    for at in range(0, len(prompt) - width + 1, width):
        before = hash((before, prompt[at : at + width]))
        hashes.append(before)
    return tuple(hashes)


def _turns(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What a response follows, as messages; items that are none (calls of tools, and what these gave) as they came."""
    yield {"role": "system", "content": body.get("instructions")}
    given = body["input"]
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else given:
        yield item if "role" in item else {"role": "", "content": repr(item)}


def _texts(messages: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Roles and texts of a chat, as far as it is text."""
    for message in messages:
        yield f"\0{message['role']}\0"
        content = message.get("content")
        for part in [content] if isinstance(content, str) else content or ():
            text = part if isinstance(part, str) else part.get("text")
            if not isinstance(text, str):
                return
            yield text
