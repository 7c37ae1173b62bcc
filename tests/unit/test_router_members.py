"""What becomes of ledger and connections while replicas come, go, come back, and are removed first."""

from __future__ import annotations

from random import Random

import pytest
from factories_members import Parts, make_member, make_pool
from hypothesis import given
from hypothesis import strategies as st
from paceline_router.endpoints import drained_first, resting
from paceline_router.facts import Role
from paceline_router.replica import Flight, Size

SIZE = Size(100, 50)


def test_a_replica_that_goes_gets_nothing_new_and_leaves_when_its_last_request_has() -> None:
    parts = Parts()
    parts.apply(make_member("a"), make_member("b"))
    assert parts.active() == ["a", "b"]
    flight = parts.ledger.begin(SIZE, None, "a", 0.0)
    parts.apply(make_member("b"))
    assert parts.active() == ["b"]
    assert set(parts.ledger.replicas) == {"a", "b"}
    parts.ledger.end(flight, 1.0)
    parts.reconcile()
    assert set(parts.ledger.replicas) == {"b"}


def test_a_replica_that_comes_back_in_time_is_the_same_one() -> None:
    parts = Parts()
    parts.apply(make_member("a"))
    parts.ledger.begin(SIZE, None, "a", 0.0)
    before = parts.ledger.replicas["a"]
    parts.apply()
    assert parts.active() == []
    parts.apply(make_member("a"))
    assert parts.active() == ["a"]
    assert parts.ledger.replicas["a"] is before


def test_its_successor_of_the_same_name_waits_until_it_is_gone() -> None:
    parts = Parts()
    parts.apply(make_member("a"))
    flight = parts.ledger.begin(SIZE, None, "a", 0.0)
    parts.apply(make_member("a", uid="later", port=2))
    assert parts.active() == []
    parts.ledger.end(flight, 1.0)
    parts.reconcile()
    assert parts.active() == ["a"]
    assert parts.upstreams.pools["a"].port == 2


def test_kv_that_waits_at_a_prefill_replica_keeps_it_too() -> None:
    parts = Parts()
    prefill, decode = make_member("p", Role.PREFILL), make_member("d", Role.DECODE)
    parts.apply(prefill, decode)
    flight = parts.ledger.begin(SIZE, "p", "d", 0.0)
    parts.ledger.prefilled(flight, 1.0)
    parts.apply(decode)
    assert "p" in parts.ledger.replicas
    parts.ledger.first_token(flight, 2.0)
    parts.reconcile()
    assert "p" not in parts.ledger.replicas


def test_it_is_settled_after_the_first_sync_and_a_probe_of_each() -> None:
    parts = Parts()
    assert not parts.membership.is_settled
    parts.apply(make_member("a"), make_member("b"))
    assert not parts.membership.is_settled
    parts.scraper.probed.add("a")
    assert not parts.membership.is_settled
    parts.apply(make_member("a"), make_member("c"))  # b went before its probe; c came later
    assert parts.membership.is_settled


def test_a_service_without_replicas_is_settled_at_once() -> None:
    parts = Parts()
    parts.apply()
    assert parts.membership.is_settled


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [(None, set()), ("", set()), ("a", {"a"}), (" a, b ,,", {"a", "b"})],
    ids=["none", "an empty one", "one pod", "blanks do not count"],
)
def test_what_an_annotation_names(annotation: str | None, expected: set[str]) -> None:
    assert drained_first(make_pool("p", annotation)) == expected
    assert drained_first({}) == frozenset()


@pytest.mark.parametrize(
    ("says", "others", "named", "expected"),
    [
        ("the one that is named rests", ["m-2"], {"p": {"m-1"}}, {"m-1"}),
        ("nobody is named", ["m-2"], {}, set()),
        ("one that is not there changes nothing", ["m-2"], {"p": {"gone"}}, set()),
        ("another pool's word does not count", ["m-2"], {"q": {"m-1"}}, set()),
        ("the last ones of a role never rest", ["m-2"], {"p": {"m-1", "m-2"}}, set()),
        ("nor the last one of a revision, for it has its pairs", ["m-2/b"], {"p": {"m-1"}}, set()),
        ("the last of one role leaves the others their rest", ["m-2", "d-1"], {"p": {"m-1", "d-1"}}, {"m-1"}),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_who_rests(says: str, others: list[str], named: dict[str, set[str]], expected: set[str]) -> None:
    roles = {"m": Role.MIXED, "d": Role.DECODE}
    parts = [(*name.split("/"), "a")[:2] for name in ["m-1", *others]]
    there = [make_member(name, roles[name[0]], revision=revision) for name, revision in parts]
    assert resting(there, {pool: frozenset(pods) for pool, pods in named.items()}) == expected


def test_a_replica_that_is_removed_first_gets_nothing_new_and_stays_until_its_pod_goes() -> None:
    parts = Parts()
    parts.apply(make_member("a"), make_member("b"))
    assert parts.active() == ["a", "b"]
    parts.drain_first("a")
    assert parts.active() == ["b"]
    parts.reconcile()
    assert set(parts.ledger.replicas) == {"a", "b"}
    parts.drain_first()
    assert parts.active() == ["a", "b"]
    parts.drain_first("b", "c")
    parts.apply(make_member("a"), make_member("b"), make_member("c"))
    assert parts.active() == ["a"]
    parts.apply(make_member("b"), make_member("c"))  # a, which served, is gone: the others must
    assert parts.active() == ["b", "c"]
    parts.apply(make_member("c"), make_member("d"))
    assert parts.active() == ["d"]
    assert set(parts.ledger.replicas) == {"c", "d"}


WANTED = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["uid-1", "uid-2"]))


STEPS = st.lists(
    st.one_of(WANTED, st.frozensets(st.sampled_from("abc")), st.sampled_from(["begin", "end"])), max_size=30
)


@given(STEPS, st.randoms(use_true_random=False))
def test_whatever_comes_and_goes_only_wanted_replicas_are_active_and_no_unwanted_one_stays_idle(
    steps: list[dict[str, str] | frozenset[str] | str], rng: Random
) -> None:
    parts, flights, wanted, named = Parts(), list[Flight](), dict[str, str](), frozenset[str]()
    for step in steps:
        if step == "begin":
            if active := parts.active():
                flights.append(parts.ledger.begin(SIZE, None, rng.choice(active), 0.0))
        elif step == "end":
            if flights:
                parts.ledger.end(flights.pop(rng.randrange(len(flights))), 1.0)
                parts.reconcile()
        elif isinstance(step, frozenset):
            named = step
            parts.drain_first(*named)
        elif isinstance(step, dict):
            wanted = step
            parts.apply(*(make_member(name, uid=uid, port=int(uid[-1])) for name, uid in wanted.items()))
        replicas = parts.ledger.replicas
        port = {name: parts.upstreams.pools[name].port for name in replicas}
        right = {name for name, uid in wanted.items() if port.get(name) == int(uid[-1])}
        rest = wanted.keys() & named
        assert set(parts.active()) == (right - rest if rest != wanted.keys() else right)
        assert all(name in right or not replica.is_idle for name, replica in replicas.items())
        assert wanted.keys() <= replicas.keys()
