"""The ledger: what this router has in flight on each replica, exactly, through both legs, and what it last scraped.

Every change is O(1) on the replicas that a request touches; a `Flight` remembers what it added, so that ending it
takes back precisely that. Replicas come and go meanwhile (roster.py). Invariants: no figure is ever negative; each
figure of a replica is the sum over the flights on it; a flight holds nothing after `end`. KV is counted in tokens and
reserved for the expected output; a prompt counts whole, and apart from that without what the prefix cache is thought
to hold of it (`new_`). Times: model seconds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from math import inf

from paceline_engine.work import NO_WORK, Work, told

from paceline_router.arriving import Load
from paceline_router.facts import Facts
from paceline_router.foresight import PredictionErrors, followed
from paceline_router.latency import link_seen
from paceline_router.prefixes import PrefixIndex
from paceline_router.replica import Flight, Promise, Queued, Recent, Replica, Size
from paceline_router.roster import Roster


class Ledger(Roster):
    """All replicas of the service, and what is in flight on them."""

    def __init__(self, replicas: Iterable[Replica] = ()) -> None:
        super().__init__(replicas)
        self._paced = self._others = 0  # requests that decode or will: this router's, and others'
        self.prefixes = PrefixIndex()
        self.load = Load()
        self.errors = PredictionErrors()
        self._flights = 0

    @property
    def own(self) -> float:
        """Of the work at all replicas, this router's part; 1 where there is none, or engines do not tell of others'."""
        total = self._paced + self._others
        return self._paced / total if total else 1.0

    @property
    def in_flight(self) -> int:
        """Requests of this router at the replicas."""
        return self._paced

    def remove(self, name: str) -> None:
        """An idle replica is gone."""
        self._others -= self.replicas[name].others_paced
        self.prefixes.forget(name)
        super().remove(name)

    def learn(self, name: str, facts: Facts) -> None:
        """What a scrape of the replica found."""
        replica = self.replicas[name]
        others = NO_WORK if facts.work is None else _without_own(facts.work, replica)
        if others != replica.others or not facts.says_as(replica.facts):
            paced = sum(others.paces.values())
            self._others += paced - replica.others_paced
            replica.others, replica.others_paced, replica.prompt_steps_s = others, paced, None
            replica.tightest_s = _tightest_s(replica)
            self._alter(replica)
        replica.facts, replica.queue_s = facts, None

    def begin(self, size: Size, prefill: str | None, decode: str, now: float, *, again: bool = False) -> Flight:
        """A request goes to `prefill` first, with its KV already reserved at `decode`; or wholly to `decode`.

        `again`: it had begun before, and is no new load.
        """
        self._flights += 1
        flight = Flight(size, self.replicas[decode], number=self._flights)
        if prefill is None:
            self.compute_on(flight, decode, now)
        else:
            self._expect(flight, self.replicas[decode])
            self.prefill_on(flight, prefill, now)
        if not again:
            self.load.note(flight.entry.new_tokens if flight.entry else 0, now)
        return flight

    def expect(self, flight: Flight, ttft_s: float, now: float) -> None:
        """Its choice, made now, foresees its first token in `ttft_s`; void where its prompt is computed elsewhere."""
        first = flight.prefill or flight.decode
        flight.promise = Promise(now, ttft_s, now - first.facts.seen_at_s, len(first.queue) == 1)

    def prefill_on(self, flight: Flight, prefill: str, now: float) -> None:
        """Leg 1 starts at `prefill`; whatever an earlier leg 1 left is given up."""
        self._drop_leg(flight)
        self._drop_prefill(flight, now)
        flight.promise = None
        flight.prefill = replica = self.replicas[prefill]
        self._leg(flight, replica)
        self._enqueue(flight, replica, now)
        self._reserve(flight, replica, flight.size.prompt_tokens)

    def prefilled(self, flight: Flight, now: float) -> None:
        """Leg 1 is complete: its KV waits at the prefill replica."""
        self._drop_leg(flight)
        self._dequeue(flight, now)
        if flight.prefill is not None:
            flight.parked_on = flight.prefill
            flight.prefill.kv_parked += flight.size.prompt_tokens

    def give_back_decode(self, flight: Flight) -> None:
        """Takes back what is reserved at the decode replica, so that it can be chosen anew without counting itself."""
        self._drop_leg(flight)
        self._drop_decode(flight)

    def decode_on(self, flight: Flight, decode: str, now: float | None = None) -> None:
        """Leg 2 starts at `decode`, which fetches the KV; `now` None where nobody will hear of the first token."""
        self.give_back_decode(flight)
        self._expect(flight, self.replicas[decode])
        flight.fetched_s = now if flight.decode.kv_room >= 0 else None  # a wait for room is no transfer
        self._leg(flight, flight.decode)

    def compute_on(self, flight: Flight, decode: str, now: float) -> None:
        """The whole request goes to `decode`, which computes the prompt itself; leg 1's KV, if any, is given up."""
        self._drop_leg(flight)
        self._drop_prefill(flight, now)
        self._drop_decode(flight)
        flight.prefill = flight.promise = None
        flight.decode = replica = self.replicas[decode]
        self._leg(flight, replica)
        self._enqueue(flight, replica, now)
        self._pace(flight, replica)
        self._reserve(flight, replica, flight.size.prompt_tokens + flight.size.output_tokens)

    def first_token(self, flight: Flight, now: float) -> None:
        """The first token came from the decode replica: its prompt is done, its KV fetched."""
        self._drop_prefill(flight, now)
        if flight.fetched_s is not None and flight.prefill is not None:
            took_s, tokens = now - flight.fetched_s, flight.size.prompt_tokens
            flight.decode.link, flight.fetched_s = link_seen(flight.prefill, flight.decode, tokens, took_s), None
        self._unexpect(flight)
        self._keep(flight, now)
        if flight.decoding_on is None:
            flight.decoding_on = replica = flight.decode
            flight.context = flight.size.prompt_tokens + 1
            replica.decodes += 1
            self._requeue(replica)
            replica.decode_context += flight.context

    def _keep(self, flight: Flight, now: float) -> None:
        """Learns from the promise, unless it was of a request that is late anyhow: the engine puts those last.

        How fast a replica computes prompts, those say that wait for no other and are not handed over.
        """
        promise = flight.promise
        if promise is not None:
            flight.promise = None
            if promise.chosen_s + promise.ttft_s <= flight.size.due_s:
                observed_s = now - promise.chosen_s
                self.errors.observe(promise.age_s, promise.ttft_s, observed_s)
                if promise.alone and flight.prefill is None:
                    flight.decode.drift = followed(flight.decode.drift, promise.ttft_s, observed_s)

    def tokens(self, flight: Flight, count: int) -> None:
        """`count` more tokens came; beyond the reservation the KV grows with them."""
        replica = flight.decoding_on
        if replica is not None:
            replica.signs += 1
            flight.context += count
            replica.decode_context += count
            over = flight.context - flight.kv[replica.name]
            if over > 0:
                self._reserve(flight, replica, over)

    def end(self, flight: Flight, now: float) -> None:
        """The request is over, however it ended. May be called again."""
        self._drop_leg(flight)
        self._drop_prefill(flight, now)
        self._drop_decode(flight)

    def _alter(self, replica: Replica) -> None:
        """Who decodes or will decode there are others: all that was foreseen of it is void."""
        replica.pacing = None
        self._requeue(replica)

    def _requeue(self, replica: Replica) -> None:
        """What is queued or decodes there has moved on: what was foreseen of its queue is void."""
        replica.outlook = replica.queue_s = None
        if self._changed is not None:
            self._changed.add(replica.name)

    def _leg(self, flight: Flight, replica: Replica) -> None:
        flight.leg_on = replica
        replica.legs += 1

    def _drop_leg(self, flight: Flight) -> None:
        if flight.leg_on is not None:
            flight.leg_on.legs -= 1
            flight.leg_on = None

    def _enqueue(self, flight: Flight, replica: Replica, now: float) -> None:
        flight.queued_on = replica
        if replica.prefill_queue == 0:
            replica.head_since_s = now
        self._requeue(replica)
        replica.prefill_queue += 1
        replica.prefill_tokens += flight.size.prompt_tokens
        replica.prefill_squares += flight.size.prompt_tokens**2
        flight.entry = entry = self._entry(flight, replica, now)
        insort(replica.queue, entry)
        replica.new_tokens += entry.new_tokens
        replica.recent = Recent(replica.recent.at(now) + entry.new_tokens, now)

    def _entry(self, flight: Flight, replica: Replica, now: float) -> Queued:
        size, cached = flight.size, 0
        if size.prefix:
            prefixes = self.prefixes
            cached = min(prefixes.tokens_at(replica.name, size.prefix, now), size.prompt_tokens - 1)
            prefixes.note(replica.name, size.prefix, now, replica.facts.kv_tokens)
        squares = size.prompt_tokens**2 - cached**2
        return Queued(
            size.due_s, flight.number, size.prompt_tokens - cached, squares, now, size.tpot_s, size.prompt_tokens
        )

    def _dequeue(self, flight: Flight, now: float) -> None:
        replica = flight.queued_on
        if replica is not None:
            flight.queued_on = None
            replica.head_since_s = now
            self._requeue(replica)
            replica.prefill_queue -= 1
            replica.prefill_tokens -= flight.size.prompt_tokens
            replica.prefill_squares -= flight.size.prompt_tokens**2
            assert flight.entry is not None
            del replica.queue[bisect_left(replica.queue, flight.entry)]
            replica.new_tokens -= flight.entry.new_tokens
            flight.entry = None

    def _expect(self, flight: Flight, replica: Replica) -> None:
        flight.decode = flight.incoming_on = replica
        replica.incoming += 1
        replica.incoming_context += flight.size.prompt_tokens
        self._pace(flight, replica)
        self._reserve(flight, replica, flight.size.prompt_tokens + flight.size.output_tokens)

    def _pace(self, flight: Flight, replica: Replica) -> None:
        """It decodes at `replica`, now or later."""
        self._unpace(flight)
        self._alter(replica)
        flight.paced_on = replica
        self._paced += 1
        tpot_s = flight.size.tpot_s
        replica.paces[tpot_s] = replica.paces.get(tpot_s, 0) + 1
        if tpot_s < replica.tightest_s:
            replica.tightest_s = tpot_s

    def _unpace(self, flight: Flight) -> None:
        replica = flight.paced_on
        if replica is not None:
            self._alter(replica)
            flight.paced_on = None
            self._paced -= 1
            tpot_s = flight.size.tpot_s
            left = replica.paces[tpot_s] - 1
            if left:
                replica.paces[tpot_s] = left
            else:
                del replica.paces[tpot_s]
                replica.tightest_s = _tightest_s(replica)

    def _unexpect(self, flight: Flight) -> None:
        if flight.incoming_on is not None:
            flight.incoming_on.incoming -= 1
            flight.incoming_on.incoming_context -= flight.size.prompt_tokens
            flight.incoming_on = None

    def _drop_prefill(self, flight: Flight, now: float) -> None:
        self._dequeue(flight, now)
        if flight.parked_on is not None:
            flight.parked_on.kv_parked -= flight.size.prompt_tokens
            flight.parked_on = None
        if flight.prefill is not None:
            self._release(flight, flight.prefill)

    def _drop_decode(self, flight: Flight) -> None:
        self._unexpect(flight)
        self._unpace(flight)
        if flight.decoding_on is not None:
            self._alter(flight.decoding_on)
            flight.decoding_on.decodes -= 1
            flight.decoding_on.decode_context -= flight.context
            flight.decoding_on = None
        self._release(flight, flight.decode)

    def _reserve(self, flight: Flight, replica: Replica, tokens: int) -> None:
        flight.kv[replica.name] = flight.kv.get(replica.name, 0) + tokens
        replica.kv_reserved += tokens
        if self._changed is not None:
            self._changed.add(replica.name)

    def _release(self, flight: Flight, replica: Replica) -> None:
        if (held := flight.kv.pop(replica.name, 0)) > 0:
            replica.kv_reserved -= held
            if self._changed is not None:
                self._changed.add(replica.name)


def _tightest_s(replica: Replica) -> float:
    """Of all that decode or will decode there, whoever sent them."""
    return min(min(replica.paces, default=inf), min(replica.others.paces, default=inf))


def _without_own(work: Work, replica: Replica) -> Work:
    """What is left of an engine's work for other routers; what is on its way there may hide a little of theirs."""
    own = told(replica.paces)
    paces = {pace: left for pace, n in work.paces.items() if (left := n - own.get(pace, 0)) > 0}
    context = work.context - replica.decode_context - replica.incoming_context - replica.prefill_tokens
    return Work(max(work.queued_tokens - replica.new_tokens, 0), max(context, 0) if paces else 0, paces)
