"""How a request ended: one closed enum, so that arrivals are always the sum of outcomes.

Standard library only; the router, the engines, the simulator and the reports all use it.
"""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The end of one request, with the HTTP status that the client sees."""

    COMPLETED = "completed"  # 200, the whole answer was sent
    REJECTED = "rejected"  # 400 and other 4xx: the client's own fault (invalid, longer than the context)
    SHED = "shed"  # 429 with a computed Retry-After: it could not have met its objective
    NO_ENDPOINT = "no_endpoint"  # 503: no replica of the needed role is ready
    UPSTREAM_FAILED = "upstream_failed"  # 502: an engine failed and no retry was possible
    TIMED_OUT = "timed_out"  # 504: a bound of ours passed before the answer was complete
    CLIENT_GONE = "client_gone"  # the client closed its connection first

    @property
    def http_status(self) -> int:
        return _STATUS[self]

    @property
    def openai_type(self) -> str:
        """The `type` of OpenAI's error body; its `code` is the outcome itself."""
        return "invalid_request_error" if self is Outcome.REJECTED else _TYPE.get(self, "server_error")


_STATUS = {
    Outcome.COMPLETED: 200,
    Outcome.REJECTED: 400,
    Outcome.SHED: 429,
    Outcome.NO_ENDPOINT: 503,
    Outcome.UPSTREAM_FAILED: 502,
    Outcome.TIMED_OUT: 504,
    Outcome.CLIENT_GONE: 499,
}
_TYPE = {Outcome.SHED: "rate_limit_error"}


def error_body(
    code: Outcome | str, message: str, *, type_: str | None = None, param: str | None = None
) -> dict[str, object]:
    """OpenAI's error body; `code` is the outcome or OpenAI's own code (`model_not_found`)."""
    kind = type_ or (code.openai_type if isinstance(code, Outcome) else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": str(code)}}
