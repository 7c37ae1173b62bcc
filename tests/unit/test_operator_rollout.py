"""Rollouts step by step: exact sequences of sizes. What never happens, whichever replicas are ready, is in
tests/property/test_rollout.py."""

from __future__ import annotations

from typing import Literal

import pytest
from paceline_operator.rollout import Running, Target, next_sizes

RoleName = Literal["prefill", "decode", "mixed"]
Sizes = dict[tuple[str, str], int]

ROLES: dict[str, RoleName] = {"p": "prefill", "d": "decode", "m": "mixed"}


def make_targets(**sizes: int) -> list[Target]:
    """`p`, `d` and `m` are pools of the role that begins so."""
    return [Target(pool, ROLES[pool], size) for pool, size in sizes.items()]


def make_running(asked: Sizes, ready: Sizes | None = None, proven: bool = False) -> list[Running]:
    """All ready, if nothing else is said."""
    found = asked if ready is None else ready
    return [Running(p, ROLES[p], v, n, found.get((p, v), 0), proven) for (p, v), n in sorted(asked.items())]


def step(targets: list[Target], asked: Sizes, ready: Sizes | None = None, proven: bool = False) -> Sizes:
    return {k: n for k, n in next_sizes(targets, "new", make_running(asked, ready, proven)).items() if n}


def roll(targets: list[Target], asked: Sizes) -> list[Sizes]:
    """Sizes step by step, each new pod ready at once."""
    steps: list[Sizes] = []
    while (following := step(targets, asked)) != asked:
        asked = following
        steps.append(asked)
    return steps


def shown(steps: list[Sizes], pools: str) -> str:
    """`new+old`, pools side by side: `1+5 2+4`, or `01+42` for no new prefill replica, one decode, 4 and 2 old ones."""
    return " ".join("+".join("".join(str(s.get((p, v), 0)) for p in pools) for v in ("new", "old")) for s in steps)


@pytest.mark.parametrize(
    ("sizes", "sequence"),
    [
        pytest.param({"m": 1}, "1+1 1+0", id="one mixed replica: the new one, then the old one goes"),
        pytest.param({"m": 3}, "1+3 2+2 3+1 3+0", id="three mixed replicas"),
        pytest.param({"m": 5}, "1+5 2+4 3+3 4+2 5+1 5+0", id="five mixed replicas: never fewer than five"),
        pytest.param({"p": 1, "d": 1}, "01+11 11+11 11+00", id="a pair: decode first, the old pair last"),
        pytest.param(
            {"p": 2, "d": 1},
            "01+21 11+21 21+11 21+00",
            id="2P1D: one old prefill goes for the new one, the old decode replica stays to the end",
        ),
        pytest.param(
            {"p": 4, "d": 2},
            "01+42 11+42 21+32 22+21 32+21 42+11 42+00",
            id="4P2D: an old decode replica goes with its second prefill replica, not with the first",
        ),
        pytest.param(
            {"p": 1, "d": 4},
            "01+14 11+14 12+13 13+12 14+11 14+00",
            id="1P4D: the only old prefill replica stays until the new decode pool is full",
        ),
        pytest.param(
            {"p": 3, "d": 2},
            "01+32 11+32 21+22 22+21 32+11 32+00",
            id="3P2D: shares that are no whole replicas are rounded up on the old side",
        ),
    ],
)
def test_a_rollout_takes_these_steps(sizes: dict[str, int], sequence: str) -> None:
    targets = make_targets(**sizes)
    assert shown(roll(targets, {(pool, "old"): n for pool, n in sizes.items()}), "".join(sizes)) == sequence


