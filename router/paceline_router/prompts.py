"""How long the prompt in a body is, for each way to send one: text, token ids, messages, a response's items, inputs.

Token ids are exact. Text is estimated until `usage` corrects it; beside the estimate stands the least that any
tokeniser could make of it. Invariant: what is no prompt at all is refused with the field at fault; nothing raises.
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

CHARS_PER_TOKEN = 4  # English text: OpenAI, "What are tokens and how to count them"
CHAT_TOKENS = 3  # the template's opening of the answer, and around each message: OpenAI cookbook,
MESSAGE_TOKENS = 4  # "How to count tokens with tiktoken"
LONGEST_TOKEN_CHARS = 128  # the longest entry of the Llama-3 and Qwen vocabularies, a run of blanks
_ITEM_TEXTS = ("arguments", "output", "input", "summary")  # where items that are no messages have theirs


@dataclass(frozen=True, slots=True)
class Rejected:
    """The client's own fault: an OpenAI error with this HTTP status."""

    message: str
    param: str | None = None
    status: int = 400
    code: str = "rejected"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Its length in tokens; no tokeniser makes fewer of it than `fewest_tokens`."""

    tokens: int
    fewest_tokens: int
    exact: bool


def of_completion(body: Mapping[str, Any]) -> Prompt | Rejected:
    """One text, or one list of token ids; either may be the only one in a list."""
    prompt = body.get("prompt")
    if _is_list(prompt) and len(prompt) == 1 and type(prompt[0]) is not int:
        prompt = prompt[0]
    if isinstance(prompt, str):
        return estimate(len(prompt), 0) if prompt else Rejected("prompt is empty", "prompt")
    if not _is_list(prompt):
        return Rejected("prompt must be a text or a list of token ids", "prompt")
    return of_ids(prompt, "prompt", "prompt must be one text or one list of token ids; send one request per prompt")


def of_ids(ids: Sequence[Any], param: str, otherwise: str) -> Prompt | Rejected:
    """A list of token ids in the field `param`; `otherwise` says what it must be."""
    if not ids:
        return Rejected(f"{param} is empty", param)
    if set(map(type, ids)) != {int}:
        return Rejected(otherwise, param)
    if min(ids) < 0:
        return Rejected(f"{param} holds the token id {min(ids)}; ids start at 0", param)
    return Prompt(len(ids), len(ids), exact=True)


def of_chat(body: Mapping[str, Any]) -> Prompt | Rejected:
    """The messages of a chat, and what its template adds."""
    messages = body.get("messages")
    if not _is_list(messages) or not messages:
        return Rejected("messages must be a list of at least one message", "messages")
    chars = 0
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return Rejected(f"messages[{i}] must be an object with a role", f"messages[{i}]")
        length = _content_chars(message.get("content"))
        if length is None:
            return Rejected(f"messages[{i}].content must be a text or a list of parts", f"messages[{i}].content")
        chars += length
    return estimate(chars, CHAT_TOKENS + MESSAGE_TOKENS * len(messages))


def of_response(body: Mapping[str, Any]) -> Prompt | Rejected:
    """`input`, a text or a list of items (messages, calls of tools and what these gave), and `instructions`."""
    given, instructions = body.get("input"), body.get("instructions")
    if not isinstance(instructions, str | None):
        return Rejected("instructions must be a text", "instructions")
    items = [{"content": given}] if isinstance(given, str) else given
    if not _is_list(items) or not items:
        return Rejected("input must be a text or a list of at least one item", "input")
    chars = len(instructions or "")
    for i, item in enumerate(items):
        if not isinstance(item, Mapping):
            return Rejected(f"input[{i}] must be an object", f"input[{i}]")
        length = _content_chars(item.get("content"))
        if length is None:
            return Rejected(f"input[{i}].content must be a text or a list of parts", f"input[{i}].content")
        chars += length + sum(_content_chars(item.get(name)) or 0 for name in _ITEM_TEXTS)
    return estimate(chars, CHAT_TOKENS + MESSAGE_TOKENS * (len(items) + bool(instructions)))


def of_embeddings(body: Mapping[str, Any]) -> Prompt | Rejected:
    """All inputs together; `fewest_tokens` is the longest one's, because each is computed by itself."""
    given = body.get("input")
    if given is None and "messages" in body:
        return of_chat(body)
    otherwise = "input must be texts or lists of token ids"
    if not isinstance(given, str) and not _is_list(given):
        return Rejected(otherwise, "input")
    if not given:
        return Rejected("input is empty", "input")
    prompts: list[Prompt] = []
    for one in given if _is_list(given) and type(given[0]) is not int else (given,):
        found = _embedded(one, otherwise)
        if isinstance(found, Rejected):
            return found
        prompts.append(found)
    tokens, fewest = sum(p.tokens for p in prompts), max(p.fewest_tokens for p in prompts)
    return Prompt(tokens, fewest, all(p.exact for p in prompts))


def _embedded(one: object, otherwise: str) -> Prompt | Rejected:
    if isinstance(one, str):
        return estimate(len(one), 0)
    return of_ids(one, "input", otherwise) if _is_list(one) else Rejected(otherwise, "input")


def estimate(chars: int, template_tokens: int) -> Prompt:
    """Of a text."""
    tokens = -(-chars // CHARS_PER_TOKEN) + template_tokens
    return Prompt(max(tokens, 1), max(-(-chars // LONGEST_TOKEN_CHARS), 1), exact=False)


def _content_chars(content: object) -> int | None:
    """Characters of a message's text; parts that are no text count nothing. None: not a content at all."""
    if content is None:
        return 0
    if isinstance(content, str):
        return len(content)
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        return None
    return sum(len(text) for part in content if isinstance(text := part.get("text"), str))


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)
