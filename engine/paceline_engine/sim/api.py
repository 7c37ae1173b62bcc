"""What a request to the simulated engine asks for: a body checked field by field before anything is done.

Follows vLLM's OpenAI server where it differs from OpenAI: `ignore_eos`, `min_tokens`, token ids as prompt,
`kv_transfer_params`. `stop` is checked and otherwise without effect: made-up words are not searched.
`kv_transfer_params` count only from a caller with the service's token; anyone else's are dropped.
Invariant: nothing that a client sends raises; it becomes a `Refused` that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from paceline_engine.pd import KV_PARAMS, InvalidTransfer, RemoteKV, asks_remote_decode, is_allowed_host, read_remote_kv
from paceline_engine.request import Leg
from paceline_engine.sim import text

COMPLETION_MAX_TOKENS = 16  # OpenAI's and vLLM's default of /v1/completions
MOST_IDS = 2 * text.SPELLED


@dataclass(frozen=True, slots=True)
class Served:
    """What this engine serves, and to which hosts it may go for KV."""

    name: str
    max_model_len: int
    block_size: int
    kv_hosts: frozenset[str]


@dataclass(frozen=True, slots=True)
class Refused:
    """An answer that is an error; `code` is OpenAI's."""

    message: str
    param: str | None = None
    status: int = 400
    code: str = "invalid_request"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that can be served. The answer ends after `max_tokens`, or by itself after `answer_tokens`."""

    chat: bool
    prompt: text.Prompt
    max_tokens: int
    answer_tokens: int
    stream: bool
    include_usage: bool
    leg: Leg
    remote: RemoteKV | None
    echoed: Mapping[str, Any] | None = None  # of a response: what of the request its answer says again

    @property
    def ends_by_itself(self) -> bool:
        return self.answer_tokens < self.max_tokens


def read_ask(chat: bool, body: object, served: Served, *, trusted: bool) -> Ask | Refused:
    """The request in a decoded JSON body; the first fault found refuses it."""
    if not isinstance(body, dict):
        return Refused("the body must be a JSON object")
    if fault := model_fault(body, served) or _flags_fault(body):
        return fault
    prompt = _chat_prompt(body.get("messages"), served) if chat else _prompt(body.get("prompt"), served)
    if isinstance(prompt, Refused):
        return prompt
    limits = _limits(chat, body, prompt.tokens, served)
    if isinstance(limits, Refused):
        return limits
    max_tokens, min_tokens = limits
    transfer = _transfer(body.get(KV_PARAMS), served) if trusted else None
    if isinstance(transfer, Refused):
        return transfer
    leg, remote = transfer or (Leg.WHOLE, None)
    if leg is Leg.PREFILL and max_tokens != 1:
        return Refused("a prefill leg generates one token: max_tokens must be 1", "max_tokens")
    natural = max_tokens if body.get("ignore_eos") else max(min_tokens, text.natural_tokens(prompt.seed))
    options = body.get("stream_options") or {}
    return Ask(
        chat,
        prompt,
        max_tokens,
        min(natural, max_tokens),
        body.get("stream") is True,
        options.get("include_usage") is True,
        leg,
        remote,
    )


def model_fault(body: Mapping[str, Any], served: Served) -> Refused | None:
    """vLLM's words for a model that is not served."""
    model = body.get("model")
    if model is None or model == served.name:
        return None
    return Refused(f"The model `{shown(model)}` does not exist.", "model", 404, "model_not_found")


def _flags_fault(body: Mapping[str, Any]) -> Refused | None:
    for name in ("stream", "ignore_eos"):
        if not isinstance(body.get(name), bool | None):
            return Refused(f"{name} must be true or false", name)
    if not isinstance(body.get("stream_options"), dict | None):
        return Refused("stream_options must be an object", "stream_options")
    for name in ("n", "best_of"):
        value = body.get(name)
        if value is not None and (value != 1 or isinstance(value, bool)):
            return Refused(f"{name} must be 1", name)
    stop = body.get("stop")
    if not (stop is None or isinstance(stop, str) or _all(stop, str)):
        return Refused("stop must be a text or a list of texts", "stop")
    return None