@pytest.mark.parametrize(
    ("sizes", "asked", "ready", "wanted"),
    [
        pytest.param({"p": 2, "d": 1}, {}, None, {("p", "new"): 2, ("d", "new"): 1}, id="a first revision, at once"),
        pytest.param({"m": 0}, {("m", "old"): 2}, None, {}, id="a size of 0: nothing of either"),
        pytest.param(
            {"m": 7},
            {("m", "new"): 2, ("m", "old"): 4},
            None,
            {("m", "new"): 4, ("m", "old"): 4},
            id="growth from 5 to 7 in the middle goes to the new revision, at once",
        ),
        pytest.param(
            {"m": 3},
            {("m", "new"): 2, ("m", "old"): 4},
            None,
            {("m", "new"): 3, ("m", "old"): 1},
            id="shrinking from 5 to 3 in the middle takes old ones",
        ),
        pytest.param(
            {"m": 2},
            {("m", "new"): 3, ("m", "old"): 3},
            None,
            {("m", "new"): 2},
            id="shrinking below what is new ends the rollout",
        ),
        pytest.param(
            {"p": 6, "d": 2},
            {("p", "new"): 1, ("p", "old"): 4, ("d", "new"): 1, ("d", "old"): 2},
            None,
            {("p", "new"): 3, ("p", "old"): 4, ("d", "new"): 1, ("d", "old"): 2},
            id="prefill grows as far as the new decode replicas can take it",
        ),
        pytest.param(
            {"m": 5},
            {("m", "old"): 5, ("m", "new"): 1},
            {("m", "old"): 5},
            {("m", "old"): 5, ("m", "new"): 1},
            id="a broken new revision: nothing of the old goes",
        ),
        pytest.param(
            {"p": 4, "d": 2},
            {("p", "old"): 4, ("d", "old"): 2, ("d", "new"): 1},
            {("p", "old"): 4, ("d", "old"): 2},
            {("p", "old"): 4, ("d", "old"): 2, ("d", "new"): 1},
            id="a broken new pair: one decode replica too many, and no prefill replica",
        ),
        pytest.param(
            {"m": 8},
            {("m", "old"): 5, ("m", "new"): 1},
            {("m", "old"): 5},
            {("m", "old"): 8, ("m", "new"): 1},
            id="growth before the new revision has served goes to the old one",
        ),
        pytest.param(
            {"m": 5},
            {("m", "old"): 4, ("m", "new"): 2},
            {("m", "old"): 4},
            {("m", "old"): 4, ("m", "new"): 2},
            id="a new replica that dies again takes nothing with it",
        ),
        pytest.param(
            {"m": 3},
            {("m", "a"): 2, ("m", "b"): 2},
            None,
            {("m", "a"): 2, ("m", "b"): 1, ("m", "new"): 1},
            id="a third revision in the middle of a rollout: three serve, one comes",
        ),
        pytest.param(
            {"m": 3},
            {("m", "a"): 3, ("m", "b"): 1},
            {("m", "a"): 3},
            {("m", "a"): 3, ("m", "new"): 1},
            id="a third revision after a broken second one: that goes at once",
        ),
        pytest.param(
            {"p": 4, "d": 2},
            {("p", "a"): 2, ("d", "a"): 1, ("p", "b"): 3, ("d", "b"): 1},
            None,
            {("p", "a"): 2, ("d", "a"): 1, ("p", "b"): 2, ("d", "b"): 1, ("d", "new"): 1},
            id="a third revision of a pair: each old one keeps what it can pair",
        ),
        pytest.param(
            {"p": 4, "d": 2},
            {("p", "a"): 2, ("d", "a"): 1, ("p", "b"): 2},
            {("p", "a"): 1, ("d", "a"): 1, ("p", "b"): 2},
            {("p", "a"): 2, ("d", "a"): 2, ("p", "b"): 2, ("d", "new"): 1},
            id="ready replicas of a revision without a pair stay while its pool is short",
        ),
        pytest.param(
            {"m": 2},
            {("m", "old"): 2},
            {},
            {("m", "new"): 2},
            id="an old revision that never served makes room at once",
        ),
        pytest.param(
            {"p": 1, "d": 1},
            {("p", "old"): 1, ("d", "old"): 1},
            {("p", "old"): 1},
            {("p", "new"): 1, ("d", "new"): 1},
            id="half a pair serves nothing",
        ),
        pytest.param(
            {"m": 5},
            {("m", "old"): 2, ("m", "new"): 4},
            {("m", "old"): 9, ("m", "new"): 3},
            {("m", "old"): 2, ("m", "new"): 4},
            id="a status that lags behind a smaller size counts no pod that is to go",
        ),
    ],
)
def test_the_next_step_is(sizes: dict[str, int], asked: Sizes, ready: Sizes | None, wanted: Sizes) -> None:
    assert step(make_targets(**sizes), asked, ready) == wanted


def test_an_old_revision_that_served_is_expected_back_and_kept() -> None:
    asked = {("m", "old"): 2, ("m", "new"): 1}
    assert step(make_targets(m=2), asked, ready={}, proven=True) == asked


def test_every_revision_is_told_its_size_those_at_0_too() -> None:
    sizes = next_sizes(make_targets(m=1), "new", make_running({("m", "a"): 1, ("m", "b"): 0}))
    assert sizes == {("m", "a"): 1, ("m", "b"): 0, ("m", "new"): 1}


def test_a_pool_that_joins_a_pair_starts_whole_and_the_old_pools_wait_for_it() -> None:
    targets = [*make_targets(p=2, d=2), Target("extra", "decode", 3)]
    sizes = next_sizes(targets, "new", make_running({("p", "old"): 2, ("d", "old"): 2}))
    assert sizes == {
        ("p", "old"): 2,
        ("d", "old"): 2,
        ("p", "new"): 0,
        ("d", "new"): 1,
        ("extra", "new"): 3,
    }
