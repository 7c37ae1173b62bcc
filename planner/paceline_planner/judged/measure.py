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

STALLED = "stall"


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


@dataclass(slots=True)
class _Watch:
    """Says when the last measured ride is decided."""

    window: Window
    classes: Mapping[str, SLOClass]
    measured: list[Ride] = field(default_factory=list)
    decided: int = 0

    def arrived(self, ride: Ride) -> None:
        if ride.job.arrival_s >= self.window.drop_s and len(self.measured) < self.window.arrivals:
            self.measured.append(ride)

    def ended(self, ride: Ride) -> bool:
        assert ride.course.end_s is not None
        if len(self.measured) < self.window.arrivals:
            return False
        while self.decided < len(self.measured) and self.verdict(self.measured[self.decided], ride.course.end_s):
            self.decided += 1
        return self.decided == len(self.measured)

    def verdict(self, ride: Ride, now: float) -> str | None:
        slo = self.classes[ride.job.class_name]
        found = judge(slo, ride.course, now)
        if found in (None, Verdict.GOOD) and ride.gaps_s and max(ride.gaps_s) > slo.stall_s:
            return STALLED
        return found


def measure(spec: FleetSpec, jobs: Iterator[Job], rate_rps: float, seed: int, window: Window = Window()) -> Measured:
    """`jobs` never end; `spec` must record gaps."""
    assert spec.record_gaps, "a stall cannot be seen without the gaps"
    watch = _Watch(window, spec.classes)
    fleet = Fleet(spec, seed, watch.ended, watch.arrived)
    fleet.run(jobs)
    fleet.check()
    rides = watch.measured
    verdicts = [(r.job.class_name, watch.verdict(r, fleet.now) or "") for r in rides]
    good = [v == Verdict.GOOD for _, v in verdicts]
    counted = Counter(verdicts)
    span_s = rides[-1].job.arrival_s - rides[0].job.arrival_s
    of = Counter(name for name, _ in verdicts)
    attained = {name: 100 * counted[name, str(Verdict.GOOD)] / of[name] for name in spec.classes if of[name]}
    return Measured(
        rate_rps,
        attained,
        min(a - 100 * spec.classes[name].target_ratio for name, a in attained.items()),
        sum(good) / span_s,
        sum(r.job.output_tokens for r, g in zip(rides, good, strict=True) if g) / span_s,
        worst_quartile_percent([r.job.prompt_tokens for r in rides], good) or 0.0,
        {key: counted[key] for key in sorted(counted)},
    )


Trial = Callable[[float, int], Measured]  # rate, seed

COARSE, STRIDE, MOST_STRIDES = 1.08, 1.3, 16


def bracket(trial: Trial, guess_rps: float, seed: int = 1, coarse: float = COARSE) -> float:
    """The highest rate within a factor `coarse` that one seed holds; 0 when none near does."""
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


def settle(trial: Trial, near_rps: float, seeds: Sequence[int], fine: float) -> tuple[float, list[Measured]]:
    """From a rate nearby in steps of a factor `fine`: the highest that all seeds together hold, and its runs."""

    def runs(rate: float) -> tuple[bool, list[Measured]]:
        found = [trial(rate, seed) for seed in seeds]
        return fmean(m.over_percent for m in found) >= 0, found

    rate = near_rps
    holds, best = runs(rate)
    for _ in range(MOST_STRIDES):
        rate = rate * fine if holds else rate / fine
        now_holds, found = runs(rate)
        if holds and not now_holds:
            return rate / fine, best
        best = found
        if not holds and now_holds:
            return rate, best
    return (rate if holds else 0.0), best
