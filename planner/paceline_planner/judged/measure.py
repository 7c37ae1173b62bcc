"""One run of a judged policy, and the highest rate that it holds: steady runs in which a stall is a miss.

Like sim/steady.py a run drops its beginning, measures a number of arrivals, and keeps the load on until the last of
them is decided; unlike there, a gap above the class's stall cap makes a request a miss, whatever its mean. A capacity
is bracketed on one seed and settled on all. Deterministic from its seeds. Times are seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from paceline_api.slo import SLOClass, Verdict, judge

from paceline_planner.aggregate import worst_quartile_percent
from paceline_planner.sim.fleet import Fleet, FleetSpec, Job, Ride

STALLED, UNDECIDED, LEFT_OUT = "stall", "undecided", "left out"


@dataclass(frozen=True, slots=True)
class Window:
    """What is dropped at the beginning, and how many arrivals are measured then."""

    drop_s: float = 60.0
    arrivals: int = 3000


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. `verdicts` counts (class, verdict); `over_percent`: the least attainment over its class's target."""

    rate_rps: float
    attainment_percent: Mapping[str, float]
    over_percent: float
    goodput_rps: float
    good_tokens_per_s: float
    worst_quartile_percent: float
    verdicts: Mapping[tuple[str, str], int]


LOOK_EVERY_S = 1.0
HOPELESS_POINTS = 5.0  # a run that must end this far below a target ends: no capacity that needs it is called held


@dataclass(slots=True)
class _Line:
    """The measured rides of one class: how many, how many missed or are left out, and those not decided yet."""

    slo: SLOClass
    count: int = 0
    missed: int = 0
    left_out: int = 0
    open: list[Ride] = field(default_factory=list)

    def look(self, now: float) -> None:
        found = [verdict(self.slo, ride, now) for ride in self.open]
        self.missed += sum(v not in (None, Verdict.GOOD, LEFT_OUT) for v in found)
        self.left_out += found.count(LEFT_OUT)
        self.open = [ride for ride, v in zip(self.open, found, strict=True) if v is None]

    def most_percent(self, to_come: int) -> float:
        """What it attains if every ride that is not decided, and `to_come` more, are good; 0 if all are left out."""
        counted = self.count + to_come - self.left_out
        return 100 * (1 - self.missed / counted) if counted else 0.0


@dataclass(slots=True)
class _Watch:
    """Says when every measured ride is decided, or, if it `cuts`, that a class is hopeless whatever comes."""

    window: Window
    cuts: bool
    lines: Mapping[str, _Line]
    measured: list[Ride] = field(default_factory=list)
    next_look_s: float = 0.0

    def arrived(self, ride: Ride) -> None:
        if ride.job.arrival_s >= self.window.drop_s and len(self.measured) < self.window.arrivals:
            self.measured.append(ride)
            line = self.lines[ride.job.class_name]
            line.count += 1
            line.open.append(ride)

    def ended(self, ride: Ride) -> bool:
        now, to_come = ride.course.end_s, self.window.arrivals - len(self.measured)
        assert now is not None
        if now < self.next_look_s or (to_come and not self.cuts):
            return False
        self.next_look_s = now + LOOK_EVERY_S
        for line in self.lines.values():
            line.look(now)
        if self.cuts and self.over_percent(to_come) < -HOPELESS_POINTS:
            return True
        return not to_come and not any(line.open for line in self.lines.values())

    def over_percent(self, to_come: int = 0) -> float:
        lines = [line for line in self.lines.values() if line.count]
        return min((line.most_percent(to_come) - 100 * line.slo.target_ratio for line in lines), default=0.0)


def verdict(slo: SLOClass, ride: Ride, now: float) -> str | None:
    """As the router judges, and STALLED for a good one with a gap above the stall cap; None: not decided at `now`.

    LEFT_OUT: it ended and has no verdict, as one that no replica can hold (DESIGN §1).
    """
    found = judge(slo, ride.course, now)
    if found in (None, Verdict.GOOD) and ride.gaps_s and max(ride.gaps_s) > slo.stall_s:
        return STALLED
    return LEFT_OUT if found is None and ride.course.outcome else found


def measure(
    spec: FleetSpec, jobs: Iterator[Job], rate_rps: float, seed: int, window: Window = Window(), *, cuts: bool = False
) -> Measured:
    """`jobs` never end; `spec` must record gaps. `cuts`: a run that is hopeless ends, with figures of what it saw."""
    assert spec.record_gaps, "a stall cannot be seen without the gaps"
    watch = _Watch(window, cuts, {name: _Line(slo) for name, slo in spec.classes.items()})
    fleet = Fleet(spec, seed, watch.ended, watch.arrived)
    fleet.run(jobs)
    fleet.check()
    rides = watch.measured
    verdicts = [(r.job.class_name, verdict(spec.classes[r.job.class_name], r, fleet.now) or UNDECIDED) for r in rides]
    good = [v == Verdict.GOOD for _, v in verdicts]
    judged = [(r.job.prompt_tokens, g) for r, g, (_, v) in zip(rides, good, verdicts, strict=True) if v != LEFT_OUT]
    counted = Counter(verdicts)
    span_s = rides[-1].job.arrival_s - rides[0].job.arrival_s
    return Measured(
        rate_rps,
        {name: line.most_percent(0) for name, line in watch.lines.items() if line.count},
        watch.over_percent(window.arrivals - len(rides)),
        sum(good) / span_s,
        sum(r.job.output_tokens for r, g in zip(rides, good, strict=True) if g) / span_s,
        worst_quartile_percent([tokens for tokens, _ in judged], [g for _, g in judged]) or 0.0,
        {key: counted[key] for key in sorted(counted)},
    )


Trial = Callable[[float, int], Measured]  # rate, seed

COARSE, STRIDE, MOST_STRIDES = 1.08, 1.3, 16


def bracket(trial: Trial, guess_rps: float, seed: int = 1, coarse: float = COARSE) -> float:
    """The highest rate within a factor `coarse` that one seed holds; 0 when none near does, or for a guess of 0."""
    if not guess_rps:
        return 0.0
    low, high, rate = 0.0, 0.0, guess_rps
    for _ in range(MOST_STRIDES):
        if trial(rate, seed).over_percent >= 0:
            low = rate
        else:
            high = rate
        if low and high and high / low <= coarse:
            return low
        rate = (low * high) ** 0.5 if low and high else (low * STRIDE if low else high / STRIDE)
    return low


def settle(trial: Trial, near_rps: float, seeds: Sequence[int], fine: float) -> float:
    """From a rate nearby in steps of a factor `fine`: the highest that the seeds hold on the mean, none hopelessly.

    0 where nothing is held nearby (`near_rps` 0).
    """
    if not near_rps:
        return 0.0

    def holds(rate: float) -> bool:
        over = []
        for seed in seeds:
            over.append(trial(rate, seed).over_percent)
            if over[-1] < -HOPELESS_POINTS:
                return False
        return fmean(over) >= 0

    rate, held = near_rps, holds(near_rps)
    for _ in range(MOST_STRIDES):
        following = rate * fine if held else rate / fine
        if holds(following) is not held:
            return rate if held else following
        rate = following
    return rate if held else 0.0
