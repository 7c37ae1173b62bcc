"""What the spans of a request say, and what they leave out."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from paceline_api.outcomes import Outcome
from paceline_api.slo import Verdict
from paceline_router.attempts import Fault, Leg
from paceline_router.facts import Role
from paceline_router.replica import Replica
from paceline_router.spans import (
    Attributes,
    Ending,
    PassOn,
    at_begin,
    at_end,
    has_failed,
    leg_end,
    of_leg,
)

REPLICA = Replica("prefill0", Role.PREFILL, "prefill", 1, "r1")
BARE = Ending(Outcome.COMPLETED, 200, "id-1", "interactive")


class Received:
    """A request with these headers."""

    received_at = 0.0
    path = "/v1/completions"

    def __init__(self, **headers: bytes) -> None:
        self._headers = headers

    def header(self, name: bytes) -> bytes | None:
        return self._headers.get(name.decode())


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/responses", "chat"),
        ("/v1/completions", "text_completion"),
        ("/v1/embeddings", "embeddings"),
    ],
)
def test_an_operation_is_called_as_the_convention_calls_it(path: str, operation: str) -> None:
    assert at_begin(path, "m")["gen_ai.operation.name"] == operation
    assert of_leg(Leg.WHOLE, REPLICA, "h", 1, path, "m")["gen_ai.operation.name"] == operation


@pytest.mark.parametrize(
    ("over", "more"),
    [
        pytest.param({}, {}, id="what is not known is left out"),
        pytest.param({"predicted_ttft_s": inf, "ttft_s": nan}, {}, id="what is no number is left out"),
        pytest.param(
            {"usage": (7, 0)},
            {"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 0},
            id="a count of 0 is said",
        ),
        pytest.param({"verdict": Verdict.TPOT}, {"paceline.slo.result": "tpot"}, id="the verdict"),
        pytest.param({"simulated": True}, {"paceline.simulated": True}, id="an answer of a simulated engine"),
        pytest.param(
            {"ttft_s": 0.2, "tpot_s": 0.0, "predicted_ttft_s": 0.1, "queue_s": 0.0},
            {
                "paceline.ttft_seconds": 0.2,
                "paceline.tpot_seconds": 0.0,
                "paceline.predicted_ttft_seconds": 0.1,
                "paceline.queue_seconds": 0.0,
            },
            id="times",
        ),
    ],
)
def test_what_is_known_at_the_end_is_said(over: dict[str, Any], more: Attributes) -> None:
    assert at_end(replace(BARE, **over)) == {
        "http.response.status_code": 200,
        "paceline.request_id": "id-1",
        "paceline.slo_class": "interactive",
        "paceline.outcome": "completed",
        **more,
    }


@pytest.mark.parametrize(
    ("outcome", "status", "failed"),
    [
        (Outcome.COMPLETED, 200, False),
        (Outcome.REJECTED, 400, False),
        (Outcome.SHED, 429, False),
        (Outcome.CLIENT_GONE, 0, False),
        (Outcome.NO_ENDPOINT, 503, True),
        (Outcome.UPSTREAM_FAILED, 200, True),  # after the answer had begun
        (Outcome.TIMED_OUT, 504, True),
    ],
)
def test_an_outcome_is_an_error_where_the_service_failed(outcome: Outcome, status: int, failed: bool) -> None:
    ending = replace(BARE, outcome=outcome, status=status)
    said = at_end(ending)
    assert has_failed(ending) is failed
    assert said.get("error.type") == (None if outcome is Outcome.COMPLETED else outcome)
    assert said.get("http.response.status_code") == (status or None)


@pytest.mark.parametrize(
    ("result", "fault", "error"),
    [
        pytest.param("completed", None, None, id="a leg that did what it was sent for"),
        pytest.param("aborted", None, None, id="one that nobody waits for any more"),
        pytest.param("refused", None, "rejected", id="an answer to the client's own fault"),
        pytest.param("refused", Fault.REFUSED, "refused", id="a replica that takes nothing on"),
        pytest.param("completed", Fault.ERRORED, "errored", id="an answer that makes no sense"),
        pytest.param("failed", Fault.LOST, "lost", id="a connection that broke"),
    ],
)
def test_a_leg_failed_where_it_has_an_error(result: str, fault: Fault | None, error: str | None) -> None:
    said, failed = leg_end(result, fault)
    assert (said["paceline.leg.result"], said.get("error.type"), failed) == (result, error, error is not None)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        pytest.param(b"00-abc-def-01", ((b"traceparent", b"00-abc-def-01"),), id="as it came"),
        pytest.param(b"00-abc def", (), id="unless it is none"),
        pytest.param(None, (), id="nothing, where there was nothing"),
    ],
)
def test_without_traces_the_clients_context_goes_on(given: bytes | None, sent: tuple[tuple[bytes, bytes], ...]) -> None:
    trace = PassOn().begin(Received(**({} if given is None else {"traceparent": given})))
    assert not trace.records
    assert trace.leg(Leg.WHOLE, REPLICA, "h", 1) == sent