def _limits(chat: bool, body: Mapping[str, Any], prompt_tokens: int, served: Served) -> tuple[int, int] | Refused:
    """(max_tokens, min_tokens) within the context, or vLLM's words for why not."""
    asked: int | None = None
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is not None:
            if not _whole(value) or value < 1:
                return Refused(f"{name} must be at least 1, got {shown(value)}.", name)
            asked = value
            break
    room = served.max_model_len - prompt_tokens
    wanted = asked if asked is not None else max(room, 1) if chat else COMPLETION_MAX_TOKENS
    if wanted > room:
        return _too_long(f"{prompt_tokens + wanted} tokens ({prompt_tokens}", wanted, chat, served)
    min_tokens = body.get("min_tokens")
    if min_tokens is None:
        return wanted, 0
    if not _whole(min_tokens) or not 0 <= min_tokens <= wanted:
        return Refused(f"min_tokens must be from 0 to max_tokens={wanted}, got {shown(min_tokens)}.", "min_tokens")
    return wanted, min_tokens


def _too_long(requested: str, completion_tokens: int, chat: bool, served: Served) -> Refused:
    what = "messages" if chat else "prompt"
    return Refused(
        f"This model's maximum context length is {served.max_model_len} tokens. However, you requested {requested} in "
        f"the {what}, {completion_tokens} in the completion). Please reduce the length of the {what} or completion.",
        what,
        code="context_length_exceeded",
    )


def _prompt(prompt: object, served: Served) -> text.Prompt | Refused:
    if isinstance(prompt, list) and len(prompt) == 1 and not _whole(prompt[0]):
        prompt = prompt[0]
    if isinstance(prompt, str):
        if not prompt:
            return Refused("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        return _too_many_chars(len(prompt), False, served) or text.of_text(prompt, served.block_size)
    if not isinstance(prompt, list) or not prompt:
        return Refused("prompt must be a text or a list of token ids", "prompt")
    if set(map(type, prompt)) != {int}:
        return Refused("prompt must be one text or one list of token ids; send one request per prompt", "prompt")
    if min(prompt) < 0 or max(prompt) >= MOST_IDS:
        return Refused(f"Token id is out of vocabulary: ids are from 0 to {MOST_IDS - 1}", "prompt")
    if len(prompt) > 2 * served.max_model_len:  # not worth hashing
        return _too_long(f"{len(prompt)} tokens ({len(prompt)}", 0, False, served)
    return text.from_outside(prompt, served.block_size)


def _chat_prompt(messages: object, served: Served) -> text.Prompt | Refused:
    turns = read_turns(messages)
    if isinstance(turns, Refused):
        return turns
    chars = sum(len(role) + len(content) for role, content in turns)
    return _too_many_chars(chars, True, served) or text.of_chat(turns, served.block_size)


def read_turns(messages: object) -> list[tuple[str, str]] | Refused:
    """(role, content) of each message of a chat."""
    if not isinstance(messages, list) or not messages:
        return Refused("messages must be a list of at least one message", "messages")
    turns: list[tuple[str, str]] = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return Refused(f"messages[{i}] must be an object with a role", "messages")
        content = _content(message.get("content"))
        if content is None:
            return Refused(f"messages[{i}].content must be a text or a list of text parts", "messages")
        turns.append((message["role"], content))
    return turns


def _content(content: object) -> str | None:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    texts = [part.get("text") if isinstance(part, dict) else None for part in content]
    return "".join(t for t in texts if isinstance(t, str)) if _all(texts, str) else None


def _too_many_chars(chars: int, chat: bool, served: Served) -> Refused | None:
    """Refuses a text that is too long for any tokenization, before time is spent on one."""
    fewest = chars // text.LONGEST_PIECE
    return _too_long(f"at least {fewest} tokens ({fewest}", 0, chat, served) if fewest > served.max_model_len else None


def _transfer(params: object, served: Served) -> tuple[Leg, RemoteKV | None] | Refused | None:
    """Which leg `kv_transfer_params` make of a request; None when they ask for nothing."""
    if params is None:
        return None
    if not isinstance(params, dict):
        return Refused(f"{KV_PARAMS} must be an object", KV_PARAMS)
    if asks_remote_decode(params):
        return Leg.PREFILL, None
    if params.get("do_remote_prefill") is not True:
        return None
    try:
        remote = read_remote_kv(params)
    except InvalidTransfer as e:
        return Refused(str(e), KV_PARAMS)
    if not isfinite(remote.remote_blocks_expiry_time):
        return Refused(f"{KV_PARAMS}.remote_blocks_expiry_time must be finite", KV_PARAMS)
    if not is_allowed_host(remote.remote_host, served.kv_hosts):
        message = f"{KV_PARAMS}.remote_host {remote.remote_host!r} is none of the hosts that KV may come from"
        return Refused(message, KV_PARAMS)
    return Leg.DECODE, remote


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _all(values: object, kind: type) -> bool:
    return isinstance(values, Sequence) and all(isinstance(v, kind) for v in values)


def shown(value: object) -> str:
    shown = value if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
