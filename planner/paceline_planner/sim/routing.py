"""One router of a simulated fleet: production's ledger, pick and rules for failed legs, without HTTP.

Each method is told what happened to a ride and returns what comes next: a leg to send, or the outcome. Invariant: a
ride has a flight in the ledger from its first leg on, until `end`. Times are seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, assert_never

from paceline_api.outcomes import Outcome
from paceline_api.slo import SLOClass
from paceline_engine.lengths import OutputLengths
from paceline_engine.request import Leg
from paceline_engine.sim.replica import Replica as Engine
from paceline_engine.step_time import Regime
from paceline_router import attempts
from paceline_router.attempts import Again, DecodeElsewhere, Fault, GiveUp, NextStep, PrefillElsewhere, Recompute
from paceline_router.facts import Facts, Work
from paceline_router.pick import Choice, NoEndpoint, Picker
from paceline_router.replica import OUTPUT_QUANTILE, Flight, Replica, Size
from paceline_router.state import Ledger
from paceline_router.waiting import Fate, Prospect, Rule, WaitingRoom

from paceline_planner.sim.rides import EngineSpec, Job, Ride

if TYPE_CHECKING:
    from random import Random

LEGS = {Leg.WHOLE: attempts.Leg.WHOLE, Leg.PREFILL: attempts.Leg.PREFILL, Leg.DECODE: attempts.Leg.FETCH}


@dataclass(frozen=True, slots=True)
class Send:
    """The next leg of a ride."""

    replica: str
    leg: Leg


@dataclass(frozen=True, slots=True)
class Held:
    """It waits at the router: `release` says when it leaves."""


Route = Send | Outcome | Held


class Router:
    """`recompute` is kvTransfer.onFailure; `waiting` the rules of its waiting room, None without one."""

    def __init__(
        self,
        policy: str,
        rng: Random,
        classes: Mapping[str, SLOClass],
        *,
        recompute: bool,
        waiting: Mapping[str, Rule] | None = None,
    ) -> None:
        self.ledger = Ledger()
        self.picker = Picker(policy, rng)
        self.lengths = OutputLengths()
        self._classes = classes
        self._recompute = recompute
        self.room: WaitingRoom[Ride] | None = None if waiting is None else WaitingRoom(waiting)

    def join(self, engine: EngineSpec, known: Facts) -> None:
        """A replica that is ready."""
        self.ledger.add(Replica(engine.name, engine.role, engine.pool, engine.gpus, facts=known, ready=True))

    def scrape(self, engines: Mapping[str, Engine], now: float) -> None:
        """What the router learns from each engine's /metrics; a replica that is gone is forgotten once it is idle."""
        for name, engine in engines.items():
            self.ledger.learn(name, facts(engine, now))
            self.ledger.set_ready(name, True)
        for name in [name for name in self.ledger.replicas if name not in engines]:
            self.ledger.set_ready(name, False)
            if self.ledger.replicas[name].is_idle:
                self.ledger.remove(name)

    def arrive(self, ride: Ride, now: float) -> Route:
        """A new ride: it starts, or enters the waiting room."""
        if self.room is None:
            return self.start(ride, now)
        ride.size = self._size(ride.job)
        self.room.enter(ride, ride.job.class_name, ride.size.due_s)
        return Held()

    def release(self, now: float) -> Iterator[tuple[Ride, Route]]:
        """Those that leave the waiting room now, each before the next is looked at."""
        while self.room is not None and (left := self.room.release(lambda ride: self._prospect(ride, now), now)):
            yield left.what, Outcome.SHED if left.fate is Fate.SHED else self.start(left.what, now)

    def _prospect(self, ride: Ride, now: float) -> Prospect:
        choice = self.picker.choose(self.ledger, ride.size, now)
        if isinstance(choice, NoEndpoint):
            return Prospect(0.0, 0.0)  # it has nothing to wait for: its start ends it
        seen = self.picker.weigh(self.ledger, ride.size, now, choice)
        return Prospect(seen.misses, seen.alone_s)

    def start(self, ride: Ride, now: float) -> Route:
        """A new ride, or one that begins again."""
        ride.size = self._size(ride.job)
        match self.picker.choose(self.ledger, ride.size, now, ride.avoid):
            case NoEndpoint(message):
                return attempts.without_replica(_progress(ride), message).outcome
            case Choice(prefill=prefill, decode=decode, ttft_s=ttft_s):
                ride.flight = self.ledger.begin(ride.size, prefill, decode, now)
                self.ledger.expect(ride.flight, ttft_s, now)
                return Send(decode, Leg.WHOLE) if prefill is None else Send(prefill, Leg.PREFILL)

    def prefilled(self, ride: Ride, now: float) -> None:
        """Leg 1 is over."""
        self.ledger.prefilled(_held(ride), now)
        ride.parked_at_s = now

    def fetch(self, ride: Ride, now: float) -> Route:
        """Leg 2, to the decode replica that is best now."""
        flight = _held(ride)
        self.ledger.give_back_decode(flight)
        decode = self.picker.choose_decode(self.ledger, ride.size, now, ride.avoid)
        if isinstance(decode, NoEndpoint):
            elsewhere = self.picker.can_serve(self.ledger)
            step = attempts.without_decoder(_progress(ride), decode.message, elsewhere=elsewhere)
            ride.failures += isinstance(step, Again)
            return self._apply(ride, step, now)
        self.ledger.decode_on(flight, decode)
        return Send(decode, Leg.DECODE)

    def failed(self, ride: Ride, fault: Fault, now: float) -> Route:
        """The current leg ended in `fault`."""
        leg = LEGS[ride.leg]
        prefill = _held(ride).prefill
        ride.failures += 1
        ride.prefill_failures += attempts.counts_as_prefill_failure(leg, fault)
        ride.avoid |= {attempts.suspected(leg, fault, ride.on, prefill.name if prefill else None)}
        if attempts.blames_replica(fault):
            self.ledger.set_ready(ride.on, False)
        step = attempts.next_step(leg, fault, _progress(ride), now, recompute=self._recompute)
        return self._apply(ride, step, now)

    def end(self, ride: Ride, now: float) -> None:
        """It has its outcome."""
        if ride.course.outcome is Outcome.COMPLETED:
            self.lengths.observe(ride.job.class_name, ride.course.output_tokens)
        if ride.flight is not None:
            self.ledger.end(ride.flight, now)

    def _size(self, job: Job) -> Size:
        """What is known of it on arrival; its true length only bounds what is expected of it, as max_tokens does."""
        slo, expected = self._classes[job.class_name], self.lengths.remaining
        return Size(
            job.prompt_tokens,
            min(job.output_tokens, expected(job.class_name, 0, OUTPUT_QUANTILE)),
            job.arrival_s + slo.ttft_limit_s(job.prompt_tokens),
            slo.tpot_s,
            expected(job.class_name, 0),
            job.block_hashes,
        )

    def _apply(self, ride: Ride, step: NextStep, now: float) -> Route:
        match step:
            case Again():
                self.ledger.end(_held(ride), now)
                return self.start(ride, now)
            case PrefillElsewhere():
                return self._prefill_elsewhere(ride, now)
            case DecodeElsewhere():
                return self.fetch(ride, now)
            case Recompute():
                return self._compute(ride, now)
            case GiveUp(outcome):
                return outcome
            case _ as never:
                assert_never(never)

    def _prefill_elsewhere(self, ride: Ride, now: float) -> Route:
        prefill = self.picker.choose_prefill(self.ledger, ride.size, now, ride.avoid)
        if isinstance(prefill, NoEndpoint):
            return self._apply(ride, attempts.without_prefill(recompute=self._recompute), now)
        self.ledger.prefill_on(_held(ride), prefill, now)
        ride.parked_at_s = None
        return Send(prefill, Leg.PREFILL)

    def _compute(self, ride: Ride, now: float) -> Route:
        choice = self.picker.choose_computing(self.ledger, ride.size, now, ride.avoid)
        if isinstance(choice, NoEndpoint):
            return attempts.without_replica(_progress(ride), choice.message).outcome
        self.ledger.compute_on(_held(ride), choice.decode, now)
        return Send(choice.decode, Leg.WHOLE)


