"""A fleet on a virtual clock: production's router ledger, pick and batching policies around simulated machines.

Each event is handled once and pushes the events that follow from it; nothing else moves time. Invariant: every job
ends in exactly one outcome, and at the end no replica holds KV for anyone (`check`). Times are seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import count
from random import Random

from paceline_api.outcomes import Outcome
from paceline_api.slo import Course, SLOClass
from paceline_engine.lengths import OutputLengths
from paceline_engine.request import Leg, Objective, Request
from paceline_engine.sim.replica import Emitted, TooLong
from paceline_engine.sim.replica import Replica as Engine
from paceline_engine.sim.setup import ReplicaSpec, build
from paceline_engine.step_time import Regime
from paceline_router.pick import Choice, NoEndpoint, Picker
from paceline_router.state import OUTPUT_QUANTILE, Facts, Flight, Ledger, Replica, Role, Size

SCRAPE_EVERY_S = 1.0
LEDGER_EVERY_TOKENS = 8  # the router counts what it relays in pieces; each token by itself would only cost time


@dataclass(frozen=True, slots=True)
class Job:
    """One request of a workload; `block_hashes` name its full prompt blocks, empty without prefix caching."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    class_name: str
    block_hashes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One replica of the fleet."""

    name: str
    role: Role
    spec: ReplicaSpec
    gpus: int = 1


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """`transfer_in_tpot`: DistServe's way of counting, where the prefill's token is the first one (DESIGN §1).

    `max_context_tokens`: longer requests are rejected, as an engine does; None: whatever fits the KV cache is served.
    `record_gaps`: rides keep the times between their tokens, which costs a tenth of the speed.
    """

    engines: tuple[EngineSpec, ...]
    classes: Mapping[str, SLOClass]
    router_policy: str = "least-predicted-ttft"
    transfer_in_tpot: bool = False
    max_context_tokens: int | None = None
    record_gaps: bool = False

    @property
    def gpus(self) -> int:
        return sum(e.gpus for e in self.engines)


@dataclass(slots=True, eq=False)
class Ride:
    """A job on its way, and at its end the record of it."""

    id: int
    job: Job
    course: Course
    flight: Flight | None = None
    on: str = ""  # the replica that has its current leg
    prefilled_on: str = ""
    last_token_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)


class Kind(Enum):
    ARRIVAL = auto()
    STEP_END = auto()
    KV_ARRIVED = auto()
    SCRAPE = auto()


class Fleet:
    """`ended` is called with each ride at its end, and stops the run by returning True; `arrived` with each new one."""

    def __init__(
        self, spec: FleetSpec, seed: int, ended: Callable[[Ride], bool], arrived: Callable[[Ride], None] | None = None
    ) -> None:
        rng = Random(seed)
        self.spec = spec
        self.now = 0.0
        self.engines: dict[str, Engine] = {e.name: build(e.spec, Random(rng.random())) for e in spec.engines}
        self.ledger = Ledger(Replica(e.name, e.role, gpus=e.gpus) for e in spec.engines)
        self.picker = Picker(spec.router_policy, Random(rng.random()))
        self.lengths = OutputLengths()
        self.arrivals = 0
        self.outcomes = dict.fromkeys(Outcome, 0)
        self._ended = ended
        self._arrived = arrived
        self._stop = False
        self._rides: dict[str, Ride] = {}
        self._heap: list[tuple[float, int, Kind, object]] = []
        self._seq = count()
        self._scrape()
        for name in self.engines:
            self.ledger.set_ready(name, True)

    def run(self, jobs: Iterator[Job]) -> None:
        """Serve `jobs` (in order of arrival) until all have ended or `ended` says stop."""
        self._next_arrival(jobs)
        self._push(SCRAPE_EVERY_S, Kind.SCRAPE, None)
        while self._heap and not self._stop:
            self.now, _, kind, what = heapq.heappop(self._heap)
            match kind:
                case Kind.STEP_END:
                    assert isinstance(what, str)
                    self._step_end(what)
                case Kind.ARRIVAL:
                    assert isinstance(what, Job)
                    self._arrive(what)
                    self._next_arrival(jobs)
                case Kind.KV_ARRIVED:
                    assert isinstance(what, Ride)
                    self._kv_arrived(what)
                case Kind.SCRAPE:
                    self._scrape()
                    assert self._heap or not self._rides, "rides wait, and nothing will ever happen to them"
                    if self._heap:
                        self._push(self.now + SCRAPE_EVERY_S, Kind.SCRAPE, None)

    def check(self) -> None:
        """AssertionError unless arrivals are the sum of outcomes and rides in flight, and no KV block is lost."""
        assert self.arrivals == sum(self.outcomes.values()) + len(self._rides)
        for engine in self.engines.values():
            engine.view.kv.check(list(engine.holders()))
        if not self._rides:
            assert all(r.legs == r.kv_reserved == r.decode_context == 0 for r in self.ledger.replicas.values())

    def _push(self, at: float, kind: Kind, what: object) -> None:
        heapq.heappush(self._heap, (at, next(self._seq), kind, what))

    def _next_arrival(self, jobs: Iterator[Job]) -> None:
        job = next(jobs, None)
        if job is not None:
            self._push(job.arrival_s, Kind.ARRIVAL, job)

    def _arrive(self, job: Job) -> None:
        self.arrivals += 1
        ride = Ride(self.arrivals, job, Course(self.now, job.prompt_tokens, max_tokens=job.output_tokens))
        if self._arrived is not None:
            self._arrived(ride)
        most = self.spec.max_context_tokens
        if most is not None and job.prompt_tokens + job.output_tokens > most:
            self._end(ride, Outcome.REJECTED)
            return
        expected = self.lengths.remaining(job.class_name, 0, OUTPUT_QUANTILE)
        size = Size(job.prompt_tokens, min(job.output_tokens, expected))
        match self.picker.choose(self.ledger, size, self.now):
            case NoEndpoint():
                self._end(ride, Outcome.NO_ENDPOINT)
            case Choice(prefill=prefill, decode=decode):
                ride.flight = self.ledger.begin(size, prefill, decode, self.now)
                if prefill is None:
                    self._submit(ride, decode, Leg.WHOLE)
                else:
                    self._submit(ride, prefill, Leg.PREFILL)

    def _submit(self, ride: Ride, name: str, leg: Leg) -> None:
        job, slo = ride.job, self.spec.classes[ride.job.class_name]
        left_s = slo.ttft_limit_s(job.prompt_tokens) - (self.now - ride.course.arrival_s)
        prompt, output = job.prompt_tokens, 1 if leg is Leg.PREFILL else job.output_tokens
        if leg is Leg.DECODE and self.spec.transfer_in_tpot:
            prompt, output = prompt + 1, output - 1
        objective = Objective(job.class_name, left_s, slo.tpot_s, slo.stall_s)
        request = Request(str(ride.id), prompt, output, self.now, objective, job.block_hashes, leg)
        ride.on = name
        try:
            self.engines[name].submit(request)
        except TooLong:
            self._end(ride, Outcome.REJECTED)
            return
        self._rides[request.id] = ride
        self._kick(name)

    def _kick(self, name: str) -> None:
        engine = self.engines[name]
        while (request := engine.next_transfer()) is not None:
            ride = self._rides[request.id]
            self._push(self.now + engine.machine.transfer_s(ride.job.prompt_tokens), Kind.KV_ARRIVED, ride)
        if engine.batch is None:
            seconds = engine.begin(self.now)
            if seconds is not None:
                self._push(self.now + seconds, Kind.STEP_END, name)

    def _kv_arrived(self, ride: Ride) -> None:
        self.engines[ride.prefilled_on].release(str(ride.id))
        self.engines[ride.on].kv_arrived(str(ride.id))
        self._kick(ride.prefilled_on)
        self._kick(ride.on)

    def _step_end(self, name: str) -> None:
        emitted = self.engines[name].finish(self.now)
        self._note_tokens(emitted)
        for request in emitted.finished:
            ride = self._rides.pop(request.id)
            if request.leg is Leg.PREFILL:
                self._prefilled(ride)
            else:
                ride.course.output_tokens = ride.job.output_tokens
                self._end(ride, Outcome.COMPLETED)
        self._kick(name)

    def _note_tokens(self, emitted: Emitted) -> None:
        if self.spec.record_gaps:
            self._note_gaps(emitted)
        for request in emitted.tokens:
            if request.leg is Leg.PREFILL:
                continue
            tokens = request.emitted_tokens
            if tokens == 1:
                ride = self._rides[request.id]
                assert ride.flight is not None
                self.ledger.first_token(ride.flight, self.now)
                if ride.course.first_token_s is None:
                    ride.course.first_token_s = self.now
            elif tokens % LEDGER_EVERY_TOKENS == 0:
                flight = self._rides[request.id].flight
                assert flight is not None
                self.ledger.tokens(flight, LEDGER_EVERY_TOKENS)

    def _note_gaps(self, emitted: Emitted) -> None:
        for request in emitted.tokens:
            if request.leg is not Leg.PREFILL:
                ride = self._rides[request.id]
                if request.emitted_tokens > 1:
                    ride.gaps_s.append(self.now - ride.last_token_s)
                ride.last_token_s = self.now

    def _prefilled(self, ride: Ride) -> None:
        """Leg 1 is over: the decode replica is chosen again, now that more is known."""
        assert ride.flight is not None
        self.ledger.prefilled(ride.flight, self.now)
        ride.prefilled_on = ride.on
        if self.spec.transfer_in_tpot:
            ride.course.first_token_s = self.now
            if ride.job.output_tokens == 1:
                self.engines[ride.on].release(str(ride.id))
                ride.course.output_tokens = 1
                self._end(ride, Outcome.COMPLETED)
                return
        self.ledger.give_back_decode(ride.flight)
        decode = self.picker.choose_decode(self.ledger, ride.flight.size, self.now)
        if isinstance(decode, NoEndpoint):
            self.engines[ride.on].release(str(ride.id))
            self._end(ride, Outcome.NO_ENDPOINT)
            return
        self.ledger.decode_on(ride.flight, decode)
        self._submit(ride, decode, Leg.DECODE)

    def _end(self, ride: Ride, outcome: Outcome) -> None:
        ride.course.outcome = outcome
        ride.course.end_s = self.now
        if outcome is Outcome.COMPLETED:
            self.lengths.observe(ride.job.class_name, ride.course.output_tokens)
        self.outcomes[outcome] += 1
        if ride.flight is not None:
            self.ledger.end(ride.flight, self.now)
        self._stop = self._ended(ride) or self._stop

    def _scrape(self) -> None:
        """What the router learns from each engine's /metrics."""
        for name, engine in self.engines.items():
            model = engine.model
            self.ledger.replicas[name].facts = Facts(
                table=model.table,
                mixed_scale=model.scale(Regime.MIXED),
                mixed_offset_s=model.offset_s(Regime.MIXED),
                decode_scale=model.scale(Regime.DECODE),
                decode_offset_s=model.offset_s(Regime.DECODE),
                token_budget=engine.budget_tokens or engine.view.limits.max_batched_tokens,
                block_size=engine.view.kv.block_size,
                kv_tokens=engine.capacity_tokens,
                seen_at_s=self.now,
            )
