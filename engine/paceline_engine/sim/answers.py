"""The bytes of an answer, as vLLM's OpenAI server writes them: server-sent chunks, or one JSON object.

What does not change from token to token is encoded once a request; a token costs one join. Words are plain ASCII, so
they need no JSON escaping (`text.word`). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from paceline_api.outcomes import error_body

from paceline_engine.pd import KV_PARAMS
from paceline_engine.sim import text

DONE = b"data: [DONE]\n\n"


def error(message: str, *, code: str, status: int, param: str | None = None) -> bytes:
    """OpenAI's error body."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return orjson.dumps(error_body(code, message, type_=kind, param=param))


def error_event(message: str, code: str) -> bytes:
    """What ends a stream that had begun and cannot be completed."""
    return b"data: " + error(message, code=code, status=503) + b"\n\n"


class Answer:
    """Encodes one request's answer; `tokens` are output tokens."""

    __slots__ = ("_after", "_before", "_chat", "_created", "_head", "_id", "_model", "_prompt")

    def __init__(self, chat: bool, id_: str, created: int, model: str, prompt: text.Prompt) -> None:
        self._chat = chat
        self._id = id_
        self._created = created
        self._model = model
        self._prompt = prompt
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = orjson.dumps({"id": id_, "object": kind, "created": created, "model": model})[:-1]
        self._head = b"data: " + head
        value = b'"delta":{"content":"' if chat else b'"text":"'
        self._before = self._head + b',"choices":[{"index":0,' + value
        self._after = (b'"}' if chat else b'"') + b',"logprobs":null,"finish_reason":'

    def token(self, i: int, finish_reason: bytes = b"null") -> bytes:
        """The event of output token i; the first of a chat brings the role event along. `finish_reason` is JSON."""
        piece = text.word(self._prompt.seed, i).encode()
        event = b"%b%b%b%b}]}\n\n" % (self._before, piece, self._after, finish_reason)
        if i or not self._chat:
            return event
        role = (
            b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}'
        )
        return self._head + role + b"\n\n" + event

    def last(self, tokens: int, reason: str, *, include_usage: bool) -> bytes:
        """The last of `tokens` events and what ends the stream."""
        event = self.token(tokens - 1, b'"%b"' % reason.encode())
        if not include_usage:
            return event + DONE
        usage = orjson.dumps(self._usage(tokens))
        return b'%b%b,"choices":[],"usage":%b}\n\n%b' % (event, self._head, usage, DONE)

    def whole(self, tokens: int, finish_reason: str, kv_params: Mapping[str, Any] | None) -> bytes:
        """The answer that is not streamed."""
        words = text.answer(self._prompt.seed, tokens)
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason, "stop_reason": None}
        choice |= {"message": {"role": "assistant", "content": words}} if self._chat else {"text": words}
        body = {
            "id": self._id,
            "object": "chat.completion" if self._chat else "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice],
            "usage": self._usage(tokens),
            KV_PARAMS: kv_params,
        }
        return orjson.dumps(body)

    def _usage(self, tokens: int) -> dict[str, int]:
        prompt = self._prompt.tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}
