"""Reads an engine's answer while it is passed on: where generated content begins, how many tokens came, and `usage`.

Whole events are passed on as they come. What precedes the first content (role events, comments) is held back and goes
out with it, so that until then the request can still be retried. The usage event that only the router asked for is
left out. Invariant: the bytes passed on are the engine's events in order, however the stream was cut. Does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson

MAX_EVENT_BYTES = 4 * 2**20

# What makes an event more than one more token. Inside a JSON string its quotes would be escaped.
SPECIAL = re.compile(rb'"usage": ?\{|"finish_reason": ?"|"error":|\[DONE\]')


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the engine counted them."""

    prompt_tokens: int
    output_tokens: int


def read_usage(answer: object) -> Usage | None:
    """`usage` of a decoded answer or event; None when absent or no usage."""
    usage = answer.get("usage") if isinstance(answer, Mapping) else None
    if not isinstance(usage, Mapping):
        return None
    if "input_tokens" in usage:  # of a response
        prompt, output = usage["input_tokens"], usage.get("output_tokens")
    else:
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if isinstance(prompt, int) and isinstance(output, int) and prompt >= 0 and output >= 0:
        return Usage(prompt, output)
    return None


class AnswerStream:
    """One streamed answer. After `feed`: `new_tokens` events of it carried content; `error` ends the stream.

    Once there was content, bytes without anything `special` are passed on unread, a token for each `mark` in them.
    """

    special: ClassVar[re.Pattern[bytes]] = SPECIAL
    mark: ClassVar[bytes] = b"\n\n"

    __slots__ = (
        "_find",
        "_held",
        "_hide_usage",
        "_mark",
        "_rest",
        "content",
        "done",
        "error",
        "finished",
        "new_tokens",
        "refusal",
        "usage",
    )

    def __init__(self, *, hide_usage: bool = False) -> None:
        self._find = self.special.search
        self._mark = self.mark
        self._hide_usage = hide_usage
        self._rest = b""
        self._held = b""
        self.content = False  # an event with generated content was passed on
        self.finished = False  # a finish reason came
        self.done = False  # data: [DONE]
        self.new_tokens = 0
        self.usage: Usage | None = None
        self.error: str | None = None
        self.refusal: tuple[int, bytes] | None = None  # of an error event with a status: that, and a body to go with it

    def feed(self, data: bytes) -> bytes:
        """What to pass on now; empty while nothing may go out yet."""
        buffer = self._rest + data if self._rest else data
        if b"\r" in buffer:
            buffer = buffer.replace(b"\r\n", b"\n")
        if buffer.endswith(b"\n\n"):
            self._rest = b""
        else:
            cut = buffer.rfind(b"\n\n") + 2
            if cut == 1:
                cut = 0
            buffer, self._rest = buffer[:cut], buffer[cut:]
            if len(self._rest) > MAX_EVENT_BYTES:
                self.error = f"the engine sent an event above {MAX_EVENT_BYTES} bytes"
        if self.content and self._find(buffer) is None:
            self.new_tokens = buffer.count(self._mark)
            return buffer
        return self._read(buffer)

    def _read(self, events: bytes) -> bytes:
        self.new_tokens = 0
        passed = b""
        for event in events.split(b"\n\n")[:-1]:
            if self._passes(event):
                passed += event + b"\n\n"
            if self.error is not None:
                break
        if not (self.content or self.finished):
            self._held += passed
            return b""
        passed, self._held = self._held + passed, b""
        return passed

    def _passes(self, event: bytes) -> bool:
        """Takes note of one event; whether the client gets it."""
        if not event.startswith(b"data:"):
            return True
        payload = event[5:].strip()
        if payload == b"[DONE]":
            self.done = True
            return True
        try:
            answer = orjson.loads(payload)
        except orjson.JSONDecodeError:
            self.error = "the engine sent an event that is not JSON"
            return False
        if not isinstance(answer, dict):
            return True
        if answer.get("error"):
            self.error = error_message(answer)
            if status := error_status(answer):
                self.refusal = status, payload
            return False
        self.usage = read_usage(answer) or self.usage
        choices = answer.get("choices") or ()
        for choice in choices:
            if has_content(choice):
                self.content = True
                self.new_tokens += 1
            if choice.get("finish_reason"):
                self.finished = True
        return bool(choices) or not self._hide_usage


def has_content(choice: Mapping[str, Any]) -> bool:
    """Whether one streamed choice carries something generated (chat or text)."""
    if choice.get("text"):
        return True
    delta = choice.get("delta") or {}
    return any(delta.get(part) for part in ("content", "tool_calls", "reasoning_content", "reasoning"))


def error_status(answer: Mapping[str, Any]) -> int:
    """The HTTP status that an error event stands for, as vLLM has it once it has begun a 200; 0: it says none."""
    error = answer.get("error")
    code = error.get("code") if isinstance(error, Mapping) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 0


def error_message(answer: object) -> str:
    """The message of an OpenAI error body, or a plain word for anything else."""
    error = answer.get("error") if isinstance(answer, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else error
    return str(message)[:500] if message else "the engine reported an error"
