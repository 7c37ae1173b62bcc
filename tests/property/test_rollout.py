"""Rollouts on a cluster whose replicas become ready and die in any order: sizes held, surge bounded, and they end."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Literal

from hypothesis import event, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from paceline_operator.rollout import Running, Target, is_whole, next_sizes

RoleName = Literal["prefill", "decode", "mixed"]
Key = tuple[str, str]  # pool, revision

GROUPS: tuple[dict[str, RoleName], ...] = (
    {"m": "mixed"},
    {"p": "prefill", "d": "decode"},
    {"p": "prefill", "d": "decode", "e": "decode"},
)
MOST = 6  # replicas of a pool
PATIENCE = 200  # steps in which any rollout of these sizes ends


class Fleet:
    """Deployments that obey at once, as Kubernetes does: one replica that is not ready goes before one that is."""

    def __init__(self, roles: dict[str, RoleName], sizes: dict[str, int]) -> None:
        self.roles, self.sizes = roles, dict(sizes)
        self.revision = "r0"
        self.asked: Counter[Key] = Counter({(pool, "r0"): n for pool, n in sizes.items()})
        self.ready: Counter[Key] = Counter(self.asked)
        self.proven: set[Key] = set(self.asked)

    @property
    def targets(self) -> list[Target]:
        return [Target(pool, self.roles[pool], n) for pool, n in sorted(self.sizes.items())]

    @property
    def running(self) -> list[Running]:
        return [
            Running(pool, self.roles[pool], v, n, self.ready[pool, v], (pool, v) in self.proven)
            for (pool, v), n in sorted(self.asked.items())
        ]

    @property
    def starting(self) -> list[Key]:
        return [key for key, n in sorted(self.asked.items()) if self.ready[key] < n]

    def ready_of(self, pool: str) -> int:
        return sum(n for (p, _), n in self.ready.items() if p == pool)

    def share(self, revision: str) -> Fraction:
        """The part of the load that a revision can serve: its prefill and decode replicas pair with each other only."""
        return min(Fraction(min(self.ready[pool, revision], n), n) for pool, n in self.sizes.items())

    def served(self) -> Fraction:
        return sum((self.share(v) for v in {v for _, v in self.asked}), Fraction(0))

    def serves(self, revision: str) -> bool:
        roles = {self.roles[pool] for (pool, v), n in self.ready.items() if v == revision and n}
        return roles == set(self.roles.values())

    def plan(self) -> bool:
        """Whether the step changed anything."""
        before = dict(self.asked)
        self.asked = Counter(next_sizes(self.targets, self.revision, self.running))
        self.ready = Counter({key: min(self.ready[key], n) for key, n in self.asked.items()})
        self.proven |= {key for key, n in self.asked.items() if self.ready[key] == n}
        self.asked = Counter({key: n for key, n in self.asked.items() if n or key[1] == self.revision})
        return dict(self.asked) != before

    def turn_ready(self, key: Key) -> None:
        self.ready[key] += 1
        if self.ready[key] == self.asked[key]:
            self.proven.add(key)

    def finish(self) -> None:
        """Every replica becomes ready in the end, one after the other."""
        for _ in range(PATIENCE):
            if not self.plan() and not self.starting:
                return
            for key in self.starting[:1]:
                self.turn_ready(key)
        raise AssertionError(f"it never ends: {dict(self.asked)}")


class Rollouts(RuleBasedStateMachine):
    """Edits, sizes, deaths and starts in any order; a plan may come after each, or late."""

    @initialize(roles=st.sampled_from(GROUPS), data=st.data())
    def begin(self, roles: dict[str, RoleName], data: st.DataObject) -> None:
        self.fleet = Fleet(roles, {pool: data.draw(st.integers(1, MOST)) for pool in roles})
        self.edits = 0

    @rule()
    @precondition(lambda self: self.edits < 3)
    def edit(self) -> None:
        self.edits += 1
        self.fleet.revision = f"r{self.edits}"

    @rule(data=st.data(), size=st.integers(1, MOST))
    def resize(self, data: st.DataObject, size: int) -> None:
        self.fleet.sizes[data.draw(st.sampled_from(sorted(self.fleet.sizes)))] = size

    @rule(data=st.data())
    @precondition(lambda self: self.fleet.starting)
    def turn_ready(self, data: st.DataObject) -> None:
        self.fleet.turn_ready(data.draw(st.sampled_from(self.fleet.starting)))

    @rule(data=st.data())
    @precondition(lambda self: any(self.fleet.ready.values()))
    def die(self, data: st.DataObject) -> None:
        self.fleet.ready[data.draw(st.sampled_from(sorted(k for k, n in self.fleet.ready.items() if n)))] -= 1

    @rule()
    def plan(self) -> None:
        fleet = self.fleet
        before = {pool: fleet.ready_of(pool) for pool in fleet.sizes}
        serving = any(fleet.serves(v) for _, v in fleet.asked if v != fleet.revision)
        whole = is_whole(fleet.targets, fleet.revision, fleet.running)
        fleet.plan()
        event(f"an old revision serves: {serving}, the new one is whole: {whole}")
        for pool, size in fleet.sizes.items():
            if serving or whole:
                assert fleet.ready_of(pool) >= min(size, before[pool]), "a step took ready replicas below the size"
            asked = sum(n for (p, _), n in fleet.asked.items() if p == pool)
            assert asked <= size + 1, "more than one replica above the size"

    @invariant()
    def it_can_always_end(self) -> None:
        """From here every replica gets ready: all is of the new revision, at its size."""
        ahead = Fleet(self.fleet.roles, self.fleet.sizes)
        ahead.revision, ahead.proven = self.fleet.revision, set(self.fleet.proven)
        ahead.asked, ahead.ready = Counter(self.fleet.asked), Counter(self.fleet.ready)
        ahead.finish()
        assert {k: n for k, n in ahead.ready.items() if n} == {(p, ahead.revision): n for p, n in ahead.sizes.items()}


TestRollouts = Rollouts.TestCase


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    roles = draw(st.sampled_from(GROUPS))
    return Fleet(roles, {pool: draw(st.integers(1, MOST)) for pool in roles})


@given(fleet=fleets(), data=st.data())
def test_with_no_death_the_fleet_serves_its_whole_load_at_every_moment(fleet: Fleet, data: st.DataObject) -> None:
    fleet.revision = "r1"
    for _ in range(PATIENCE):
        changed = fleet.plan()
        assert fleet.served() >= 1, "pairs of one revision no longer take the load"
        if fleet.starting and (not changed or data.draw(st.booleans())):
            fleet.turn_ready(data.draw(st.sampled_from(fleet.starting)))
        elif not changed:
            return
    raise AssertionError("it never ends")


@given(
    fleet=fleets(), deaths=st.lists(st.integers(0, 5), max_size=20), sizes=st.lists(st.integers(1, MOST), max_size=3)
)
def test_of_a_revision_that_never_gets_ready_there_is_one_replica_and_the_old_one_keeps_every_size(
    fleet: Fleet, deaths: list[int], sizes: list[int]
) -> None:
    fleet.revision = "broken"
    pools = sorted(fleet.sizes)
    for i, turn in enumerate([*deaths, *range(10)]):
        fleet.plan()
        for pool, size in fleet.sizes.items():
            assert fleet.asked[pool, "r0"] == size
            assert fleet.asked[pool, "broken"] <= 1
        old = [key for key in fleet.starting if key[1] == "r0"]
        if old:
            fleet.turn_ready(old[turn % len(old)])
        elif fleet.ready[key := (pools[turn % len(pools)], "r0")]:
            fleet.ready[key] -= 1
        if i < len(sizes):
            fleet.sizes[pools[i % len(pools)]] = sizes[i]
