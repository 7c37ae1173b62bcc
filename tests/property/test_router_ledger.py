"""The ledger under any order of events: nothing negative, figures the sums of their flights, none left at the end."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from paceline_router.facts import Role
from paceline_router.replica import Flight, Replica, Size
from paceline_router.state import Ledger

PREFILLS, DECODES = ["p0", "p1"], ["d0", "d1"]
NAMES = {"p0": Role.PREFILL, "p1": Role.PREFILL, "d0": Role.DECODE, "d1": Role.DECODE}


class Requests(RuleBasedStateMachine):
    flights: Bundle[Flight] = Bundle("flights")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(Replica(name, role, ready=True) for name, role in NAMES.items())
        self.live: list[Flight] = []
        self.now = 0.0

    @rule(
        target=flights,
        prompt=st.integers(1, 9000),
        output=st.integers(1, 900),
        p=st.sampled_from([*PREFILLS, None]),
        d=st.sampled_from(DECODES),
        limits=st.sampled_from([(0.3, 0.02), (1.0, 0.05), (30.0, 0.25)]),
        chain=st.integers(0, 3),
    )
    def begin(self, prompt: int, output: int, p: str | None, d: str, limits: tuple[float, float], chain: int) -> Flight:
        self.now += 0.1
        hashes = tuple(range(chain * 1000, chain * 1000 + prompt // 128)) if chain else ()
        size = Size(prompt, output, self.now + limits[0], limits[1], 100, hashes)
        flight = self.ledger.begin(size, p, d, self.now)
        assert flight.entry is not None
        assert 1 <= flight.entry.new_tokens <= prompt
        self.live.append(flight)
        return flight

    @rule(flight=flights)
    def prefilled(self, flight: Flight) -> None:
        if flight in self.live and flight.queued_on is not None and flight.queued_on is flight.prefill:
            self.ledger.prefilled(flight, self.now)

    @rule(flight=flights, d=st.sampled_from(DECODES))
    def fetch(self, flight: Flight, d: str) -> None:
        if flight in self.live and flight.parked_on is not None:
            self.ledger.give_back_decode(flight)
            self.ledger.decode_on(flight, d)

    @rule(flight=flights, p=st.sampled_from(PREFILLS))
    def prefill_again(self, flight: Flight, p: str) -> None:
        if flight in self.live and flight.prefill is not None:
            self.ledger.prefill_on(flight, p, self.now)

    @rule(flight=flights, d=st.sampled_from(DECODES))
    def recompute(self, flight: Flight, d: str) -> None:
        if flight in self.live:
            self.ledger.compute_on(flight, d, self.now)

    @rule(flight=flights)
    def first_token(self, flight: Flight) -> None:
        if flight in self.live:
            self.ledger.first_token(flight, self.now)

    @rule(flight=flights, count=st.integers(1, 2000))
    def tokens(self, flight: Flight, count: int) -> None:
        if flight in self.live:
            self.ledger.tokens(flight, count)

    @rule(flight=consumes(flights))
    def end(self, flight: Flight) -> None:
        self.ledger.end(flight, self.now)
        self.ledger.end(flight, self.now)
        self.live.remove(flight)
        assert not flight.kv

    @invariant()
    def figures_are_the_sums_of_the_flights(self) -> None:
        for name, r in self.ledger.replicas.items():
            queued = [f.size.prompt_tokens for f in self.live if f.queued_on is r]
            assert (r.prefill_queue, r.prefill_tokens) == (len(queued), sum(queued))
            assert r.prefill_squares == sum(n * n for n in queued)
            assert r.kv_parked == sum(f.size.prompt_tokens for f in self.live if f.parked_on is r)
            entries = sorted(f.entry for f in self.live if f.queued_on is r and f.entry is not None)
            assert (r.queue, r.new_tokens) == (entries, sum(e.new_tokens for e in entries))
            assert r.paces == Counter(f.size.tpot_s for f in self.live if f.paced_on is r)
            incoming = [f.size.prompt_tokens for f in self.live if f.incoming_on is r]
            assert (r.incoming, r.incoming_context) == (len(incoming), sum(incoming))
            contexts = [f.context for f in self.live if f.decoding_on is r]
            assert (r.decodes, r.decode_context) == (len(contexts), sum(contexts))
            assert r.kv_reserved == sum(f.kv.get(name, 0) for f in self.live)
            assert r.kv_parked <= r.kv_reserved
            assert r.legs == sum(f.leg_on is r for f in self.live)
            assert min(r.legs, r.prefill_queue, r.incoming, r.decodes, r.kv_reserved, r.kv_parked) >= 0


Requests.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedger = Requests.TestCase
