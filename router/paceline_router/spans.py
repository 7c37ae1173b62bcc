"""What the trace of a request says: a span for the request and one for each leg, in OpenTelemetry's GenAI words.

Names and attributes follow the GenAI and HTTP semantic conventions (1.37); what is Paceline's own begins with
`paceline.`. What follows traces (tracing.py) makes a `Trace` a request; without it `PassOn` sends the client's trace
context on as it came. Invariants: no text of a prompt or an answer, no key, tenant or error message is in a span; an
attribute that is not known is left out. Times are model seconds. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

from paceline_api.headers import TRACEPARENT
from paceline_api.outcomes import Outcome
from paceline_api.slo import Verdict

from paceline_router.attempts import Fault, Leg
from paceline_router.replica import Replica

Header = tuple[bytes, bytes]
Value = str | int | float | bool
Attributes = dict[str, Value]

FIRST_TOKEN = "first_token"  # the event of a request's span
PROVIDER = "vllm"  # none of the convention's well-known providers: it allows others
_OPERATIONS = {"/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}
_OPERATION = "chat"  # of every other path
_FAILED = frozenset({Outcome.NO_ENDPOINT, Outcome.UPSTREAM_FAILED, Outcome.TIMED_OUT})
_TRACEPARENT = re.compile(rb"[0-9a-f-]{1,128}")
_PARENT = TRACEPARENT.encode()


class Received(Protocol):
    """What a trace begins with: a request as the HTTP server hands it over."""

    received_at: float
    path: str

    def header(self, name: bytes) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended. `status` 0: its client left before an answer; None: not known."""

    outcome: Outcome
    status: int
    request_id: str
    slo_class: str
    max_tokens: int | None = None
    usage: tuple[int, int] | None = None  # prompt and output tokens, as the engine counted them
    verdict: Verdict | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    predicted_ttft_s: float | None = None  # from the arrival on, as `ttft_s`
    queue_s: float | None = None
    simulated: bool = False


class Trace:
    """Of one request. This one records nothing: what it was given goes on to the engines."""

    __slots__ = ("_context",)

    records = False

    def __init__(self, context: tuple[Header, ...] = ()) -> None:
        self._context = context

    def leg(self, leg: Leg, replica: Replica, host: str, port: int) -> tuple[Header, ...]:
        """A leg is about to be sent to `replica`; the trace context to send along. One at a time."""
        return self._context

    def leg_over(self, result: str, fault: Fault | None) -> None:
        """The current leg is over; `result` as in paceline_legs_total."""

    def first_token(self) -> None:
        """The first content is about to be sent."""

    def end(self, ending: Ending) -> None:
        """Nothing follows. Of a trace that does not record it need not be told."""


class Tracer(Protocol):
    """Makes the traces of one router."""

    def begin(self, received: Received) -> Trace: ...


class PassOn:
    """The tracer of a router that traces nothing."""

    def begin(self, received: Received) -> Trace:
        parent = received.header(_PARENT)
        if parent is None or _TRACEPARENT.fullmatch(parent) is None:
            return _NOTHING
        return Trace(((_PARENT, parent),))


_NOTHING = Trace()


def operation(path: str) -> str:
    """`gen_ai.operation.name` of a request to `path`."""
    return _OPERATIONS.get(path, _OPERATION)


def at_begin(path: str, model: str) -> Attributes:
    """Of a request's span, as it is received."""
    return {
        "gen_ai.operation.name": operation(path),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "http.request.method": "POST",
        "url.path": path,
    }


def at_end(ending: Ending) -> Attributes:
    """Of a request's span, when it has ended."""
    prompt_tokens, output_tokens = ending.usage or (None, None)
    return _known(
        {
            "gen_ai.request.max_tokens": ending.max_tokens,
            "gen_ai.usage.input_tokens": prompt_tokens,
            "gen_ai.usage.output_tokens": output_tokens,
            "http.response.status_code": ending.status or None,
            "error.type": None if ending.outcome is Outcome.COMPLETED else str(ending.outcome),
            "paceline.request_id": ending.request_id,
            "paceline.slo_class": ending.slo_class,
            "paceline.outcome": str(ending.outcome),
            "paceline.slo.result": None if ending.verdict is None else str(ending.verdict),
            "paceline.ttft_seconds": ending.ttft_s,
            "paceline.tpot_seconds": ending.tpot_s,
            "paceline.predicted_ttft_seconds": ending.predicted_ttft_s,
            "paceline.queue_seconds": ending.queue_s,
            "paceline.simulated": ending.simulated or None,
        }
    )


def has_failed(ending: Ending) -> bool:
    """Whether the span's status is an error: what clients cause, and a refusal under overload, are 4xx and are not."""
    return ending.outcome in _FAILED


def of_leg(leg: Leg, replica: Replica, host: str, port: int, path: str, model: str) -> Attributes:
    """Of a leg's span, as it is sent. Tokens stand with the request alone: who adds up spans counts them once."""
    return {
        "gen_ai.operation.name": operation(path),
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "server.address": host,
        "server.port": port,
        "paceline.leg": str(leg),
        "paceline.replica": replica.name,
        "paceline.role": str(replica.role),
        "paceline.pool": replica.pool,
    }


def leg_end(result: str, fault: Fault | None) -> tuple[Attributes, bool]:
    """Of a leg's span, when it is over; and whether it failed. `refused` without a fault: the client's own."""
    error = str(fault) if fault is not None else str(Outcome.REJECTED) if result == "refused" else None
    return _known({"paceline.leg.result": result, "error.type": error}), error is not None


def _known(attributes: Mapping[str, Value | None]) -> Attributes:
    return {
        name: value
        for name, value in attributes.items()
        if value is not None and (not isinstance(value, float) or isfinite(value))
    }
