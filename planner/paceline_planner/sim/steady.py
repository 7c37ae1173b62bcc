"""Steady runs and capacities on the virtual clock, as DESIGN §1 defines them.

A steady run drops its beginning, measures a window that is long against both its requests and its noise, and keeps
the load on until the last measured request is decided. Capacity is the highest rate at which a steady run, and
every lower rate tried, meets each class's target. Deterministic from its seeds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from statistics import fmean

from paceline_api.slo import SLOClass, judge

from paceline_planner.aggregate import Record, quartiles_percent
from paceline_planner.report import Run, RunTally
from paceline_planner.sim.fleet import Fleet, FleetSpec, Job, Ride
from paceline_planner.sim.routing import RouterMaker, production
from paceline_planner.validity import Lateness

LOOK_EVERY = 256  # ended requests between two looks at whether the window is long enough


@dataclass(frozen=True, slots=True)
class SteadyRule:
    """DESIGN §1. A run whose load cannot be sustained never settles: it ends at `most_arrivals`, and says so."""

    drop_s: float = 60.0
    drop_residences: float = 3.0
    arrivals: int = 3000
    p99_residences: float = 20.0
    halves_points: float = 3.0
    most_arrivals: int = 12_000


@dataclass(frozen=True, slots=True)
class SteadyRun:
    """`void` is empty for a run that counts. `quartiles`: each class's attainment in percent, by prompt length."""

    seed: int
    rate_rps: float
    run: Run
    void: str
    quartiles: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def attainment_percent(self) -> float:
        return self.run.attainment_percent or 0.0


@dataclass(slots=True)
class _Window:
    """Watches a run and says when to stop; afterwards `measured` are its requests."""

    rule: SteadyRule
    classes: dict[str, SLOClass]
    rides: list[Ride] = field(default_factory=list)
    residence_s: list[float] = field(default_factory=list)
    begin_s: float = 0.0
    end_s: float = 0.0
    void: str = ""
    open: deque[Ride] = field(default_factory=deque)
    now: float = 0.0

    def ended(self, ride: Ride) -> bool:
        assert ride.course.end_s is not None
        self.now = ride.course.end_s
        self.residence_s.append(self.now - ride.course.arrival_s)
        if not self.end_s:
            if len(self.residence_s) % LOOK_EVERY:
                return False
            self._look()
            return False
        while self.open and (self.open[0].course.outcome or self._verdict(self.open[0]) is not None):
            self.open.popleft()
        return not self.open

    def _verdict(self, ride: Ride) -> object:
        return judge(self.classes[ride.job.class_name], ride.course, self.now)

    def _look(self) -> None:
        """Close the window when it is long enough, or when this load will never settle."""
        rule = self.rule
        ordered = sorted(self.residence_s)
        self.begin_s = max(rule.drop_s, rule.drop_residences * fmean(ordered))
        measured = self.measured(self.now)
        long_enough = self.now - self.begin_s >= rule.p99_residences * ordered[int(0.99 * (len(ordered) - 1))]
        exhausted = len(self.rides) >= rule.most_arrivals
        if len(measured) < rule.arrivals and not exhausted:
            return
        if long_enough and len(measured) >= rule.arrivals:
            drift = self._drift(measured)
            self.void = "" if drift <= rule.halves_points else f"its halves differ by {drift:.1f} points"
        else:
            self.void = f"not steady within {rule.most_arrivals} arrivals"
        if not self.void or exhausted:
            self.end_s = self.now
            self.open = deque(r for r in measured if r.course.outcome is None)

    def measured(self, until_s: float) -> list[Ride]:
        return [r for r in self.rides if self.begin_s <= r.course.arrival_s <= until_s]

    def _drift(self, measured: Sequence[Ride]) -> float:
        middle = len(measured) // 2
        halves = (self._attainment(measured[:middle]), self._attainment(measured[middle:]))
        return abs(halves[0] - halves[1])

    def _attainment(self, rides: Sequence[Ride]) -> float:
        verdicts = [v for r in rides if (v := self._verdict(r)) is not None]
        return 100 * fmean(v == "good" for v in verdicts) if verdicts else 0.0


