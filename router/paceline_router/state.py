"""The ledger: what this router has in flight on each replica, exactly, through both legs, and what it last scraped.

Every change is O(1) on the replicas that a request touches; a `Flight` remembers what it added, so that ending it
takes back precisely that. Replicas come and go while requests run. Invariants: no figure is ever negative; each figure
of a replica is the sum over the flights on it; a flight holds nothing after `end`. KV is counted in tokens and reserved
for the expected output. Times: model seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from paceline_engine.step_time import StepTable


class Role(StrEnum):
    """What the engines of a pool do."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Facts:
    """What an engine says of itself, as scraped at `seen_at_s`; the defaults hold before the first scrape."""

    table: StepTable | None = None
    mixed_scale: float = 1.0
    mixed_offset_s: float = 0.0
    decode_scale: float = 1.0
    decode_offset_s: float = 0.0
    token_budget: int = 2048  # vLLM's default max_num_batched_tokens
    block_size: int = 16
    kv_tokens: int | None = None  # None: not known, taken as enough
    seen_at_s: float = 0.0


@dataclass(slots=True, eq=False)
class Replica:
    """One engine as this router sees it. `prefill_squares` is Σ prompt², twice the attention pairs of the queue."""

    name: str
    role: Role
    pool: str = ""
    gpus: int = 1
    revision: str = ""  # prefill and decode replicas hand KV over within one only
    facts: Facts = Facts()
    ready: bool = False
    retired: bool = False  # going: nothing new is sent here, whatever its probes say
    legs: int = 0  # requests sent here whose answer is not complete
    prefill_queue: int = 0  # requests whose prompt is waiting or being computed here
    prefill_tokens: int = 0
    prefill_squares: int = 0
    head_since_s: float = 0.0  # when the request at the head of that queue came to it
    decodes: int = 0
    decode_context: int = 0
    incoming: int = 0  # requests whose KV is expected: leg 1 runs, or the transfer does
    incoming_context: int = 0
    kv_reserved: int = 0
    kv_parked: int = 0  # of kv_reserved: prefilled, waiting to be fetched
    queue_s: float | None = None  # latency's memo of the queue's predicted seconds; None: to be computed again

    @property
    def is_active(self) -> bool:
        """Whether it may get requests."""
        return self.ready and not self.retired

    @property
    def is_idle(self) -> bool:
        """Whether no flight holds anything here."""
        return not (self.legs or self.prefill_queue or self.incoming or self.decodes or self.kv_reserved)

    @property
    def kv_room(self) -> float:
        """Unreserved KV, tokens; infinite where the capacity is not known."""
        return float("inf") if self.facts.kv_tokens is None else self.facts.kv_tokens - self.kv_reserved


OUTPUT_QUANTILE = 0.9  # KV is reserved for this quantile of a class's output lengths (DESIGN §6)


@dataclass(frozen=True, slots=True)
class Size:
    """What a request is expected to need: prompt tokens and output tokens to reserve KV for."""

    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True, eq=False)
class Flight:
    """One request's holdings. Each field that names a replica says where something of it is counted."""

    size: Size
    decode: Replica  # chosen, provisionally while leg 1 runs
    prefill: Replica | None = None
    leg_on: Replica | None = None
    queued_on: Replica | None = None
    parked_on: Replica | None = None
    incoming_on: Replica | None = None
    decoding_on: Replica | None = None
    context: int = 0
    kv: dict[str, int] = field(default_factory=dict)  # tokens reserved, by replica


