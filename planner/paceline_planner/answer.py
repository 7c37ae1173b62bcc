"""Listens to one streamed answer and writes down how it went: first token, gaps, end, usage, outcome.

Times are read when the bytes arrive. A completions event with a choice carries a token; a chat event does when its
delta holds content (the role event does not). Tokens are counted by `usage`, by events only where a server sends none.
Invariant: `on_done` is called exactly once, with an outcome or a lost connection on the record.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

import orjson
from paceline_api import headers as names
from paceline_api.outcomes import Outcome
from paceline_api.slo import Course
from paceline_engine.http1 import ClientError, ErrorKind, EventSplitter, EventTooLargeError, Header

from paceline_planner.aggregate import Record

_ERROR_BYTES = 64 * 1024  # an error body beyond this says nothing more
_STATUS = {429: Outcome.SHED, 503: Outcome.NO_ENDPOINT, 504: Outcome.TIMED_OUT, 499: Outcome.CLIENT_GONE}
_TIMEOUTS = frozenset({ErrorKind.TIMEOUT_HEAD, ErrorKind.TIMEOUT_IDLE})
_SIMULATED = names.SIMULATED.encode()


def outcome_of(status: int, body: bytes) -> Outcome:
    """The outcome of an answer that is not 200: its error's `code` where that is one, else from the status."""
    try:
        return Outcome(orjson.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        fault = Outcome.REJECTED if 400 <= status < 500 else Outcome.UPSTREAM_FAILED
        return _STATUS.get(status, fault)


class Answer:
    """A `ResponseListener` for one request sent at `course.arrival_s`; `now` gives model seconds on the same clock."""

    def __init__(self, class_name: str, course: Course, now: Callable[[], float], on_done: Callable[[Answer], None]):
        self._gaps: array[float] = array("f")
        self.record = Record(class_name, course, self._gaps)
        self.simulated = False
        self.counted_by_usage = False
        self._now = now
        self._on_done = on_done
        self._status = 0
        self._error = b""
        self._splitter = EventSplitter()
        self._last_token_s = 0.0
        self._complete = False
        self._failure: Outcome | None = None

    def on_head(self, status: int, headers: list[Header]) -> None:
        self._status = status
        self.simulated = (_SIMULATED, b"1") in headers

    def on_body(self, data: bytes) -> None:
        if self._status != 200:
            self._error = (self._error + data)[:_ERROR_BYTES]
            return
        at = self._now()
        try:
            for payload in self._splitter.feed(data):
                self._read_event(payload, at)
        except (EventTooLargeError, orjson.JSONDecodeError):
            self._failure = Outcome.UPSTREAM_FAILED  # no stream of ours; its end follows

    def on_end(self) -> None:
        if self._status != 200:
            self.finish(outcome_of(self._status, self._error))
        elif self._complete and self._failure is None:
            self.finish(Outcome.COMPLETED)
        else:
            self.finish(self._failure or Outcome.UPSTREAM_FAILED)

    def on_error(self, error: ClientError) -> None:
        if self._failure is not None:  # the server said what went wrong before it closed
            self.finish(self._failure)
        elif error.kind in _TIMEOUTS:
            self.finish(Outcome.TIMED_OUT)
        else:
            self.record.connection_lost = True
            self.finish(Outcome.UPSTREAM_FAILED)

    def finish(self, outcome: Outcome) -> None:
        """Ends the record now; the caller has aborted the call, or it has ended."""
        course = self.record.course
        course.outcome = outcome
        course.end_s = self._now()
        self._on_done(self)

    def _read_event(self, payload: bytes, at: float) -> None:
        if payload == b"[DONE]":
            self._complete = True
            return
        event = orjson.loads(payload)
        if not isinstance(event, dict):
            return
        if error := event.get("error"):
            self._failure = outcome_of(500, orjson.dumps({"error": error}))
        if choices := event.get("choices"):
            choice = choices[0]
            self._complete = self._complete or choice.get("finish_reason") is not None
            if _carries_token(choice):
                self._add_token(at)
        if usage := event.get("usage"):
            self.record.course.output_tokens = int(usage.get("completion_tokens") or 0)
            self.record.course.prompt_tokens = int(usage.get("prompt_tokens") or self.record.course.prompt_tokens)
            self.counted_by_usage = True

    def _add_token(self, at: float) -> None:
        course = self.record.course
        if course.first_token_s is None:
            course.first_token_s = at
        else:
            self._gaps.append(at - self._last_token_s)
        self._last_token_s = at
        if not self.counted_by_usage:
            course.output_tokens += 1


def _carries_token(choice: dict[str, object]) -> bool:
    if "delta" not in choice:
        return True
    delta = choice["delta"]
    return isinstance(delta, dict) and any(
        delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls")
    )
