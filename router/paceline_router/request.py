"""What a client asks for: a decoded body checked and measured, or the reason why it is refused.

The checks are those that the router needs in order to plan (lengths, streaming, the model) or that no single engine
could know (what would need the same one again); sampling options are the engine's to judge, and its 4xx is relayed.
Text is refused for its length only when no tokeniser could make it fit (prompts.py). Invariant: of a `Request`,
1 ≤ prompt_tokens, 1 ≤ max_tokens, and an exact prompt plus max_tokens fits the context; of texts to embed, each does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from paceline_engine.pd import may_go_on

from paceline_router import prompts
from paceline_router.prompts import Prompt, Rejected

__all__ = ["COMPLETION_MAX_TOKENS", "Kind", "Rejected", "Request", "Served", "parse", "passing_fault"]

COMPLETION_MAX_TOKENS = 16  # OpenAI's and vLLM's default of /v1/completions; others go on to the end of the context


class Kind(StrEnum):
    """The ways to ask for tokens, by the last part of the path; an embedding counts as one."""

    CHAT = "chat/completions"
    COMPLETION = "completions"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"


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
    whole: bool = False  # one replica must do all of it: its KV cannot be handed over


@dataclass(frozen=True, slots=True)
class _Traits:
    """Of one kind: how its prompt is measured and where that stands, and the names of its output's limit."""

    measure: Callable[[Mapping[str, Any]], Prompt | Rejected]
    prompt: str
    limits: tuple[str, ...]


_CHAT_LIMITS = ("max_completion_tokens", "max_tokens")
_TRAITS = {
    Kind.CHAT: _Traits(prompts.of_chat, "messages", _CHAT_LIMITS),
    Kind.COMPLETION: _Traits(prompts.of_completion, "prompt", _CHAT_LIMITS),
    Kind.RESPONSES: _Traits(prompts.of_response, "input", ("max_output_tokens",)),
    Kind.EMBEDDINGS: _Traits(prompts.of_embeddings, "input", ()),
}
_NO_OBJECT = Rejected("the body must be a JSON object")


def parse(kind: Kind, body: object, served: Served) -> Request | Rejected:
    """`body` is the decoded JSON of a request to `kind`; the first fault found refuses it."""
    if not isinstance(body, Mapping):
        return _NO_OBJECT
    if fault := _model_fault(body, served) or _flags_fault(body):
        return fault
    if kind is Kind.RESPONSES and (fault := _state_fault(body)):
        return fault
    traits = _TRAITS[kind]
    prompt = traits.measure(body)
    if isinstance(prompt, Rejected):
        return prompt
    if kind is Kind.EMBEDDINGS:
        return _embedding(prompt, served)
    limit = _max_tokens(body, kind, traits.limits)
    if isinstance(limit, Rejected):
        return limit
    context = served.max_context_tokens
    fewest = 1 if kind is Kind.RESPONSES and body.get("truncation") == "auto" else prompt.fewest_tokens
    if fewest + (limit or 1) > context:
        return _too_long(prompt, limit or 1, served, traits.prompt)
    options = body.get("stream_options") or {}
    return Request(
        kind,
        min(prompt.tokens, context - 1),
        prompt.exact,
        limit or context - fewest,
        stream=body.get("stream") is True,
        usage_wanted=options.get("include_usage") is True,
        whole=kind is Kind.RESPONSES and may_go_on(body.get("tools")),
    )


def passing_fault(body: object, served: Served) -> Rejected | None:
    """Of a request that is not for tokens: the rest of it is the engine's to judge."""
    return _model_fault(body, served) if isinstance(body, Mapping) else _NO_OBJECT


def _model_fault(body: Mapping[str, Any], served: Served) -> Rejected | None:
    """OpenAI's error for a model that is not this service's; a body need not name one."""
    model = body.get("model")
    if model is None or model == served.model:
        return None
    message = f"the model {_shown(model)} does not exist; this service offers {served.model!r}"
    return Rejected(message, "model", 404, "model_not_found")


def _embedding(prompt: Prompt, served: Served) -> Request | Rejected:
    if prompt.fewest_tokens > served.max_context_tokens:
        return _too_long(prompt, 0, served, "input")
    return Request(Kind.EMBEDDINGS, prompt.tokens, prompt.exact, 1, whole=True)


def _too_long(prompt: Prompt, output_tokens: int, served: Served, param: str) -> Rejected:
    asked = f"{prompt.fewest_tokens} prompt tokens" if prompt.exact else f"at least {prompt.fewest_tokens} tokens"
    more = f" and {output_tokens} to generate" if output_tokens else ""
    message = f"{asked}{more} exceed the context of {served.max_context_tokens}; shorten the {param}"
    return Rejected(message, param, code="context_length_exceeded")


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


def _state_fault(body: Mapping[str, Any]) -> Rejected | None:
    """Of a response that would have to be kept, or built on one that was: the next request may meet another replica."""
    if body.get("background") not in (None, False):
        message = "background must be false: no response is kept for later; leave the connection open, or stream it"
        return Rejected(message, "background")
    for name in ("previous_response_id", "conversation"):
        if body.get(name) is not None:
            return Rejected(f"no response is kept, so {name} leads nowhere; send the whole conversation as input", name)
    return None


def _max_tokens(body: Mapping[str, Any], kind: Kind, names: tuple[str, ...]) -> int | Rejected | None:
    """None: to the end of the context."""
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            return Rejected(f"{name} must be a whole number from 1 up, got {_shown(value)}", name)
        return value
    return COMPLETION_MAX_TOKENS if kind is Kind.COMPLETION and "max_tokens" not in body else None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