def steady_run(
    spec: FleetSpec,
    jobs: Iterator[Job],
    rate_rps: float,
    seed: int,
    rule: SteadyRule = SteadyRule(),
    make_router: RouterMaker = production,
) -> SteadyRun:
    """One steady run of `jobs`, which never end, at their mean rate."""
    window = _Window(rule, dict(spec.classes))
    fleet = Fleet(spec, seed, window.ended, window.rides.append, make_router=make_router)
    fleet.run(jobs)
    fleet.check()
    tally = RunTally(spec.classes)
    for ride in window.measured(window.end_s):
        tally.add(Record(ride.job.class_name, ride.course), fleet.now)
    duration_s = window.end_s - window.begin_s
    run = tally.run(rate_rps, duration_s, gpus=spec.gpus, lateness=Lateness(virtual=True), simulated=True)
    quartiles = {name: quartiles_percent(t.prompt_tokens, t.good) for name, t in tally.classes.items()}
    return SteadyRun(seed, rate_rps, run, window.void, quartiles)


@dataclass(frozen=True, slots=True)
class Point:
    """One rate over all seeds."""

    rate_rps: float
    runs: tuple[SteadyRun, ...]

    @property
    def attainment_percent(self) -> float:
        return fmean(r.attainment_percent for r in self.runs)

    @property
    def void(self) -> str:
        return "; ".join(f"seed {r.seed}: {r.void}" for r in self.runs if r.void)

    def class_attainment_percent(self, name: str) -> float:
        found = [c.attainment_percent for r in self.runs for c in r.run.classes if c.name == name]
        return fmean(a or 0.0 for a in found)


Trial = Callable[
    [float, int], SteadyRun
]  # (rate, seed); a module-level function or partial, so that processes can run it


@dataclass(frozen=True, slots=True)
class Capacity:
    """`rate_rps` 0: not even the lowest rate tried meets the target. `points` are all rates tried, ascending."""

    rate_rps: float
    points: tuple[Point, ...]


def capacity(
    trial: Trial,
    target_percent: float,
    low_rps: float,
    high_rps: float,
    *,
    seeds: Sequence[int] = (1, 2, 3),
    tolerance: float = 0.02,
    pool: Executor | None = None,
) -> Capacity:
    """The highest rate that meets `target_percent` over all seeds, found by bisection to a relative `tolerance`.

    Void runs count with what they attained: a load that does not settle misses its target, and a settled one whose
    halves differ is measured as long as the rule allows. `low_rps` may have to be lowered and `high_rps` raised by
    factors of 2.
    """
    points: dict[float, Point] = {}

    def meets(rate: float) -> bool:
        runs = pool.map(trial, [rate] * len(seeds), seeds) if pool else map(trial, [rate] * len(seeds), seeds)
        points[rate] = Point(rate, tuple(runs))
        return points[rate].attainment_percent >= target_percent

    for _ in range(8):
        if meets(low_rps):
            break
        low_rps, high_rps = low_rps / 2, low_rps
    else:
        return Capacity(0.0, _ascending(points))
    while high_rps not in points and meets(high_rps):
        low_rps, high_rps = high_rps, 2 * high_rps
    while high_rps / low_rps > 1 + tolerance:
        middle = (low_rps * high_rps) ** 0.5
        if meets(middle):
            low_rps = middle
        else:
            high_rps = middle
    return Capacity(low_rps, _ascending(points))


def sweep(
    trial: Trial, rates_rps: Sequence[float], *, seeds: Sequence[int] = (1, 2, 3), pool: Executor | None = None
) -> tuple[Point, ...]:
    """The curve: every rate over all seeds."""
    wanted = [(rate, seed) for rate in rates_rps for seed in seeds]
    rates, all_seeds = [rate for rate, _ in wanted], [seed for _, seed in wanted]
    runs = list(pool.map(trial, rates, all_seeds) if pool else map(trial, rates, all_seeds))
    n = len(seeds)
    return tuple(Point(rate, tuple(runs[i * n : (i + 1) * n])) for i, rate in enumerate(rates_rps))


def _ascending(points: dict[float, Point]) -> tuple[Point, ...]:
    return tuple(points[rate] for rate in sorted(points))
