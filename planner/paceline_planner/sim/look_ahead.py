"""The oracle: which replica each request should have gone to, found by local search with all of the future known.

A short load on a small fleet of mixed replicas is simulated again and again, each time with the place of one request
changed that is late or came just before one that is; what leaves no fewer good requests is kept. It bounds the best
from below: the search ends when its trials do. Runs must not depend on noise, or the search would fit that.
Invariant: never fewer good requests than the places that it began with. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline_api.slo import Verdict, judge
from paceline_engine.sim.replica import Replica as Engine
from paceline_router.pick import Choice, Picker
from paceline_router.replica import Size
from paceline_router.state import Ledger

from paceline_planner.sim.fleet import Fleet
from paceline_planner.sim.rides import FleetSpec, Job, Ride
from paceline_planner.sim.routing import Router, RouterMaker, production

if TYPE_CHECKING:
    from random import Random

BEFORE_S = 1.5  # a request may be late by those that came so long before it

Places = tuple[str, ...]  # replicas, in order of arrival


@dataclass(frozen=True, slots=True)
class Played:
    """A load that was served: where each request went, and whether it was good."""

    places: Places
    good: tuple[bool, ...]


class Dictated(Picker):
    """Sends each request where it is told."""

    def __init__(self, places: Places, rng: Random) -> None:
        super().__init__("least-requests", rng)
        self._places = iter(places)

    def choose(self, ledger: Ledger, size: Size, now: float, avoid: frozenset[str] = frozenset()) -> Choice:
        return Choice(None, next(self._places), 0.0, 0.0)


def play(spec: FleetSpec, jobs: Sequence[Job], make_router: RouterMaker = production) -> Played:
    """Serves the jobs to the end."""
    rides: list[Ride] = []
    Fleet(spec, 1, lambda _: False, rides.append, make_router=make_router).run(iter(jobs))
    good = (judge(spec.classes[r.job.class_name], r.course, r.course.arrival_s) is Verdict.GOOD for r in rides)
    return Played(tuple(ride.on for ride in rides), tuple(good))


def replay(spec: FleetSpec, jobs: Sequence[Job], places: Places) -> Played:
    """Serves the jobs where they are told to go."""

    def dictated(spec: FleetSpec, rng: Random, engines: Mapping[str, Engine]) -> Router:
        return Router(Dictated(places, rng), spec.classes, recompute=spec.recompute)

    return play(spec, jobs, dictated)


def look_ahead(spec: FleetSpec, jobs: Sequence[Job], begin: Played, trials: int, rng: Random) -> Played:
    """The best found from `begin`, after so many simulations."""
    names = [engine.name for engine in spec.engines]
    best = begin
    for _ in range(trials):
        if all(best.good):
            break
        i = _suspect(jobs, best, rng)
        elsewhere = rng.choice([name for name in names if name != best.places[i]])
        tried = replay(spec, jobs, (*best.places[:i], elsewhere, *best.places[i + 1 :]))
        if sum(tried.good) >= sum(best.good):
            best = tried
    return best


def _suspect(jobs: Sequence[Job], played: Played, rng: Random) -> int:
    """A request that is not good, or one that came shortly before it to the same replica."""
    late = rng.choice([i for i, good in enumerate(played.good) if not good])
    since_s, place = jobs[late].arrival_s - BEFORE_S, played.places[late]
    first = late
    while first and jobs[first - 1].arrival_s >= since_s:
        first -= 1
    return rng.choice([i for i in range(first, late + 1) if played.places[i] == place])
