"""Rollouts step by step: exact sequences, and what never happens whichever pods are ready."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_operator.rollout import Running, Target, is_whole, next_sizes

RoleName = Literal["prefill", "decode", "mixed"]
Sizes = dict[tuple[str, str], int]

PREFILL: RoleName = "prefill"
DECODE: RoleName = "decode"
MIXED: RoleName = "mixed"


def make_running(targets: list[Target], asked: Sizes, ready: Sizes) -> list[Running]:
    roles = {t.pool: t.role for t in targets}
    return [Running(pool, roles[pool], v, n, ready.get((pool, v), 0)) for (pool, v), n in sorted(asked.items())]


def roll(targets: list[Target], asked: Sizes) -> list[Sizes]:
    """Sizes step by step from all ready, each new pod ready at once."""
    steps: list[Sizes] = []
    while True:
        running = make_running(targets, asked, asked)
        following = dict(next_sizes(targets, "new", running))
        if following == asked:
            return steps
        asked = following
        steps.append(asked)


def test_a_first_revision_starts_at_full_size() -> None:
    targets = [Target("prefill", PREFILL, 2), Target("decode", DECODE, 1)]
    assert next_sizes(targets, "new", []) == {("prefill", "new"): 2, ("decode", "new"): 1}


def test_one_mixed_replica_is_replaced_by_surge_then_drain() -> None:
    steps = roll([Target("mixed", MIXED, 1)], {("mixed", "old"): 1})
    assert [(s["mixed", "new"], s["mixed", "old"]) for s in steps] == [(1, 1), (1, 0)]


def test_three_mixed_replicas_go_one_by_one() -> None:
    steps = roll([Target("mixed", MIXED, 3)], {("mixed", "old"): 3})
    assert [(s["mixed", "new"], s["mixed", "old"]) for s in steps] == [(1, 3), (2, 2), (3, 1), (3, 0)]


def test_prefill_and_decode_change_in_step_and_the_old_pair_stays_whole_until_the_new_one_is() -> None:
    targets = [Target("prefill", PREFILL, 2), Target("decode", DECODE, 1)]
    steps = roll(targets, {("prefill", "old"): 2, ("decode", "old"): 1})
    shown = [tuple(s[p, v] for v in ("new", "old") for p in ("prefill", "decode")) for s in steps]
    assert shown == [(1, 1, 2, 1), (2, 1, 1, 1), (2, 1, 0, 0)]


def test_an_old_revision_that_serves_nothing_makes_room_at_once() -> None:
    running = [Running("mixed", MIXED, "old", 2, 0)]
    assert next_sizes([Target("mixed", MIXED, 2)], "new", running) == {("mixed", "old"): 0, ("mixed", "new"): 2}


def test_half_a_pair_serves_nothing() -> None:
    targets = [Target("prefill", PREFILL, 1), Target("decode", DECODE, 1)]
    running = [Running("prefill", PREFILL, "old", 1, 1), Running("decode", DECODE, "old", 1, 0)]
    sizes = next_sizes(targets, "new", running)
    assert sizes == {("prefill", "old"): 0, ("decode", "old"): 0, ("prefill", "new"): 1, ("decode", "new"): 1}


def test_a_third_revision_keeps_the_fuller_of_two_old_ones() -> None:
    running = [Running("mixed", MIXED, "a", 3, 3), Running("mixed", MIXED, "b", 1, 1)]
    sizes = next_sizes([Target("mixed", MIXED, 3)], "new", running)
    assert sizes == {("mixed", "a"): 3, ("mixed", "b"): 0, ("mixed", "new"): 1}


def test_a_new_replica_that_never_gets_ready_stops_the_rollout() -> None:
    targets, running = [Target("mixed", MIXED, 2)], [Running("mixed", MIXED, "old", 2, 2)]
    for _ in range(3):
        sizes = next_sizes(targets, "new", running)
        assert sizes == {("mixed", "old"): 2, ("mixed", "new"): 1}
        running = [Running("mixed", MIXED, "old", 2, 2), Running("mixed", MIXED, "new", 1, 0)]


def test_a_pool_at_zero_stays_there() -> None:
    running = [Running("mixed", MIXED, "old", 0, 0)]
    assert next_sizes([Target("mixed", MIXED, 0)], "new", running) == {("mixed", "old"): 0, ("mixed", "new"): 0}


@pytest.mark.parametrize("roles", [(MIXED,), (PREFILL, DECODE), (PREFILL, DECODE, DECODE)])
@given(data=st.data())
def test_no_step_surges_by_more_than_one_or_takes_what_serves(roles: tuple[RoleName, ...], data: st.DataObject) -> None:
    targets = [Target(f"{role}-{i}", role, data.draw(st.integers(1, 4))) for i, role in enumerate(roles)]
    asked: Sizes = {(t.pool, "old"): t.replicas for t in targets}
    ready: Sizes = dict(asked)
    for _ in range(60):
        running = make_running(targets, asked, ready)
        following = dict(next_sizes(targets, "new", running))
        whole = is_whole(targets, "new", running)
        for t in targets:
            new, old = following[t.pool, "new"], following.get((t.pool, "old"), 0)
            assert new + old <= t.replicas + 1, "more than one replica above the size"
            serving = ready.get((t.pool, "new"), 0) + min(old, ready.get((t.pool, "old"), 0))
            assert serving >= t.replicas, "fewer ready replicas than wanted"
            assert whole or old >= 1, "the old pair is broken before the new one is whole"
        asked = {key: n for key, n in following.items() if n}
        ready = {key: min(ready.get(key, 0), n) for key, n in asked.items()}
        starting = [key for key, n in asked.items() if ready[key] < n]
        if starting:
            ready[data.draw(st.sampled_from(sorted(starting)))] += 1
        elif not any(v == "old" for _, v in asked):
            return
    raise AssertionError("the rollout never ends")


def test_the_old_revision_may_lose_replicas_and_the_rollout_still_ends() -> None:
    targets = [Target("mixed", MIXED, 3)]
    asked: Sizes = {("mixed", "old"): 3}
    ready: Sizes = {("mixed", "old"): 1}
    for _ in range(10):
        asked = dict(next_sizes(targets, "new", make_running(targets, asked, ready)))
        ready = {key: n if key[1] == "new" else min(ready.get(key, 0), n) for key, n in asked.items()}
    assert asked == {("mixed", "new"): 3, ("mixed", "old"): 0}
