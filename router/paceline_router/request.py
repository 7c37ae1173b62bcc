"""What a client asks for: a decoded body checked and measured, or the reason why it is refused.

The checks are those that the router needs in order to plan (lengths, streaming, the model); sampling options are the
engine's to judge, and its 4xx is relayed. Token ids are exact. Text is estimated until `usage` corrects it, so text
is refused for its length only when no tokeniser could make it fit. Invariant: of a `Request`, 1 ≤ prompt_tokens, 1 ≤
max_tokens, and an exact prompt plus max_tokens fits the context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

COMPLETION_MAX_TOKENS = 16  # OpenAI's and vLLM's default of /v1/completions; chat goes on to the end of the context
CHARS_PER_TOKEN = 4  # English text: OpenAI, "What are tokens and how to count them"
CHAT_TOKENS = 3  # the template's opening of the answer, and around each message: OpenAI cookbook,
MESSAGE_TOKENS = 4  # "How to count tokens with tiktoken"
LONGEST_TOKEN_CHARS = 128  # the longest entry of the Llama-3 and Qwen vocabularies, a run of blanks


class Kind(StrEnum):
    """The two ways to ask for tokens, by the last part of the path."""

    CHAT = "chat/completions"
    COMPLETION = "completions"


@dataclass(frozen=True, slots=True)
class Served:
    """What this service offers: the `model` of requests and its context in tokens."""

    model: str
    max_context_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One admitted request. `max_tokens` is an upper bound on its output, whether the client set one or not."""

    kind: Kind
    prompt_tokens: int
    exact: bool
    max_tokens: int
    stream: bool = False
    usage_wanted: bool = False  # the client asked for the usage event of a stream


@dataclass(frozen=True, slots=True)
class Rejected:
    """The client's own fault: an OpenAI error with this HTTP status."""

    message: str
    param: str | None = None
    status: int = 400
    code: str = "rejected"


@dataclass(frozen=True, slots=True)
class _Prompt:
    tokens: int
    fewest_tokens: int  # no tokeniser makes fewer of it
    exact: bool


def parse(kind: Kind, body: object, served: Served) -> Request | Rejected:
    """`body` is the decoded JSON of a request to `kind`; the first fault found refuses it."""
    if not isinstance(body, Mapping):
        return Rejected("the body must be a JSON object")
    model = body.get("model")
    if model is not None and model != served.model:
        message = f"the model {_shown(model)} does not exist; this service offers {served.model!r}"
        return Rejected(message, "model", 404, "model_not_found")
    if fault := _flags_fault(body):
        return fault
    prompt = _chat_prompt(body.get("messages")) if kind is Kind.CHAT else _text_prompt(body.get("prompt"))
    if isinstance(prompt, Rejected):
        return prompt
    limit = _max_tokens(body, kind)
    if isinstance(limit, Rejected):
        return limit
    context = served.max_context_tokens
    if prompt.fewest_tokens + (limit or 1) > context:
        asked = f"{prompt.fewest_tokens} prompt tokens" if prompt.exact else f"at least {prompt.fewest_tokens} tokens"
        param = "messages" if kind is Kind.CHAT else "prompt"
        message = f"{asked} and {limit or 1} to generate exceed the context of {context}; shorten the {param}"
        return Rejected(message, param, code="context_length_exceeded")
    options = body.get("stream_options") or {}
    return Request(
        kind,
        min(prompt.tokens, context - 1),
        prompt.exact,
        limit or context - prompt.fewest_tokens,
        stream=body.get("stream") is True,
        usage_wanted=options.get("include_usage") is True,
    )


def _flags_fault(body: Mapping[str, Any]) -> Rejected | None:
    if not isinstance(body.get("stream"), bool | None):
        return Rejected("stream must be true or false", "stream")
    if not isinstance(body.get("stream_options"), Mapping | None):
        return Rejected("stream_options must be an object", "stream_options")
    for name in ("n", "best_of"):
        value = body.get(name)
        if value is not None and (value != 1 or isinstance(value, bool)):
            return Rejected(f"{name} must be 1: send one request per answer, each has its own objective", name)
    return None


def _max_tokens(body: Mapping[str, Any], kind: Kind) -> int | Rejected | None:
    """None: to the end of the context."""
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            return Rejected(f"{name} must be a whole number from 1 up, got {_shown(value)}", name)
        return value
    return COMPLETION_MAX_TOKENS if kind is Kind.COMPLETION and "max_tokens" not in body else None


def _text_prompt(prompt: object) -> _Prompt | Rejected:
    if isinstance(prompt, Sequence) and not isinstance(prompt, str) and len(prompt) == 1 and not _is_int(prompt[0]):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return _estimate(len(prompt), 0) if prompt else Rejected("prompt is empty", "prompt")
    if not isinstance(prompt, Sequence):
        return Rejected("prompt must be a text or a list of token ids", "prompt")
    if not prompt:
        return Rejected("prompt is empty", "prompt")
    if set(map(type, prompt)) != {int}:
        message = "prompt must be one text or one list of token ids; send one request per prompt"
        return Rejected(message, "prompt")
    if min(prompt) < 0:
        return Rejected(f"prompt holds the token id {min(prompt)}; ids start at 0", "prompt")
    return _Prompt(len(prompt), len(prompt), exact=True)


def _chat_prompt(messages: object) -> _Prompt | Rejected:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        return Rejected("messages must be a list of at least one message", "messages")
    chars = 0
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return Rejected(f"messages[{i}] must be an object with a role", f"messages[{i}]")
        length = _content_chars(message.get("content"))
        if length is None:
            return Rejected(f"messages[{i}].content must be a text or a list of parts", f"messages[{i}].content")
        chars += length
    return _estimate(chars, CHAT_TOKENS + MESSAGE_TOKENS * len(messages))


def _content_chars(content: object) -> int | None:
    """Characters of a message's text; parts that are no text count nothing. None: not a content at all."""
    if content is None:
        return 0
    if isinstance(content, str):
        return len(content)
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        return None
    return sum(len(text) for part in content if isinstance(text := part.get("text"), str))


def _estimate(chars: int, template_tokens: int) -> _Prompt:
    tokens = -(-chars // CHARS_PER_TOKEN) + template_tokens
    return _Prompt(max(tokens, 1), max(-(-chars // LONGEST_TOKEN_CHARS), 1), exact=False)


def _is_int(value: object) -> bool:
    return type(value) is int


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