def facts(engine: Engine, now: float) -> Facts:
    """What an engine says of itself."""
    model = engine.model
    return Facts(
        table=model.table,
        mixed_scale=model.scale(Regime.MIXED),
        mixed_offset_s=model.offset_s(Regime.MIXED),
        decode_scale=model.scale(Regime.DECODE),
        decode_offset_s=model.offset_s(Regime.DECODE),
        token_budget=engine.budget_tokens or engine.view.limits.max_batched_tokens,
        block_size=engine.view.kv.block_size,
        kv_tokens=engine.capacity_tokens,
        work=_work(engine),
        seen_at_s=now,
    )


def _work(engine: Engine) -> Work:
    view = engine.view
    prompts = [*view.waiting, *view.partials]
    paced = [r for r in (*prompts, *view.decodes, *engine.remote, *engine.pulling.values()) if r.leg is not Leg.PREFILL]
    queued = sum(r.prompt_tokens - r.computed_tokens for r in prompts if r.emitted_tokens == 0)
    return Work(queued, sum(r.total_tokens for r in paced), Counter(r.objective.tpot_s for r in paced))


def _held(ride: Ride) -> Flight:
    assert ride.flight is not None, "a leg was sent before anything was chosen"
    return ride.flight


def _progress(ride: Ride) -> attempts.Progress:
    begun = ride.course.first_token_s is not None
    return attempts.Progress(ride.failures, ride.prefill_failures, inf, ride.parked_at_s, begun)
