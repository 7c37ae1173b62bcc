"""One router of a simulated fleet: production's ledger, pick and ways, without HTTP.

Each method is told what happened to a ride and returns what comes next: a leg to send, or the outcome. Invariant: a
ride has a way from its arrival on. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline_api.outcomes import Outcome
from paceline_api.slo import SLOClass
from paceline_engine.lengths import OutputLengths
from paceline_engine.sim.replica import Replica as Engine
from paceline_engine.step_time import Regime
from paceline_engine.work import work_of
from paceline_router.attempts import Fault, GiveUp
from paceline_router.facts import Facts
from paceline_router.pick import Picker
from paceline_router.prefixes import SPAN_TOKENS
from paceline_router.replica import Replica, Size
from paceline_router.sizing import expected_size
from paceline_router.state import Ledger
from paceline_router.waiting import Fate, Rule, WaitingRoom
from paceline_router.way import Guide, Next, Send, Way

from paceline_planner.sim.rides import EngineSpec, FleetSpec, Job, Ride

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True)
class Held:
    """It waits at the router: `release` says when it leaves."""


Route = Send | Outcome | Held


class Router:
    """`waiting` are the rules of its waiting room, None without one."""

    def __init__(
        self,
        picker: Picker,
        classes: Mapping[str, SLOClass],
        *,
        recompute: bool,
        waiting: Mapping[str, Rule] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.ledger = ledger or Ledger()
        self.lengths = OutputLengths()
        self.room: WaitingRoom[Ride] | None = None if waiting is None else WaitingRoom(waiting)
        self._guide = Guide(self.ledger, picker, recompute)
        self.classes = classes
        self._blocks_a_span = 1

    def join(self, engine: EngineSpec, known: Facts) -> None:
        """A replica that is ready."""
        self._blocks_a_span = max(SPAN_TOKENS // engine.spec.block_size, 1)
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
        ride.way = way = Way(self._guide, self.size(ride.job))
        if self.room is None:
            return _route(way.start(now))
        self.room.enter(ride, way.claim(ride.job.class_name, ride.job.tenant))
        return Held()

    def release(self, now: float) -> Iterator[tuple[Ride, Route]]:
        """Those that leave the waiting room now, each before the next is looked at."""
        while self.room is not None and (left := self.room.release(lambda ride: _way(ride).prospect(now), now)):
            yield left.what, Outcome.SHED if left.fate is Fate.SHED else _route(_way(left.what).start(now))

    def prefilled(self, ride: Ride, now: float) -> None:
        """Leg 1 is over."""
        _way(ride).prefilled(now)

    def fetch(self, ride: Ride, now: float) -> Route:
        """Leg 2, to the decode replica that is best now."""
        return _route(_way(ride).fetch(now))

    def failed(self, ride: Ride, fault: Fault, now: float) -> Route:
        """The current leg ended in `fault`."""
        begun = ride.course.first_token_s is not None
        return _route(_way(ride).failed(fault, fault, now, client_has_bytes=begun))

    def first_token(self, ride: Ride, now: float) -> None:
        """The first token of its latest leg came from a decode or mixed replica."""
        self.ledger.first_token(_way(ride).held, now)

    def tokens(self, ride: Ride, count: int) -> None:
        """`count` more came."""
        self.ledger.tokens(_way(ride).held, count)

    def end(self, ride: Ride, now: float) -> None:
        """It has its outcome."""
        if ride.course.outcome is Outcome.COMPLETED:
            self.lengths.observe(ride.job.class_name, ride.course.output_tokens)
        if ride.way is not None:
            ride.way.end(now)

    def size(self, job: Job) -> Size:
        """What is known of it on arrival; its true length only bounds what is expected of it, as max_tokens does."""
        slo = self.classes[job.class_name]
        return expected_size(
            slo, self.lengths, job.arrival_s, job.prompt_tokens, job.output_tokens, self.spans(job.block_hashes)
        )

    def spans(self, block_hashes: tuple[int, ...]) -> tuple[int, ...]:
        """One hash for each full span of a prompt."""
        return block_hashes[self._blocks_a_span - 1 :: self._blocks_a_span]


RouterMaker = Callable[[FleetSpec, "Random", Mapping[str, Engine]], Router]


def production(spec: FleetSpec, rng: Random, engines: Mapping[str, Engine]) -> Router:
    """A router that knows of `engines` what it scrapes."""
    return Router(picker_of(spec, rng), spec.classes, recompute=spec.recompute, waiting=spec.waiting)


def picker_of(spec: FleetSpec, rng: Random) -> Picker:
    return Picker(spec.router_policy, rng, recompute=spec.recompute, local_prefill=spec.local_prefill)


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
        kv_tokens=engine.capacity_tokens,
        work=work_of(engine.residents),
        seen_at_s=now,
    )


def _way(ride: Ride) -> Way:
    assert ride.way is not None, "it has not arrived at a router"
    return ride.way


def _route(step: Next) -> Route:
    return step.outcome if isinstance(step, GiveUp) else step
