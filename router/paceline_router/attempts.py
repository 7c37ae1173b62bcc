"""What to do after a leg failed: try elsewhere, compute again, or give up with one outcome.

A request is retried until its first byte reached the client, never after. A failure of a prefill replica or of a
hand-over sends the prompt to another prefill replica once; the next one follows `kv_transfer.on_failure`. Invariant:
every sequence of failures ends in `GiveUp` after at most MAX_FAILURES legs, and nothing is retried past the deadline.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from paceline_api.outcomes import Outcome
from paceline_engine.pd import LEASE_S, must_start_by

MAX_FAILURES = 4  # legs: enough for a prefill, its repetition, a recompute and one that meets a replica going down


class Fault(StrEnum):
    """How a leg failed, in the order of how much the engine may have done."""

    UNREACHED = "unreached"  # no connection: nothing was sent
    REFUSED = "refused"  # 429 or 503: the engine took nothing on
    ERRORED = "errored"  # another 5xx, an error event, or an answer that makes no sense
    LOST = "lost"  # sent, and the connection broke
    SILENT = "silent"  # sent, and the engine as a whole shows no sign of work (silence.py)
    TIMED_OUT = "timed_out"  # the request's own bound passed


class Leg(StrEnum):
    PREFILL = "prefill"  # leg 1
    FETCH = "fetch"  # leg 2, with a hand-over
    WHOLE = "whole"  # prompt and decode on one replica


@dataclass(frozen=True, slots=True)
class Progress:
    """A request's history, this failure included. `parked_at_s`: when leg 1 ended, None without KV to fetch."""

    failures: int
    prefill_failures: int  # of leg 1 or a hand-over
    deadline_s: float
    parked_at_s: float | None = None
    client_has_bytes: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """Start over with a new choice."""


@dataclass(frozen=True, slots=True)
class PrefillElsewhere:
    """Leg 1 once more, on another prefill replica."""


@dataclass(frozen=True, slots=True)
class DecodeElsewhere:
    """Leg 2 once more, on another decode replica, with the KV still parked."""


@dataclass(frozen=True, slots=True)
class Recompute:
    """The decode replica computes the prompt itself."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    outcome: Outcome
    message: str


@dataclass(frozen=True, slots=True)
class OverBudget(GiveUp):
    """It might be tried again, but too much is already (retry_budget.py)."""


NextStep = Again | PrefillElsewhere | DecodeElsewhere | Recompute | GiveUp


def fault_of_status(status: int) -> Fault | None:
    """None: a 4xx that is the client's own and is relayed. 401 and 403 mean that the service's token is wrong: ours."""
    if status in (429, 503):
        return Fault.REFUSED
    if 400 <= status < 500 and status not in (401, 403, 408):
        return None
    return Fault.ERRORED


def counts_as_prefill_failure(leg: Leg, fault: Fault) -> bool:
    """Whether leg 1 or the hand-over is what failed: a decode replica that took nothing on leaves the KV parked."""
    return leg is Leg.PREFILL or (leg is Leg.FETCH and fault not in (Fault.UNREACHED, Fault.REFUSED))


def blames_replica(fault: Fault) -> bool:
    """Whether the replica should get nothing more until a probe finds it well."""
    return fault in (Fault.UNREACHED, Fault.REFUSED, Fault.LOST)


def costs_budget(fault: Fault) -> bool:
    """Whether another attempt is more load than one attempt: the engine has seen the request."""
    return fault is not Fault.UNREACHED


def suspected(leg: Leg, fault: Fault, replica: str, prefill: str | None) -> str:
    """Whom the request avoids from now on: of a fetch that a living decode engine reports failed, the prefill side."""
    return prefill if leg is Leg.FETCH and fault is Fault.ERRORED and prefill is not None else replica


def next_step(
    leg: Leg, fault: Fault, progress: Progress, now: float, *, recompute: bool, lease_s: float = LEASE_S
) -> NextStep:
    """The step after `fault` of `leg` at `now`; `recompute` is kv_transfer.on_failure."""
    if fault is Fault.TIMED_OUT or now >= progress.deadline_s:
        return GiveUp(Outcome.TIMED_OUT, "the request ran into its time limit")
    if progress.client_has_bytes:
        return GiveUp(Outcome.UPSTREAM_FAILED, "the engine failed after the answer had begun")
    if progress.failures >= MAX_FAILURES:
        return GiveUp(Outcome.UPSTREAM_FAILED, f"{progress.failures} attempts failed, the last: {fault}")
    if leg is Leg.WHOLE:
        return Again()
    if not counts_as_prefill_failure(leg, fault) and may_fetch(progress.parked_at_s, now, lease_s):
        return DecodeElsewhere()
    if progress.prefill_failures <= 1:
        return PrefillElsewhere()
    return without_prefill(recompute=recompute)


def may_fetch(parked_at_s: float | None, now: float, lease_s: float) -> bool:
    """Whether leg 2 may still start on parked KV (DESIGN §4: within half of the lease)."""
    return parked_at_s is not None and now <= must_start_by(parked_at_s, lease_s)


def without_prefill(*, recompute: bool) -> Recompute | GiveUp:
    """No prefill replica is left to try."""
    if recompute:
        return Recompute()
    return GiveUp(Outcome.UPSTREAM_FAILED, "the prefill or its KV transfer failed, and kv_transfer.on_failure is fail")


def without_decoder(progress: Progress, message: str, *, elsewhere: bool) -> Again | GiveUp:
    """No decode replica of the prefill's revision is left; `elsewhere`: others can serve the request from its start."""
    if elsewhere and progress.failures + 1 < MAX_FAILURES:
        return Again()
    return without_replica(progress, message)


def without_replica(progress: Progress, message: str) -> GiveUp:
    """No ready replica is left: the service's state for a first attempt, a consequence of the failures after one."""
    if progress.failures:
        return GiveUp(Outcome.UPSTREAM_FAILED, f"{progress.failures} attempts failed, and {message}")
    return GiveUp(Outcome.NO_ENDPOINT, message)
