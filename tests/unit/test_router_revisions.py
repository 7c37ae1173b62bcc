"""Who pairs: prefill and decode replicas of one revision, and no others."""

from __future__ import annotations

from random import Random

import pytest
from paceline_router.attempts import MAX_FAILURES, Again, GiveUp, Progress, without_decoder
from paceline_router.facts import Role
from paceline_router.pick import Choice, NoEndpoint, Picker
from paceline_router.replica import Replica, Size
from paceline_router.state import Ledger

SIZE = Size(100, 50)


# --- revisions
def make_replica(name: str, revision: str) -> Replica:
    role = {"p": Role.PREFILL, "d": Role.DECODE, "m": Role.MIXED}[name[0]]
    return Replica(name, role, revision=revision, ready=True)


def chosen(choice: Choice | NoEndpoint) -> tuple[str | None, str]:
    assert isinstance(choice, Choice)
    return choice.prefill, choice.decode


@pytest.mark.parametrize("policy", ["least-predicted-ttft", "round-robin", "random", "least-requests"])
def test_prefill_and_decode_replicas_of_different_revisions_never_pair(policy: str) -> None:
    ledger = Ledger(make_replica(f"{role}{revision}{i}", revision) for role in "pd" for revision in "ab" for i in "01")
    picker = Picker(policy, Random(1))
    pairs = []
    for _ in range(40):
        prefill, decode = chosen(picker.choose(ledger, SIZE, 0.0))
        assert prefill is not None
        pairs.append((prefill[1], decode[1]))
        ledger.begin(SIZE, prefill, decode, 0.0)
        again = picker.choose_decode(ledger, SIZE, 0.0, revision=prefill[1])
        assert isinstance(again, str)
        assert again[1] == prefill[1]
    assert set(pairs) == {("a", "a"), ("b", "b")}


def test_a_prefill_replica_without_a_decode_replica_of_its_revision_is_left_out() -> None:
    ledger = Ledger([make_replica("p-new", "b"), make_replica("d-old", "a")])
    assert chosen(Picker("round-robin", Random(1)).choose(ledger, SIZE, 0.0)) == (None, "d-old")  # recomputed
    strict = Picker("round-robin", Random(1), recompute=False)
    assert not strict.can_serve(ledger)
    assert isinstance(strict.choose(ledger, SIZE, 0.0), NoEndpoint)
    assert isinstance(strict.choose_prefill(ledger, SIZE, 0.0), NoEndpoint)
    ledger.add(make_replica("d-new", "b"))
    assert strict.can_serve(ledger)
    assert chosen(strict.choose(ledger, SIZE, 0.0)) == ("p-new", "d-new")


@pytest.mark.parametrize(
    ("says", "failures", "elsewhere", "step"),
    [
        ("others can serve it", 0, True, Again),
        ("nobody can", 0, False, GiveUp),
        ("it has failed too often", MAX_FAILURES - 1, True, GiveUp),
    ],
)
def test_a_prefill_whose_decode_replicas_are_gone(says: str, failures: int, elsewhere: bool, step: type) -> None:
    progress = Progress(failures, 0, deadline_s=10.0, parked_at_s=1.0)
    assert type(without_decoder(progress, "none", elsewhere=elsewhere)) is step
