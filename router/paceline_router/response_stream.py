"""Reads the stream of a response (/v1/responses): typed events, of which those that end in `.delta` carry tokens.

An event names its type in a line of its own, by which most are passed on unread. What only announces the response is
held back as a role event is; a call of a tool begins with its name, which is content too. There is no `[DONE]`: the
event with the whole response ends the stream, and tells `usage`. Invariant: as of stream.py. Does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

from paceline_router.stream import AnswerStream, error_message, error_status, read_usage

_ENDS = frozenset({"response.completed", "response.incomplete"})
_FAILURES = frozenset({"response.failed", "error"})
_SPECIAL = re.compile(rb'event: ?(?:error|response\.(?:completed|incomplete|failed))\n|"error":')


class ResponseStream(AnswerStream):
    """One streamed response."""

    __slots__ = ()

    special: ClassVar[re.Pattern[bytes]] = _SPECIAL
    mark: ClassVar[bytes] = b".delta\n"  # a line's end: within JSON it would be escaped

    def _passes(self, event: bytes) -> bool:
        at = 0 if event.startswith(b"data:") else event.find(b"\ndata:") + 1
        if not event.startswith(b"data:", at):
            return True
        payload = event[at + 5 :].strip()
        try:
            answer = orjson.loads(payload)
        except orjson.JSONDecodeError:
            self.error = "the engine sent an event that is not JSON"
            return False
        if isinstance(answer, dict):
            self._note(answer, payload)
        return self.error is None

    def _note(self, answer: Mapping[str, Any], payload: bytes) -> None:
        kind = answer.get("type")
        response = answer.get("response")
        if answer.get("error") or kind in _FAILURES:
            self.error = _failure(answer, response)
            if status := error_status(answer):
                self.refusal = status, payload
        elif kind in _ENDS:
            self.usage = read_usage(response) or self.usage
            self.finished = self.done = True
        elif isinstance(kind, str) and kind.endswith(".delta"):
            if answer.get("delta"):
                self.content = True
                self.new_tokens += 1
        elif kind == "response.output_item.added":
            item = answer.get("item")
            self.content = self.content or (isinstance(item, Mapping) and str(item.get("type")).endswith("_call"))


def _failure(answer: Mapping[str, Any], response: object) -> str:
    """The message of an error event, of OpenAI's or of a response that failed."""
    if answer.get("error"):
        return error_message(answer)
    return error_message(response if isinstance(response, Mapping) else {"error": answer.get("message")})