class Ledger:
    """All replicas of the service, and what is in flight on them."""

    def __init__(self, replicas: Iterable[Replica] = ()) -> None:
        self.replicas = {replica.name: replica for replica in replicas}
        self._ready: dict[Role, tuple[Replica, ...]] = {}
        self.decoders: Mapping[str, tuple[Replica, ...]] = {}  # those that may get requests, by revision, by name
        self._group()

    def ready(self, role: Role) -> tuple[Replica, ...]:
        """Replicas of a role that may get requests, by name."""
        return self._ready[role]

    def add(self, replica: Replica) -> None:
        """A replica that was not there."""
        self.replicas[replica.name] = replica
        self._group()

    def retire(self, name: str, retired: bool) -> bool:
        """Whether this changed anything."""
        replica = self.replicas[name]
        if replica.retired is retired:
            return False
        replica.retired = retired
        self._group()
        return True

    def remove(self, name: str) -> None:
        """An idle replica is gone."""
        del self.replicas[name]
        self._group()

    def set_ready(self, name: str, ready: bool) -> bool:
        """Whether this changed anything."""
        replica = self.replicas[name]
        if replica.ready is ready:
            return False
        replica.ready = ready
        self._group()
        return True

    def _group(self) -> None:
        active = sorted((r for r in self.replicas.values() if r.is_active), key=lambda r: r.name)
        self._ready = {role: tuple(r for r in active if r.role is role) for role in Role}
        decoders = self._ready[Role.DECODE]
        revisions = sorted({replica.revision for replica in decoders})
        self.decoders = {v: tuple(r for r in decoders if r.revision == v) for v in revisions}

    def learn(self, name: str, facts: Facts) -> None:
        """What a scrape of the replica found."""
        replica = self.replicas[name]
        replica.facts, replica.queue_s = facts, None

    def begin(self, size: Size, prefill: str | None, decode: str, now: float) -> Flight:
        """A request goes to `prefill` first, with its KV already reserved at `decode`; or wholly to `decode`."""
        flight = Flight(size, self.replicas[decode])
        if prefill is None:
            self.compute_on(flight, decode, now)
        else:
            self._expect(flight, self.replicas[decode])
            self.prefill_on(flight, prefill, now)
        return flight

    def prefill_on(self, flight: Flight, prefill: str, now: float) -> None:
        """Leg 1 starts at `prefill`; whatever an earlier leg 1 left is given up."""
        self._drop_leg(flight)
        self._drop_prefill(flight, now)
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

    def decode_on(self, flight: Flight, decode: str) -> None:
        """Leg 2 starts at `decode`, which fetches the KV."""
        self.give_back_decode(flight)
        self._expect(flight, self.replicas[decode])
        self._leg(flight, flight.decode)

    def compute_on(self, flight: Flight, decode: str, now: float) -> None:
        """The whole request goes to `decode`, which computes the prompt itself; leg 1's KV, if any, is given up."""
        self._drop_leg(flight)
        self._drop_prefill(flight, now)
        self._drop_decode(flight)
        flight.prefill = None
        flight.decode = replica = self.replicas[decode]
        self._leg(flight, replica)
        self._enqueue(flight, replica, now)
        self._reserve(flight, replica, flight.size.prompt_tokens + flight.size.output_tokens)

    def first_token(self, flight: Flight, now: float) -> None:
        """The first token came from the decode replica: its prompt is done, its KV fetched."""
        self._drop_prefill(flight, now)
        self._unexpect(flight)
        if flight.decoding_on is None:
            flight.decoding_on = replica = flight.decode
            flight.context = flight.size.prompt_tokens + 1
            replica.decodes += 1
            replica.queue_s = None
            replica.decode_context += flight.context

    def tokens(self, flight: Flight, count: int) -> None:
        """`count` more tokens came; beyond the reservation the KV grows with them."""
        replica = flight.decoding_on
        if replica is not None:
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
        replica.queue_s = None
        replica.prefill_queue += 1
        replica.prefill_tokens += flight.size.prompt_tokens
        replica.prefill_squares += flight.size.prompt_tokens**2

    def _dequeue(self, flight: Flight, now: float) -> None:
        replica = flight.queued_on
        if replica is not None:
            flight.queued_on = None
            replica.head_since_s = now
            replica.queue_s = None
            replica.prefill_queue -= 1
            replica.prefill_tokens -= flight.size.prompt_tokens
            replica.prefill_squares -= flight.size.prompt_tokens**2

    def _expect(self, flight: Flight, replica: Replica) -> None:
        flight.decode = flight.incoming_on = replica
        replica.incoming += 1
        replica.incoming_context += flight.size.prompt_tokens
        self._reserve(flight, replica, flight.size.prompt_tokens + flight.size.output_tokens)

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
        if flight.decoding_on is not None:
            flight.decoding_on.queue_s = None
            flight.decoding_on.decodes -= 1
            flight.decoding_on.decode_context -= flight.context
            flight.decoding_on = None
        self._release(flight, flight.decode)

    def _reserve(self, flight: Flight, replica: Replica, tokens: int) -> None:
        flight.kv[replica.name] = flight.kv.get(replica.name, 0) + tokens
        replica.kv_reserved += tokens

    def _release(self, flight: Flight, replica: Replica) -> None:
        replica.kv_reserved -= flight.kv.pop(replica.name, 0)
