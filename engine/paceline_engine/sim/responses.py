"""/v1/responses of the simulated engine: a body read as the chat that it stands for, and the answer as vLLM words it.

As in vLLM without a store: nothing is kept, so that nothing can be continued or fetched later. A stream is typed
events, from `response.created` to `response.completed`, which holds the whole answer; there is no `[DONE]`. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from paceline_engine.pd import KV_PARAMS
from paceline_engine.sim import text
from paceline_engine.sim.answers import Answer
from paceline_engine.sim.api import Ask, Refused, Served, read_ask

_PASSED = ("model", "ignore_eos", "stop", "stream", "stream_options", KV_PARAMS)
_NAMES = {"messages": "input", "max_completion_tokens": "max_output_tokens"}
_TEXTS = ("content", "arguments", "output", "input", "summary")
_NO_STORE = Refused("This engine keeps no responses and therefore has no background mode.", "background")
# What a response says again of its request, and what where that says nothing.
_ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "metadata": None,
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "background": False,
    "max_tool_calls": None,
    "previous_response_id": None,
    "prompt": None,
    "reasoning": None,
    "service_tier": "auto",
    "text": None,
    "top_logprobs": None,
    "truncation": "disabled",
    "user": None,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def read_response(body: object, served: Served, *, trusted: bool) -> Ask | Refused:
    """The request in a decoded JSON body; the first fault found refuses it."""
    if not isinstance(body, dict):
        return Refused("the body must be a JSON object")
    if body.get("background"):
        return _NO_STORE
    if (earlier := body.get("previous_response_id")) is not None:
        return Refused(f"Response with id '{str(earlier)[:80]}' not found.", "response_id", 404, "not_found")
    messages = _messages(body)
    if isinstance(messages, Refused):
        return messages
    chat = {name: body[name] for name in _PASSED if name in body}
    chat |= {"messages": messages, "max_completion_tokens": body.get("max_output_tokens")}
    ask = read_ask(True, chat, served, trusted=trusted)
    if isinstance(ask, Refused):
        return replace(ask, param=_NAMES.get(ask.param or "", ask.param))
    echoed = {name: default if body.get(name) is None else body[name] for name, default in _ECHOED.items()}
    return replace(ask, echoed={**echoed, "max_output_tokens": ask.max_tokens})


def _messages(body: Mapping[str, Any]) -> list[dict[str, object]] | Refused:
    """`instructions` and `input` as turns of a chat; what is no message counts as its texts."""
    given, instructions = body.get("input"), body.get("instructions")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return Refused("input must be a text or a list of items", "input")
    if not isinstance(instructions, str | None):
        return Refused("instructions must be a text", "instructions")
    turns: list[dict[str, object]] = [{"role": "system", "content": instructions}] if instructions else []
    for item in items:
        content = next((item[name] for name in _TEXTS if item.get(name) is not None), None)
        turns.append({"role": item.get("role", item.get("type")), "content": content})
    return turns


class ResponseAnswer:
    """Encodes one response, as `Answer` does others."""

    __slots__ = ("_after", "_before", "_echoed", "_head", "_id", "_item", "_prompt")

    def __init__(self, id_: str, created: int, model: str, prompt: text.Prompt, echoed: Mapping[str, Any]) -> None:
        self._id = f"resp_{id_}"
        self._head = {"id": self._id, "created_at": created, "model": model, "object": "response"}
        self._echoed = echoed
        self._prompt = prompt
        self._item = f"msg_{id_}"
        place = {"item_id": self._item, "output_index": 0, "content_index": 0, "logprobs": []}
        kind = b"response.output_text.delta"
        self._before = b'event: %b\ndata: {"type":"%b",%b,"sequence_number":' % (kind, kind, orjson.dumps(place)[1:-1])
        self._after = b'"}\n\n'

    def token(self, i: int) -> bytes:
        """The event of output token i; the first brings along what announces it."""
        piece = text.word(self._prompt.seed, i).encode()
        event = b'%b%d,"delta":"%b%b' % (self._before, i + 4, piece, self._after)
        return event if i else self._opening() + event

    def last(self, tokens: int, reason: str, *, include_usage: bool) -> bytes:
        """The last of `tokens` events and what ends the stream; a response tells its usage unasked."""
        words, at = text.answer(self._prompt.seed, tokens), tokens + 4
        place = {"item_id": self._item, "output_index": 0}
        ends: tuple[tuple[str, Mapping[str, Any]], ...] = (
            ("response.output_text.done", {**place, "content_index": 0, "text": words, "logprobs": []}),
            ("response.content_part.done", {**place, "content_index": 0, "part": _part(words)}),
            ("response.output_item.done", {"output_index": 0, "item": self._message(words)}),
            ("response.completed", {"response": self._response(words, tokens, reason, None)}),
        )
        events = (_event(kind, at + i, fields) for i, (kind, fields) in enumerate(ends))
        return self.token(tokens - 1) + b"".join(events)

    def whole(self, tokens: int, reason: str, kv_params: Mapping[str, Any] | None) -> bytes:
        """The answer that is not streamed."""
        return orjson.dumps(self._response(text.answer(self._prompt.seed, tokens), tokens, reason, kv_params))

    def _opening(self) -> bytes:
        begun = {**self._head, **self._echoed, "output": [], "status": "in_progress", "usage": None, KV_PARAMS: None}
        place = {"output_index": 0}
        item = self._message("") | {"content": [], "status": "in_progress"}
        part = {**place, "item_id": self._item, "content_index": 0, "part": _part("")}
        starts: tuple[tuple[str, Mapping[str, Any]], ...] = (
            ("response.created", {"response": begun}),
            ("response.in_progress", {"response": begun}),
            ("response.output_item.added", {**place, "item": item}),
            ("response.content_part.added", part),
        )
        return b"".join(_event(kind, i, fields) for i, (kind, fields) in enumerate(starts))

    def _response(self, words: str, tokens: int, reason: str, kv_params: Mapping[str, Any] | None) -> dict[str, Any]:
        prompt = self._prompt.tokens
        cut = reason == "length"
        return {
            **self._head,
            **self._echoed,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._message(words)],
            "usage": {"input_tokens": prompt, "output_tokens": tokens, "total_tokens": prompt + tokens},
            KV_PARAMS: kv_params,
        }

    def _message(self, words: str) -> dict[str, Any]:
        head = {"id": self._item, "type": "message", "role": "assistant", "status": "completed"}
        return {**head, "content": [_part(words)]}


def _part(words: str) -> dict[str, Any]:
    return {"type": "output_text", "text": words, "annotations": [], "logprobs": None}


def _event(kind: str, number: int, fields: Mapping[str, Any]) -> bytes:
    data = orjson.dumps({"type": kind, "sequence_number": number, **fields})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def answer_to(ask: Ask, request_id: str, created: int, model: str) -> Answer | ResponseAnswer:
    """Encodes what `ask` is answered."""
    if ask.echoed is not None:
        return ResponseAnswer(request_id, created, model, ask.prompt, ask.echoed)
    return Answer(ask.chat, f"{'chatcmpl' if ask.chat else 'cmpl'}-{request_id}", created, model, ask.prompt)
