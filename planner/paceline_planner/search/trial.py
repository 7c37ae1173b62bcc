"""A finite load served on the virtual clock, and the highest rate at which enough of it meets its objective.

The rate is found by steps from a guess and then by bisection on its logarithm. Invariant: the rate
returned was tried and met the target, or it is 0. Rates are requests per second, times seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from paceline_api.slo import Course, SLOClass, Verdict, judge

from paceline_planner.sim.fleet import Fleet
from paceline_planner.sim.rides import FleetSpec, Job, Ride

LEAST_SHARE = 64  # of a guess: below that part of it nothing is looked for


class NothingServes(ValueError):
    """Nothing of what was asked about meets the class at any rate."""


def serve(spec: FleetSpec, jobs: Iterable[Job], seed: int) -> list[Course]:
    """What became of each job, in order of arrival; the fleet starts empty and runs until all have ended."""
    rides: list[Ride] = []
    fleet = Fleet(spec, seed, lambda _: False, rides.append)
    fleet.run(iter(jobs))
    fleet.check()
    return [ride.course for ride in rides]


def attained_ratio(slo: SLOClass, courses: Iterable[Course]) -> float:
    """Share of requests within both limits, of those that were not rejected; 0 for none."""
    verdicts = [judge(slo, course, course.end_s or 0.0) for course in courses]
    decided = [v for v in verdicts if v is not None]
    return sum(v is Verdict.GOOD for v in decided) / len(decided) if decided else 0.0


def highest_rate(
    meets: Callable[[float], bool],
    guess_rps: float,
    tolerance: float = 0.02,
    most_rps: float = inf,
    first_step: float = 2.0,
    further_step: float = 2.0,
) -> float:
    """The highest rate up to `most_rps` that `meets`, to a relative `tolerance`; 0 when none down to guess / 64 does.

    The first step away from the guess is a factor of `first_step`, each further one of `further_step`: overload costs
    most.
    """
    step, rate = first_step, guess_rps
    if meets(rate):
        while meets(further := min(step * rate, most_rps)):
            rate, step = further, further_step
            if rate == most_rps:
                return most_rps
        low, high = rate, further
    else:
        while not meets(lower := rate / step):
            rate, step = lower, further_step
            if rate < guess_rps / LEAST_SHARE:
                return 0.0
        low, high = lower, rate
    while high / low > 1 + tolerance:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low
