"""DistServe's figures 8 and 9 under a load that stays on: the same systems and objectives, capacities in steady runs.

The paper has no such runs, so nothing is judged: the curve, the capacity at 90 % by bisection (a curve that falls from
100 % to nothing between two rates has no crossing to be interpolated), the most in-SLO requests per second and GPU, and
the rates at which a run never settled. Runs are shorter than DESIGN §1's by their arrivals alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from paceline_planner.papers.distserve_cases import CASES, SYSTEMS, Case, System, digitised, fleet
from paceline_planner.papers.distserve_curves import PAPERS_OWN, QUICK_CASES, TARGET, panel
from paceline_planner.papers.distserve_lengths import lengths
from paceline_planner.papers.experiment import Experiment, Grid, Lab, Points, Result, ratio
from paceline_planner.search.trial import highest_rate
from paceline_planner.sim.arrivals import poisson_jobs
from paceline_planner.sim.steady import SteadyRule, steady_run

RULE = SteadyRule(arrivals=2000, most_arrivals=3000)  # a run that has not settled by then is void
QUICK_RULE = SteadyRule(drop_s=20, arrivals=150, p99_residences=1, most_arrivals=300)
SEEDS = (1, 2, 3)
TOLERANCE, QUICK_TOLERANCE = 0.05, 0.5  # of a capacity
FURTHER = 1.5  # step of rates beyond the figure's
COLUMNS = ("case", "system", "capacity at 90 %, rps/GPU", "attainment", "most in-SLO rps/GPU", "void at")


@dataclass(frozen=True, slots=True)
class Steady:
    """One system: mean attainment in percent at all rates tried, ascending; `void` rates; its capacity, rps per GPU."""

    points: Points
    void: frozenset[float]
    capacity_rps: float

    @property
    def most_good_rps(self) -> float:
        return max(rate * percent / 100 for rate, percent in self.points)


def rates(case: Case, quick: bool) -> tuple[float, ...]:
    return case.rates[1::4] if quick else case.rates[1::2]


def trial(folder: Path, quick: bool, case: Case, system: System, per_gpu_rps: float) -> tuple[float, bool]:
    """Mean attainment over the seeds in percent, and whether one of their runs is void."""
    spec = fleet(case, system, case.osdi)
    rate, source = per_gpu_rps * spec.gpus, lengths(folder, case.workload)
    runs = [
        steady_run(spec, poisson_jobs(source, rate, seed, case.osdi.name), rate, seed, QUICK_RULE if quick else RULE)
        for seed in (SEEDS[:1] if quick else SEEDS)
    ]
    return fmean(run.attainment_percent for run in runs), any(run.void for run in runs)


def measure(folder: Path, quick: bool, what: tuple[Case, System]) -> Steady:
    case, system = what
    at = partial(trial, folder, quick, case, system)
    return curve_and_capacity(at, rates(case, quick), QUICK_TOLERANCE if quick else TOLERANCE)


def curve_and_capacity(
    at: Callable[[float], tuple[float, bool]], asked: Sequence[float], tolerance: float = TOLERANCE
) -> Steady:
    """Every rate asked for, ascending, and a bisection above the last one before the first that misses TARGET."""
    found: dict[float, tuple[float, bool]] = {}

    def meets(rate: float) -> bool:
        if rate not in found:
            found[rate] = at(rate)
        return found[rate][0] >= TARGET

    failed = [rate for rate in asked if not meets(rate)]
    held = [rate for rate in asked if not failed or rate < failed[0]]
    low = held[-1] if held else asked[0]
    step = failed[0] / low if held and failed else FURTHER
    capacity = highest_rate(meets, low, tolerance, first_step=step, further_step=FURTHER)
    points = tuple((rate, found[rate][0]) for rate in sorted(found))
    return Steady(points, frozenset(rate for rate, (_, void) in found.items() if void), capacity)


def run(lab: Lab) -> Result:
    cases = QUICK_CASES if lab.quick else CASES
    wanted = [(case, system) for case in cases for system in SYSTEMS]
    found = dict(zip(wanted, lab.each(partial(measure, lab.traces, lab.quick), wanted), strict=True))
    published = digitised(lab.traces)
    panels = []
    for case in cases:
        curves = {system: found[case, system].points for system in SYSTEMS}
        theirs = {s: published[case.figure, s] for s in PAPERS_OWN}
        panels.append(panel(case.name, "requests/s per GPU", curves, theirs))
    rows = tuple(row(case, system, found[case, system], rates(case, lab.quick)) for case, system in wanted)
    remarks = tuple(remark(case, found[case, "DistServe"], found[case, "vLLM"]) for case in cases)
    return Result((), (Grid("steady runs, OSDI objectives", COLUMNS, rows),), tuple(panels), remarks)


def row(case: Case, system: System, of: Steady, shown: tuple[float, ...]) -> tuple[str, ...]:
    curve = "  ".join(f"{rate:g}: {percent:.0f}" for rate, percent in of.points if rate in shown)
    unsettled = ", ".join(f"{rate:g}" for rate in shown if rate in of.void)
    return (case.name, system, f"{of.capacity_rps:.3g}", curve, f"{of.most_good_rps:.3g}", unsettled)


def remark(case: Case, over: Steady, under: Steady) -> str:
    found = ratio(over.capacity_rps, under.capacity_rps)
    shown = "no ratio: a system holds 90 % at no rate" if found is None else f"DistServe / vLLM at 90 % is {found:.2f}"
    return f"{case.name}: steady, {shown} (published {case.ratio})"


EXPERIMENT = Experiment("distserve-steady", "DistServe: the same in steady runs", "OSDI'24 figures 8, 9", run)
