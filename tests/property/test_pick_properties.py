"""Every policy on any fleet: choices name active replicas that fit together; the shortlist is the fleet, in order."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from paceline_engine.tables import load_table
from paceline_engine.work import Work
from paceline_router.facts import Facts, Role
from paceline_router.outlook import foresee, slowed
from paceline_router.pick import POLICIES, Choice, NoEndpoint, Picker
from paceline_router.replica import Flight, Replica, Size
from paceline_router.shortlist import HEADS, Shortlist, load
from paceline_router.state import Ledger

TABLE = load_table("a100-sxm-80gb", "llama-3.1-8b", 1)
LIMITS = [(0.3, 0.02), (1.0, 0.05), (30.0, 0.25), (float("inf"), float("inf"))]
SIZES = st.builds(
    lambda prompt, output, limits, now: Size(prompt, output, now + limits[0], limits[1], output),
    st.integers(1, 20_000),
    st.integers(1, 1000),
    st.sampled_from(LIMITS),
    st.floats(0.0, 5.0),
)
FACTS = st.builds(
    Facts,
    table=st.sampled_from([TABLE, None]),
    mixed_scale=st.floats(0.5, 3.0),
    decode_scale=st.floats(0.5, 3.0),
    kv_tokens=st.sampled_from([None, 1000, 200_000]),
    work=st.one_of(st.none(), st.builds(Work, st.integers(0, 9000), st.integers(0, 9000), st.just({0.05: 3}))),
    seen_at_s=st.floats(0.0, 5.0),
)


@settings(max_examples=60)
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    roles=st.lists(st.sampled_from(list(Role)), max_size=20),
    facts=st.lists(FACTS, min_size=1, max_size=4),
    sizes=st.lists(SIZES, min_size=1, max_size=12),
    avoided=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_choices_name_active_replicas_of_fitting_roles_and_are_the_same_again(
    policy: str, roles: list[Role], facts: list[Facts], sizes: list[Size], avoided: int, seed: int
) -> None:
    def run() -> list[Choice | NoEndpoint]:
        ledger = Ledger(
            Replica(f"r{i}", role, revision=str(i % 2), ready=i % 7 != 3, retired=i % 5 == 4)
            for i, role in enumerate(roles)
        )
        for i, name in enumerate(ledger.replicas):
            ledger.learn(name, facts[i % len(facts)])
        picker, found = Picker(policy, Random(seed)), []
        for i, size in enumerate(sizes):
            avoid = frozenset(f"r{j}" for j in range(avoided * (i % 2)))
            choice = picker.choose(ledger, size, float(i), avoid)
            found.append(choice)
            if isinstance(choice, NoEndpoint):
                continue
            decode = ledger.replicas[choice.decode]
            prefill = decode if choice.prefill is None else ledger.replicas[choice.prefill]
            assert prefill.is_active
            assert decode.is_active
            assert not {prefill.name, decode.name} & avoid
            assert prefill.revision == decode.revision
            assert decode.role is not Role.PREFILL
            assert (prefill.role is Role.PREFILL) == (choice.prefill is not None)
            assert 0.0 <= choice.ttft_s < float("inf")
            ledger.begin(size, choice.prefill, choice.decode, float(i))
        return found

    assert run() == run()


class Changes(RuleBasedStateMachine):
    """A ledger through arrivals, ends, scrapes and replicas that come and go; and the shortlist of it."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(Replica(f"r{i}", list(Role)[i % 3], ready=True) for i in range(6))
        self.shortlist = Shortlist(self.ledger)
        self.live: list[Flight] = []
        self.names = 6

    @rule(size=SIZES, i=st.integers(0, 99))
    def begin(self, size: Size, i: int) -> None:
        names = [r.name for r in self.ledger.replicas.values() if r.role is not Role.PREFILL]
        if names:
            self.live.append(self.ledger.begin(size, None, names[i % len(names)], 1.0))

    @rule(size=SIZES, i=st.integers(0, 99))
    def begin_apart(self, size: Size, i: int) -> None:
        replicas = self.ledger.replicas.values()
        prefills = [r.name for r in replicas if r.role is Role.PREFILL]
        decodes = [r.name for r in replicas if r.role is Role.DECODE]
        if prefills and decodes:
            pair = prefills[i % len(prefills)], decodes[i % len(decodes)]
            self.live.append(self.ledger.begin(size, *pair, 1.0))

    @precondition(lambda self: self.live)
    @rule(i=st.integers(0, 99))
    def hand_over(self, i: int) -> None:
        flight = self.live[i % len(self.live)]
        if flight.prefill is not None and flight.parked_on is None and flight.decoding_on is None:
            self.ledger.prefilled(flight, 1.5)
            self.ledger.decode_on(flight, flight.decode.name)

    @precondition(lambda self: self.live)
    @rule(i=st.integers(0, 99), count=st.integers(1, 3000))
    def relay(self, i: int, count: int) -> None:
        self.ledger.tokens(self.live[i % len(self.live)], count)

    @precondition(lambda self: self.live)
    @rule(i=st.integers(0, 99), ends=st.booleans())
    def go_on(self, i: int, ends: bool) -> None:
        flight = self.live[i % len(self.live)]
        self.ledger.first_token(flight, 2.0)
        if ends:
            self.ledger.end(flight, 2.0)
            self.live.remove(flight)

    @rule(i=st.integers(0, 99), ready=st.booleans())
    def turn(self, i: int, ready: bool) -> None:
        if self.ledger.replicas:
            self.ledger.set_ready(list(self.ledger.replicas)[i % len(self.ledger.replicas)], ready)

    @rule(facts=FACTS, i=st.integers(0, 99))
    def learn(self, facts: Facts, i: int) -> None:
        if self.ledger.replicas:
            self.ledger.learn(list(self.ledger.replicas)[i % len(self.ledger.replicas)], facts)

    @rule(again=st.booleans())
    def replace_an_idle_one(self, again: bool) -> None:
        idle = next((r for r in self.ledger.replicas.values() if r.is_idle), None)
        if idle is not None:
            self.ledger.remove(idle.name)
            self.names += 1
            self.ledger.add(Replica(idle.name if again else f"r{self.names}", idle.role, ready=True))

    @rule(size=SIZES)
    def misses_are_not_negative(self, size: Size) -> None:
        for replica in self.ledger.replicas.values():
            seen = foresee(replica, size, 0, 1.0, 0.0, self.ledger.errors)
            assert seen.misses >= -1e-9
            assert 0.0 < seen.alone_s <= seen.ttft_s < float("inf")
            assert slowed(replica, size, self.ledger.load, self.ledger.share, self.ledger.own) >= 0.0

    @invariant()
    def the_tightest_pace_is_that_of_all_who_decode_there(self) -> None:
        for replica in self.ledger.replicas.values():
            assert replica.tightest_s == min((*replica.paces, *replica.others.paces), default=float("inf"))
            assert replica.others_paced == sum(replica.others.paces.values())

    @invariant()
    def heads_are_the_least_loaded_of_each_kind(self) -> None:
        for role in Role:
            heads = self.shortlist.heads(role)
            active = self.ledger.ready(role)
            kinds = {(r.facts.table, r.tightest_s) for r in active}
            assert len(set(heads)) == len(heads)
            assert set(heads) <= set(active)
            assert {(r.facts.table, r.tightest_s) for r in heads} == kinds
            for kind in kinds:
                loads = [load(r) for r in active if (r.facts.table, r.tightest_s) == kind]
                found = [load(r) for r in heads if (r.facts.table, r.tightest_s) == kind]
                assert sorted(found) == sorted(loads)[:HEADS]


Changes.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestShortlist = Changes.TestCase
