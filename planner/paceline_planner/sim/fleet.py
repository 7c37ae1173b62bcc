"""A fleet on a virtual clock: production's routers and batching policies around simulated machines.

Each event is handled once and pushes the events that follow from it; nothing else moves time. Replicas join, leave and
die while it runs; members.py, failures.py and autoscaler.py do so by actions on the same clock. Invariant: every job
ends in exactly one outcome, and at the end no replica holds KV for anyone (`check`). Times are seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from random import Random

from paceline_api.outcomes import Outcome
from paceline_api.slo import Course
from paceline_engine.request import Leg, Objective, Request
from paceline_engine.sim.pipeline import PipelinedReplica
from paceline_engine.sim.replica import Emitted, TooLong
from paceline_engine.sim.replica import Replica as Engine
from paceline_engine.sim.setup import build
from paceline_router import attempts
from paceline_router.attempts import Fault
from paceline_router.state import Ledger
from paceline_router.waiting import LOOK_EVERY_S
from paceline_router.way import Send

from paceline_planner.sim.handover import Handovers
from paceline_planner.sim.rides import ENGINE_LEGS, EngineSpec, FleetSpec, Job, Ride
from paceline_planner.sim.routing import Held, Route, Router, RouterMaker, facts, production
from paceline_planner.sim.timeline import Timeline

__all__ = ["EngineSpec", "Fleet", "FleetSpec", "Job", "Ride"]

LEDGER_EVERY_TOKENS = 8  # the router counts what it relays in pieces; each token by itself would only cost time


class Fleet:
    """`ended` is called with each ride at its end, and stops the run by returning True; `arrived` with each new one.

    `first_token` is called with each ride at its first token.
    """

    def __init__(
        self,
        spec: FleetSpec,
        seed: int,
        ended: Callable[[Ride], bool],
        arrived: Callable[[Ride], None] | None = None,
        first_token: Callable[[Ride], None] | None = None,
        *,
        make_router: RouterMaker = production,
    ) -> None:
        self._rng = rng = Random(seed)
        self.spec = spec
        self.timeline = Timeline()
        self.engines: dict[str, Engine] = {e.name: build(e.spec, Random(rng.random())) for e in spec.engines}
        self.routers = [make_router(spec, Random(rng.random()), self.engines) for _ in range(spec.routers)]
        self.arrivals = 0
        self.outcomes = dict.fromkeys(Outcome, 0)
        self.faults: Counter[Fault] = Counter()  # legs that failed
        self._ended = ended
        self._arrived = arrived
        self._first_token = first_token
        self._stop = False
        self._coming = False
        self._looking: set[int] = set()  # routers whose waiting room will be looked at
        self.rides: dict[str, Ride] = {}
        self._handovers = Handovers(self, spec, rng)
        for engine in spec.engines:
            self._introduce(engine)

    @property
    def now(self) -> float:
        return self.timeline.now

    @property
    def ledger(self) -> Ledger:
        """Of the first router."""
        return self.routers[0].ledger

    @property
    def is_over(self) -> bool:
        """Whether nothing runs and nothing will arrive."""
        return not self._coming and not self.rides

    def run(self, jobs: Iterator[Job]) -> None:
        """Serve `jobs` (in order of arrival) until all have ended or `ended` says stop."""
        self._next_arrival(jobs)
        every_s = self.spec.scrape_every_s
        for i, router in enumerate(self.routers):
            self.timeline.at(every_s * (1 + i / len(self.routers)), partial(self._scrape, router))
        self.timeline.play(lambda: self._stop)

    def check(self) -> None:
        """AssertionError unless arrivals are the sum of outcomes and rides in flight, and no KV block is lost."""
        assert self.arrivals == sum(self.outcomes.values()) + len(self.rides)
        for engine in self.engines.values():
            engine.view.kv.check(list(engine.holders()))
        if not self.rides:
            replicas = [r for router in self.routers for r in router.ledger.replicas.values()]
            assert all(r.legs == r.kv_reserved == r.decode_context == 0 for r in replicas)

    def join(self, engine: EngineSpec) -> None:
        """A new replica is ready now; it has learnt nothing yet. Names are never used again."""
        self.engines[engine.name] = build(engine.spec, Random(self._rng.random()))
        self._introduce(engine)

    def retire(self, name: str) -> None:
        """Send nothing new to a replica."""
        for router in self.routers:
            router.ledger.retire(name, True)

    def remove(self, name: str) -> list[Ride]:
        """A replica is gone; the rides whose leg, or whose KV, was on it."""
        engine = self.engines.pop(name)
        engine.view.kv.check(list(engine.holders()))
        return [r for r in self.rides.values() if r.on == name or (r.leg is Leg.DECODE and r.prefilled_on == name)]

    def is_idle(self, name: str) -> bool:
        """Whether nothing of a replica is used or promised."""
        engine = self.engines[name]
        idle = all(router.ledger.replicas[name].is_idle for router in self.routers)
        return idle and not engine.requests and not engine.parked

    def fail_leg(self, ride: Ride, fault: Fault) -> None:
        """The current leg of a ride failed; its engine, where there still is one, has forgotten it."""
        self.faults[fault] += 1
        del self.rides[ride.key]
        self._take(ride, self.routers[ride.router].failed(ride, fault, self.now))

    def _introduce(self, engine: EngineSpec) -> None:
        for router in self.routers:
            router.join(engine, facts(self.engines[engine.name], self.now))

    def _next_arrival(self, jobs: Iterator[Job]) -> None:
        job = next(jobs, None)
        self._coming = job is not None
        if job is not None:
            self.timeline.at(job.arrival_s + self.spec.front_s, partial(self._arrive, job, jobs), awaited=True)

    def _arrive(self, job: Job, jobs: Iterator[Job]) -> None:
        self._next_arrival(jobs)
        self.arrivals += 1
        ride = Ride(self.arrivals, job, Course(job.arrival_s, job.prompt_tokens, max_tokens=job.output_tokens))
        if len(self.routers) > 1:
            ride.router = self._rng.randrange(len(self.routers))
        if self._arrived is not None:
            self._arrived(ride)
        most = self.spec.max_context_tokens
        if most is not None and job.prompt_tokens + job.output_tokens > most:
            self._end(ride, Outcome.REJECTED)
            return
        router = self.routers[ride.router]
        self._take(ride, router.arrive(ride, self.now))
        if router.room is not None:
            self._release(router)

    def _take(self, ride: Ride, route: Route) -> None:
        """What its router decided. KV that is parked and no longer wanted goes with its lease."""
        fetches = isinstance(route, Send) and route.leg is attempts.Leg.FETCH
        if ride.parked_key and not fetches:
            self._handovers.abandon(ride)
        if isinstance(route, Send):
            self._submit(ride, route.replica, ENGINE_LEGS[route.leg])
        elif isinstance(route, Held):
            self.rides[ride.key] = ride
        else:
            self._end(ride, route)

    def _release(self, router: Router, *, looked: bool = False) -> None:
        """Who may leave a waiting room leaves; while others wait it is looked at again and again."""
        for ride, route in router.release(self.now):
            del self.rides[ride.key]
            self._take(ride, route)
        if looked:
            self._looking.discard(id(router))
        if router.room and id(router) not in self._looking:
            self._looking.add(id(router))
            self.timeline.at(self.now + LOOK_EVERY_S, partial(self._release, router, looked=True), awaited=True)

    def _submit(self, ride: Ride, name: str, leg: Leg) -> None:
        job, slo = ride.job, self.spec.classes[ride.job.class_name]
        left_s = slo.ttft_limit_s(job.prompt_tokens) - (self.now - ride.course.arrival_s)
        prompt, output = job.prompt_tokens, 1 if leg is Leg.PREFILL else job.output_tokens
        if leg is Leg.DECODE and self.spec.transfer_in_tpot:
            prompt, output = prompt + 1, output - 1
        if ride.way is not None and not self.spec.transfer_in_tpot:
            left_s -= ride.way.after_leg_s
        objective = Objective(job.class_name, left_s, slo.tpot_s, slo.stall_s)
        request = Request(ride.key, prompt, output, self.now, objective, job.block_hashes, leg)
        if self.spec.record_gaps and leg is not Leg.PREFILL:
            request.gaps_s = ride.gaps_s
        ride.on, ride.leg = name, leg
        engine = self.engines.get(name)
        self.rides[request.id] = ride
        if engine is None:
            self.fail_leg(ride, Fault.UNREACHED)
            return
        try:
            engine.submit(request)
        except TooLong:
            del self.rides[request.id]
            self._end(ride, Outcome.REJECTED)
            return
        self.kick(name)

    def kick(self, name: str, *, turn: bool = False) -> None:
        """Start what can start on a replica. `turn`: its loop came round, a step or a hand-over of its has ended."""
        engine = self.engines.get(name)
        if engine is None:
            return
        if engine.machine.spec.one_loop:
            if not self._pull_alone(engine, turn):
                return
        else:
            while (request := engine.next_transfer()) is not None:
                self._handovers.pull(engine, request.id)
        now = self.timeline.now
        while engine.can_begin(now) and (seconds := engine.begin(now)) is not None:
            self.timeline.at(now + seconds, partial(self._step_end, name), awaited=True)
            if isinstance(engine, PipelinedReplica) and engine.next_start_s > now:
                self.timeline.at(engine.next_start_s, partial(self.kick, name), awaited=True)

    def _pull_alone(self, engine: Engine, turn: bool) -> bool:
        """Start a hand-over of an engine that is one loop, if it is at that point; whether it may begin a step."""
        if engine.pulling or (engine.batch is not None and not turn):
            return False
        request = engine.next_transfer()
        if request is not None:
            self._handovers.pull(engine, request.id, engine.drain_s(self.now))
        return request is None

    def _step_end(self, name: str) -> None:
        if name not in self.engines:
            return
        emitted = self.engines[name].finish(self.now)
        self._note_tokens(emitted)
        for request in emitted.finished:
            ride = self.rides.pop(request.id)
            if request.leg is Leg.PREFILL:
                self._prefilled(ride, request.id)
            else:
                ride.course.output_tokens = ride.job.output_tokens
                self._end(ride, Outcome.COMPLETED)
        self.kick(name, turn=True)

    def _note_tokens(self, emitted: Emitted) -> None:
        for request in [r for r in emitted.tokens if r.emitted_tokens % LEDGER_EVERY_TOKENS < 2]:
            if request.leg is Leg.PREFILL:
                continue
            if request.emitted_tokens == 1:
                ride = self.rides[request.id]
                ride.started_s = request.started_s
                self._begin(ride)
            elif request.emitted_tokens % LEDGER_EVERY_TOKENS == 0:
                ride = self.rides[request.id]
                self.routers[ride.router].tokens(ride, LEDGER_EVERY_TOKENS)

    def _begin(self, ride: Ride) -> None:
        """Its first token from a decode or mixed replica."""
        self.routers[ride.router].first_token(ride, self.now)
        if ride.course.first_token_s is None:
            ride.course.first_token_s = self.now
            if self._first_token is not None:
                self._first_token(ride)

    def _prefilled(self, ride: Ride, key: str) -> None:
        """Leg 1 is over: the decode replica is chosen again, now that more is known."""
        router = self.routers[ride.router]
        router.prefilled(ride, self.now)
        ride.prefilled_on, ride.parked_key = ride.on, key
        if self.spec.transfer_in_tpot:
            ride.course.first_token_s = self.now
            if ride.job.output_tokens == 1:
                self.engines[ride.on].release(key)
                ride.prefilled_on = ride.parked_key = ""
                ride.course.output_tokens = 1
                self._end(ride, Outcome.COMPLETED)
                return
        self._take(ride, router.fetch(ride, self.now))

    def _end(self, ride: Ride, outcome: Outcome) -> None:
        ride.course.outcome = outcome
        ride.course.end_s = self.now
        self.outcomes[outcome] += 1
        self.routers[ride.router].end(ride, self.now)
        self._stop = self._ended(ride) or self._stop

    def _scrape(self, router: Router) -> None:
        router.scrape(self.engines, self.now)
        assert not self.rides or self.timeline.is_awaited, "rides wait, and nothing will ever happen to them"
        if not self.is_over:
            self.timeline.at(self.now + self.spec.scrape_every_s, partial(self._scrape, router))
