"""The step after each failure, and that every sequence of failures ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.outcomes import Outcome
from paceline_router.attempts import (
    MAX_FAILURES,
    Again,
    DecodeElsewhere,
    Fault,
    GiveUp,
    Leg,
    PrefillElsewhere,
    Progress,
    Recompute,
    counts_as_prefill_failure,
    fault_of_status,
    next_step,
    suspected,
    without_prefill,
    without_replica,
)

DEADLINE_S = 100.0


def progress(**over: Any) -> Progress:
    return Progress(**{"failures": 1, "prefill_failures": 0, "deadline_s": DEADLINE_S, **over})


CASES: list[tuple[str, Leg, Fault, dict[str, Any], float, type]] = [
    ("one replica failed: start over", Leg.WHOLE, Fault.LOST, {}, 1.0, Again),
    ("one replica refused: start over", Leg.WHOLE, Fault.REFUSED, {}, 1.0, Again),
    ("the client has bytes: never again", Leg.WHOLE, Fault.LOST, {"client_has_bytes": True}, 1.0, GiveUp),
    ("the deadline has passed", Leg.WHOLE, Fault.LOST, {}, DEADLINE_S, GiveUp),
    ("a silent one: start over", Leg.WHOLE, Fault.SILENT, {}, 1.0, Again),
    ("a silent one of which the client has bytes", Leg.WHOLE, Fault.SILENT, {"client_has_bytes": True}, 1.0, GiveUp),
    ("a silent prefill replica", Leg.PREFILL, Fault.SILENT, {"prefill_failures": 1}, 1.0, PrefillElsewhere),
    ("a silent one over its fetch", Leg.FETCH, Fault.SILENT, {"parked_at_s": 0.0}, 1.0, PrefillElsewhere),
    ("too many attempts", Leg.WHOLE, Fault.LOST, {"failures": MAX_FAILURES}, 1.0, GiveUp),
    ("the first prefill failed", Leg.PREFILL, Fault.LOST, {"prefill_failures": 1}, 1.0, PrefillElsewhere),
    ("the second prefill failed", Leg.PREFILL, Fault.LOST, {"prefill_failures": 2}, 1.0, Recompute),
    ("a transfer failed", Leg.FETCH, Fault.ERRORED, {"prefill_failures": 1, "parked_at_s": 0.0}, 1.0, PrefillElsewhere),
    ("a second transfer failed", Leg.FETCH, Fault.LOST, {"prefill_failures": 2, "parked_at_s": 0.0}, 1.0, Recompute),
    ("a decode replica took nothing", Leg.FETCH, Fault.REFUSED, {"parked_at_s": 0.0}, 15.0, DecodeElsewhere),
    ("and half of the lease is over", Leg.FETCH, Fault.UNREACHED, {"parked_at_s": 0.0}, 15.1, PrefillElsewhere),
]


@pytest.mark.parametrize(("leg", "fault", "over", "now", "step"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_next_step(leg: Leg, fault: Fault, over: dict[str, Any], now: float, step: type) -> None:
    assert type(next_step(leg, fault, progress(**over), now, recompute=True, lease_s=30.0)) is step


def test_the_time_limit_gives_504_and_a_failure_502() -> None:
    late = next_step(Leg.WHOLE, Fault.TIMED_OUT, progress(), 1.0, recompute=True)
    failed = next_step(Leg.WHOLE, Fault.LOST, progress(client_has_bytes=True), 1.0, recompute=True)
    assert isinstance(late, GiveUp)
    assert isinstance(failed, GiveUp)
    assert (late.outcome, failed.outcome) == (Outcome.TIMED_OUT, Outcome.UPSTREAM_FAILED)


def test_on_failure_fail_gives_up_instead_of_recomputing() -> None:
    assert isinstance(without_prefill(recompute=False), GiveUp)
    assert isinstance(without_prefill(recompute=True), Recompute)


def test_no_replica_is_the_services_state_at_first_and_a_failure_later() -> None:
    assert without_replica(progress(failures=0), "none").outcome is Outcome.NO_ENDPOINT
    assert without_replica(progress(failures=1), "none").outcome is Outcome.UPSTREAM_FAILED


def test_a_fetch_that_a_living_engine_reports_failed_is_its_sources_fault() -> None:
    assert suspected(Leg.FETCH, Fault.ERRORED, "d0", "p0") == "p0"
    assert suspected(Leg.FETCH, Fault.LOST, "d0", "p0") == "d0"
    assert suspected(Leg.PREFILL, Fault.ERRORED, "p0", "p0") == "p0"
    assert suspected(Leg.WHOLE, Fault.ERRORED, "m0", None) == "m0"


STATUSES = [
    (400, None),
    (404, None),
    (413, None),
    (422, None),
    (401, Fault.ERRORED),
    (403, Fault.ERRORED),
    (408, Fault.ERRORED),
    (429, Fault.REFUSED),
    (503, Fault.REFUSED),
    (500, Fault.ERRORED),
    (502, Fault.ERRORED),
    (302, Fault.ERRORED),
]


@pytest.mark.parametrize(("status", "fault"), STATUSES)
def test_fault_of_status(status: int, fault: Fault | None) -> None:
    assert fault_of_status(status) is fault


@given(st.lists(st.sampled_from(Fault), min_size=MAX_FAILURES, max_size=MAX_FAILURES), st.booleans(), st.booleans())
def test_every_sequence_of_failures_ends(faults: list[Fault], disaggregated: bool, recompute: bool) -> None:
    leg = Leg.PREFILL if disaggregated else Leg.WHOLE
    prefill_failures, parked, legs = 0, None, 1
    for failures, fault in enumerate(faults, 1):
        prefill_failures += counts_as_prefill_failure(leg, fault)
        now = float(failures)
        step = next_step(leg, fault, Progress(failures, prefill_failures, DEADLINE_S, parked), now, recompute=recompute)
        match step:
            case GiveUp():
                break
            case Recompute() | Again():
                leg = Leg.WHOLE
            case DecodeElsewhere():
                leg = Leg.FETCH
            case PrefillElsewhere():  # it succeeds, and the fetch is what fails next
                leg, parked = Leg.FETCH, now
        legs += 1
    else:
        pytest.fail("no end")
    assert legs <= MAX_FAILURES
