"""One request's way: which leg follows which event, what the ledger holds meanwhile, and what is learnt of promises."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from paceline_api.config import DEFAULT_POLICY
from paceline_api.outcomes import Outcome
from paceline_engine.tables import load_table
from paceline_router.attempts import Fault, GiveUp, Leg, OverBudget
from paceline_router.facts import Facts, Role
from paceline_router.foresight import PRIOR
from paceline_router.latency import tpot_s, transfer_s
from paceline_router.pick import Picker
from paceline_router.replica import Replica, Size
from paceline_router.state import Ledger
from paceline_router.way import Failed, Guide, Next, Send, Way

ROLES = {"p": Role.PREFILL, "d": Role.DECODE, "m": Role.MIXED}
FACTS = Facts(table=load_table("a100-sxm-80gb", "llama-3.1-8b", 1), kv_tokens=200_000)
SIZE = Size(2000, 200, due_s=1.0, tpot_s=0.05, pace_tokens=100)


class Trip:
    """A way among replicas `p0`, `d0`, `m0` …, and what was heard of it."""

    def __init__(self, *names: str, policy: str = DEFAULT_POLICY, recompute: bool = True, **over: Any) -> None:
        replicas = (Replica(name, ROLES[name[0]], facts=FACTS, ready=True) for name in names)
        self.ledger = Ledger(replicas)
        self.failed: list[Failed] = []
        self.unready: list[str] = []
        picker = Picker(policy, Random(1), recompute=recompute)
        self.guide = Guide(self.ledger, picker, recompute, on_unready=self.unready.append)
        self.way = Way(self.guide, SIZE, on_failed=self.failed.append, **over)

    def leg(self, step: Next) -> tuple[Leg, str]:
        assert isinstance(step, Send)
        assert (self.way.leg, self.way.replica) == (step.leg, step.replica)
        return step.leg, step.replica

    def is_empty(self) -> bool:
        return all(replica.is_idle for replica in self.ledger.replicas.values())


@pytest.mark.parametrize("recompute", [True, False], ids=["recompute", "fail"])
def test_what_must_be_whole_meets_no_prefill_replica_not_even_after_failures(recompute: bool) -> None:
    trip = Trip("p0", "d0", "d1", recompute=recompute, whole=True)
    trip.way.prospect(0.0)
    first = trip.leg(trip.way.start(0.0))
    second = trip.leg(trip.way.failed(Fault.REFUSED, "no", 0.1))
    assert {first, second} == {(Leg.WHOLE, "d0"), (Leg.WHOLE, "d1")}
    assert isinstance(trip.way.failed(Fault.LOST, "gone", 0.2), GiveUp)
    trip.way.end(0.3)
    assert trip.is_empty()
    assert isinstance(Trip("p0", whole=True).way.start(0.0), GiveUp)


def test_a_request_goes_through_both_legs_and_leaves_nothing() -> None:
    trip = Trip("p0", "d0")
    started = trip.way.start(0.0)
    assert trip.leg(started) == (Leg.PREFILL, "p0")
    assert isinstance(started, Send)
    assert started.choice is not None
    trip.way.prefilled(0.1)
    assert trip.leg(trip.way.fetch(0.1)) == (Leg.FETCH, "d0")
    trip.ledger.first_token(trip.way.held, 0.2)
    trip.way.end(0.5)
    assert trip.is_empty()


def test_a_mixed_replica_serves_the_whole() -> None:
    trip = Trip("m0")
    assert trip.leg(trip.way.start(0.0)) == (Leg.WHOLE, "m0")
    assert trip.way.after_leg_s == 0.0


def test_what_follows_a_prefill_leg_is_its_transfer_a_decode_step_in_progress_and_its_own() -> None:
    trip = Trip("p0", "d0")
    trip.way.start(0.0)
    beside_s = tpot_s(Replica("alone", Role.DECODE, facts=FACTS), SIZE.prompt_tokens)
    assert trip.way.after_leg_s == pytest.approx(transfer_s(FACTS, SIZE.prompt_tokens) + 2 * beside_s)
    trip.way.prefilled(0.1)
    trip.way.fetch(0.1)
    assert trip.way.after_leg_s == 0.0


def test_a_failed_replica_is_avoided_and_told_of() -> None:
    trip = Trip("m0", "m1")
    assert trip.leg(trip.way.start(0.0)) == (Leg.WHOLE, "m0")
    assert trip.leg(trip.way.failed(Fault.LOST, "gone", 0.1)) == (Leg.WHOLE, "m1")
    assert trip.unready == ["m0"]
    assert [(f.leg, f.fault, f.replica, f.message) for f in trip.failed] == [(Leg.WHOLE, Fault.LOST, "m0", "gone")]
    assert trip.ledger.replicas["m0"].is_idle


@pytest.mark.parametrize(
    ("fault", "then"),
    [
        (Fault.UNREACHED, (Leg.WHOLE, "m1")),
        (Fault.REFUSED, Outcome.UPSTREAM_FAILED),
        (Fault.ERRORED, Outcome.UPSTREAM_FAILED),
        (Fault.LOST, Outcome.UPSTREAM_FAILED),
        (Fault.SILENT, Outcome.UPSTREAM_FAILED),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_without_budget_only_what_no_engine_has_seen_is_sent_again(
    fault: Fault, then: tuple[Leg, str] | Outcome
) -> None:
    trip = Trip("m0", "m1")
    trip.way.start(0.0)
    while trip.guide.budget.take(0, 0.0):
        pass
    step = trip.way.failed(fault, "failed", 0.0)
    if isinstance(then, Outcome):
        assert isinstance(step, OverBudget)
        assert step.outcome is then
    else:
        assert trip.leg(step) == then


def test_an_error_counts_against_whom_it_is_laid_to() -> None:
    trip = Trip("p0", "p1", "d0")
    started = trip.way.start(0.0)
    assert isinstance(started, Send)
    trip.way.prefilled(0.1)
    trip.way.fetch(0.1)
    trip.way.failed(Fault.ERRORED, "no KV", 0.2)
    assert {name: replica.errors for name, replica in trip.ledger.replicas.items() if replica.errors} == {
        started.replica: 1
    }


def test_nothing_is_sent_again_once_the_client_has_bytes() -> None:
    trip = Trip("m0", "m1")
    trip.way.start(0.0)
    given_up = trip.way.failed(Fault.LOST, "gone", 0.1, client_has_bytes=True)
    assert isinstance(given_up, GiveUp)
    assert given_up.outcome is Outcome.UPSTREAM_FAILED


@pytest.mark.parametrize(
    ("recompute", "last"), [(True, (Leg.WHOLE, "d0")), (False, Outcome.UPSTREAM_FAILED)], ids=["recompute", "fail"]
)
def test_after_two_failed_prefills_the_service_says_what_follows(
    recompute: bool, last: tuple[Leg, str] | Outcome
) -> None:
    trip = Trip("p0", "p1", "d0", recompute=recompute)
    first = trip.leg(trip.way.start(0.0))
    second = trip.leg(trip.way.failed(Fault.ERRORED, "no KV", 0.1))
    assert {first, second} == {(Leg.PREFILL, "p0"), (Leg.PREFILL, "p1")}
    then = trip.way.failed(Fault.ERRORED, "no KV", 0.2)
    assert (then.outcome if isinstance(then, GiveUp) else trip.leg(then)) == last
    trip.way.end(0.3)
    assert trip.is_empty()


def test_without_any_replica_there_is_no_endpoint() -> None:
    given_up = Trip("p0").way.start(0.0)
    assert isinstance(given_up, GiveUp)
    assert given_up.outcome is Outcome.NO_ENDPOINT


def test_a_request_whose_decoders_are_gone_begins_again_and_that_counts_as_a_failure() -> None:
    trip = Trip("p0", "d0", "m0")
    trip.ledger.set_ready("m0", False)
    trip.way.start(0.0)
    trip.ledger.set_ready("d0", False)
    trip.ledger.set_ready("m0", True)
    trip.way.prefilled(0.1)
    assert trip.leg(trip.way.fetch(0.1)) == (Leg.WHOLE, "m0")
    assert (trip.way.failures, [f.leg for f in trip.failed]) == (1, [Leg.FETCH])


def test_a_start_goes_where_the_prospect_saw_it_go() -> None:
    """Else round robin would look at one and send to the next."""
    trip = Trip("m0", "m1", policy="round-robin")
    taken = []
    for _ in range(4):
        way = Way(trip.guide, SIZE)
        way.prospect(0.0)
        taken.append(way.start(0.0))
    assert [step.replica for step in taken if isinstance(step, Send)] == ["m0", "m1", "m0", "m1"]


def test_a_prospect_counts_its_own_miss_where_it_would_be_late() -> None:
    trip = Trip("m0")
    on_time = trip.way.prospect(0.0)
    late = Way(trip.guide, replace(SIZE, due_s=0.001)).prospect(0.0)
    assert on_time.misses < 0.1 < 0.9 < late.misses
    assert on_time.alone_s == late.alone_s > 0.0


def test_beginning_again_is_no_new_load() -> None:
    trip = Trip("m0", "m1")
    trip.way.start(0.0)
    before = replace(trip.ledger.load)
    trip.way.failed(Fault.LOST, "gone", 0.1)
    assert trip.ledger.load == before


LEARNT = [
    ("a first token is learnt from", {}, True),
    ("of an unstreamed answer nobody knows when it came", {"streamed": False}, False),
]


@pytest.mark.parametrize(("over", "learns"), [c[1:] for c in LEARNT], ids=[c[0] for c in LEARNT])
def test_promises_are_learnt_from(over: dict[str, Any], learns: bool) -> None:
    trip = Trip("m0", **over)
    trip.way.start(0.0)
    trip.ledger.first_token(trip.way.held, 0.9)
    assert (trip.ledger.errors.p90(0.0) != PRIOR[0]) is learns


SEEN = [
    ("a slow hand-over is expected to be slow again", {}, 0.5, 1),
    ("a fast one fast", {}, 0.001, -1),
    ("of an unstreamed answer nobody knows when its first token came", {"streamed": False}, 0.5, 0),
]


@pytest.mark.parametrize(("over", "took_s", "sign"), [c[1:] for c in SEEN], ids=[c[0] for c in SEEN])
def test_hand_overs_are_learnt_from(over: dict[str, Any], took_s: float, sign: int) -> None:
    trip = Trip("p0", "d0", **over)
    trip.way.start(0.0)
    before_s = trip.way.after_leg_s
    trip.way.prefilled(0.1)
    trip.way.fetch(0.1)
    trip.ledger.first_token(trip.way.held, 0.1 + took_s)
    trip.way.end(1.0)
    again = Way(trip.guide, SIZE)
    again.start(2.0)
    change_s = again.after_leg_s - before_s
    assert change_s == pytest.approx(transfer_s(FACTS, SIZE.prompt_tokens) * (1.02**sign - 1))


def test_a_promise_is_void_where_the_prompt_is_computed_elsewhere() -> None:
    trip = Trip("p0", "p1", "d0")
    trip.way.start(0.0)
    trip.way.failed(Fault.ERRORED, "no KV", 0.3)
    trip.way.prefilled(0.5)
    trip.way.fetch(0.5)
    trip.ledger.first_token(trip.way.held, 0.9)
    assert trip.ledger.errors.p90(0.0) == PRIOR[0]
