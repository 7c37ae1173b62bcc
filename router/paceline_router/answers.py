"""What comes back from an engine, turned into what a job acts on.

Three listeners: leg 1's answer, a whole answer and a streamed one. Each ends its job's leg exactly once, by the
answer's end, a fault, or the job's own abort. Invariant: nothing reaches the client before the first content, and
nothing twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import orjson
from paceline_api.headers import SIMULATED
from paceline_engine.http1 import Call, ClientError, ErrorKind, Header
from paceline_engine.pd import KV_PARAMS

from paceline_router.attempts import Fault, fault_of_status
from paceline_router.request import Kind
from paceline_router.response_stream import ResponseStream
from paceline_router.stream import AnswerStream, error_message, read_usage

if TYPE_CHECKING:
    from paceline_router.job import Job

MAX_ANSWER_BYTES = 64 * 2**20
_SIMULATED = SIMULATED.encode()
_JSON: Header = (b"content-type", b"application/json")
_FAULTS = {
    ErrorKind.CONNECT: Fault.UNREACHED,
    ErrorKind.TIMEOUT_CONNECT: Fault.UNREACHED,
    ErrorKind.PROTOCOL: Fault.ERRORED,
}


class Answer(ABC):
    """What the three have in common: they gather the body of anything that is not a 200, and end their leg."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.call: Call | None = None
        self.status = 0
        self.headers: list[Header] = []
        self._pieces: list[bytes] = []
        self._bytes = 0

    def on_head(self, status: int, headers: list[Header]) -> None:
        self.status = status
        self.headers = [h for h in headers if h[0] in (b"content-type", _SIMULATED)]

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)
        self._bytes += len(data)
        if self._bytes > MAX_ANSWER_BYTES:
            self.fail(Fault.ERRORED, f"the engine's answer is larger than {MAX_ANSWER_BYTES} bytes")

    def on_end(self) -> None:
        body = b"".join(self._pieces)
        if self.status == 200:
            self.succeed(body)
            return
        fault = fault_of_status(self.status)
        if fault is None:
            self.job.relay_rejection(self.status, body, self.headers)
        else:
            self.job.leg_failed(fault, "refused", f"the engine answered {self.status}: {_message(body)}")

    def on_error(self, error: ClientError) -> None:
        fault = _FAULTS.get(error.kind, Fault.LOST)
        self.job.leg_failed(fault, "refused" if fault is Fault.UNREACHED else "failed", str(error))

    @abstractmethod
    def succeed(self, body: bytes) -> None:
        """The whole body of a 200."""

    def fail(self, fault: Fault, message: str) -> None:
        """Ends the call, then the leg; nothing if the job has ended both, as when its client left during a write."""
        if self.call is None or self.call.done:
            return
        self.call.abort()
        self.job.leg_failed(fault, "failed", message)


class PrefillAnswer(Answer):
    """Leg 1: where the KV lies."""

    def succeed(self, body: bytes) -> None:
        params = _decoded(body).get(KV_PARAMS)
        if isinstance(params, dict):
            self.job.prefilled(params)
        else:
            self.job.leg_failed(Fault.ERRORED, "completed", f"the prefill engine's answer has no {KV_PARAMS}")


class WholeAnswer(Answer):
    """An answer that is not streamed."""

    def succeed(self, body: bytes) -> None:
        usage = read_usage(_decoded(body))
        if usage is None:
            self.job.leg_failed(Fault.ERRORED, "completed", "the engine's answer has no usage")
        else:
            self.job.relay_whole(body, self.headers, usage)


class StreamedAnswer(Answer):
    """A streamed answer, passed on event by event."""

    def __init__(self, job: Job, stream: AnswerStream) -> None:
        super().__init__(job)
        self._stream = stream
        self._begun = False

    def on_body(self, data: bytes) -> None:
        if self.status != 200:
            super().on_body(data)
            return
        stream, job = self._stream, self.job
        events = stream.feed(data)
        if events:
            if not self._begun:
                self._begun = True
                job.begin_stream(self.headers)
            if stream.new_tokens:
                job.count_tokens(stream.new_tokens)
            if not job.exchange.write(events) and self.call is not None and not self.call.done:
                self.call.pause()
                job.exchange.on_writable = self.call.resume
            if stream.done:
                job.told_all(stream.usage)
        if stream.error is not None:
            self._fail_as(stream)

    def _fail_as(self, stream: AnswerStream) -> None:
        """An error event: by its status what an answer of that status is, unless the client has bytes."""
        status, body = stream.refusal or (0, b"")
        fault = fault_of_status(status) if status else Fault.ERRORED
        if fault is None and not self._begun:
            if self.call is not None and not self.call.done:
                self.call.abort()
                others = [h for h in self.headers if h[0] != _JSON[0]]
                self.job.relay_rejection(status, body, [*others, _JSON])
            return
        self.fail(fault or Fault.ERRORED, stream.error or "")

    def succeed(self, body: bytes) -> None:
        stream = self._stream
        if stream.done and self._begun:
            self.job.end_stream("completed")
        else:
            self.job.leg_failed(Fault.LOST, "failed", "the engine's stream ended before it was complete")


def client_answer(job: Job) -> Answer:
    """The listener of a leg whose answer is the client's."""
    request = job.request
    if not request.stream:
        return WholeAnswer(job)
    if request.kind is Kind.RESPONSES:
        return StreamedAnswer(job, ResponseStream())
    return StreamedAnswer(job, AnswerStream(hide_usage=not request.usage_wanted))


def _decoded(body: bytes) -> dict[str, object]:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _message(body: bytes) -> str:
    return error_message(_decoded(body))
