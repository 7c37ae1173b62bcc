"""A router with perfect inputs: production's decisions, fed with what no router can know.

True lengths of answers, the machine's own step times, and at every decision the state of each engine as it is: what is
left to compute of each queued prompt, and what its prefix cache holds. What remains between it and production is the
price of not knowing; between it and look_ahead.py, that of deciding greedily. Invariant: the code that decides is
production's. For one router a fleet; times are seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from paceline_engine.request import Request
from paceline_engine.sim.replica import Replica as Engine
from paceline_router.facts import Facts
from paceline_router.pick import Picker
from paceline_router.prefixes import SPAN_TOKENS, PrefixIndex
from paceline_router.replica import Flight, Size
from paceline_router.state import Ledger

from paceline_planner.sim.rides import FleetSpec, Job, Ride
from paceline_planner.sim.routing import Route, Router, picker_of

if TYPE_CHECKING:
    from random import Random


class TruePrefixes(PrefixIndex):
    """What the engines' prefix caches hold, looked up there."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        super().__init__()
        self._engines = engines

    def note(self, name: str, hashes: Sequence[int], now: float, kv_tokens: int | None = None) -> None:
        """Nothing has to be remembered."""

    def cached(self, hashes: Sequence[int], now: float) -> dict[str, int]:
        found = {name: self.tokens_at(name, hashes, now) for name in self._engines}
        return {name: tokens for name, tokens in found.items() if tokens}

    def tokens_at(self, name: str, hashes: Sequence[int], now: float) -> int:
        kv = self._engines[name].view.kv
        return kv.cached_tokens(hashes) // kv.block_size * SPAN_TOKENS


class ExactLedger(Ledger):
    """A ledger that can be told how far a prompt is."""

    def progress(self, flight: Flight, left_tokens: int, now: float) -> None:
        """Of its prompt `left_tokens` are still to be computed."""
        replica, entry = flight.queued_on, flight.entry
        if replica is None or entry is None or entry.new_tokens == left_tokens:
            return
        prompt = flight.size.prompt_tokens
        squares = prompt**2 - (prompt - left_tokens) ** 2
        flight.entry = entry._replace(new_tokens=left_tokens, new_squares=squares, since_s=now)
        replica.queue[bisect_left(replica.queue, entry)] = flight.entry
        replica.new_tokens += left_tokens - entry.new_tokens
        replica.head_since_s = now
        self._alter(replica)


class Seer(Router):
    """Looks at its engines before each decision."""

    def __init__(self, spec: FleetSpec, picker: Picker, engines: Mapping[str, Engine]) -> None:
        self._exact = ExactLedger()
        super().__init__(picker, spec.classes, recompute=spec.recompute, waiting=spec.waiting, ledger=self._exact)
        self._exact.prefixes = TruePrefixes(engines)
        self._engines = engines
        self._rides: dict[str, Ride] = {}
        self._facts: dict[str, Facts] = {}

    def arrive(self, ride: Ride, now: float) -> Route:
        self._look(now)
        self._rides[ride.key] = ride
        return super().arrive(ride, now)

    def release(self, now: float) -> Iterator[tuple[Ride, Route]]:
        self._look(now)
        return super().release(now)

    def fetch(self, ride: Ride, now: float) -> Route:
        self._look(now)
        return super().fetch(ride, now)

    def scrape(self, engines: Mapping[str, Engine], now: float) -> None:
        """Nothing that it does not see."""

    def end(self, ride: Ride, now: float) -> None:
        super().end(ride, now)
        self._rides.pop(ride.key, None)

    def size(self, job: Job) -> Size:
        """With its true length."""
        return replace(super().size(job), output_tokens=job.output_tokens, pace_tokens=job.output_tokens)

    def _look(self, now: float) -> None:
        for name, engine in self._engines.items():
            facts = self._facts.get(name) or _truth(engine)
            self._facts[name] = facts = replace(facts, seen_at_s=now)
            self._exact.learn(name, facts)
            for request in (*engine.view.partials, *engine.view.waiting):
                self._see(engine, request, now)

    def _see(self, engine: Engine, request: Request, now: float) -> None:
        ride = self._rides.get(request.id)
        if ride is None or ride.way is None or ride.way.flight is None or request.emitted_tokens:
            return
        left = request.left_tokens
        if not request.blocks and request.block_hashes:
            left -= min(engine.view.kv.cached_tokens(request.block_hashes), left - 1)
        self._exact.progress(ride.way.flight, left, now)


def seer(spec: FleetSpec, rng: Random, engines: Mapping[str, Engine]) -> Router:
    """Makes one for a fleet (RouterMaker)."""
    return Seer(spec, picker_of(spec, rng), engines)


def _truth(engine: Engine) -> Facts:
    machine = engine.machine.spec
    table = replace(machine.table, tile_tokens=max(machine.tile_tokens, machine.table.tile_tokens))
    return Facts(table=table, token_budget=engine.view.limits.max_batched_tokens, kv_tokens=engine.capacity_tokens)
