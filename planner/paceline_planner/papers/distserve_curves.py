"""DistServe's figures 8 and 9: attainment over rate and over SLO scale, in runs as short as the published ones.

The paper's runs have 25 to 100 prompts for each GPU, so that overload hardly builds; its ratios are those of the rates
at which attainment leaves 90 %. Here they are repeated with many seeds in place of one; distserve_steady.py keeps the
same load on. Machines, lengths and objectives are those of distserve_cases.py and distserve_lengths.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from statistics import fmean

from paceline_api.slo import Course, SLOClass

from paceline_planner.papers.distserve_cases import CASES, SYSTEMS, Case, System, digitised, fleet
from paceline_planner.papers.distserve_lengths import MEAN_TOKENS, lengths
from paceline_planner.papers.experiment import Curve, Experiment, Finding, Grid, Lab, Panel, Points, Result, crossing
from paceline_planner.papers.measured_runs import FILE, Latency, MeasuredRun, attainment, read_runs, replay
from paceline_planner.search.trial import serve
from paceline_planner.sim.arrivals import poisson_jobs

TARGET = 90.0
SEEDS = 10
QUICK_CASES, QUICK_SHARE = (CASES[0], *CASES[3:]), 3  # a third of the prompts, one seed
TOLERANCE = 0.2
PAPERS_OWN: tuple[System, ...] = ("vLLM", "DistServe")
WORKLOAD_COLUMNS = ("workload", "prompt, published", "output", "prompt, ours", "output")
REMARKS = ("Published points are single runs of few requests, ours means over seeds.",)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Attainment of one system, in percent: over rates by the objectives of each edition, and over SLO scales."""

    osdi: Points
    arxiv: Points
    scales: Points
    single: tuple[Points, ...]  # over rates, OSDI, of each seed: what the paper shows one of


@dataclass(frozen=True, slots=True)
class Trial:
    """One finite run: a rate and seed, or a rate at an SLO scale."""

    case: Case
    system: System
    rate: float
    scale: float
    seed: int


def finite(folder: Path, quick: bool, trial: Trial) -> list[Latency]:
    """What each request of the paper's number of them got."""
    case = trial.case
    spec = fleet(case, trial.system, scaled(case.osdi, trial.scale))
    arriving = poisson_jobs(lengths(folder, case.workload), trial.rate * spec.gpus, trial.seed, case.osdi.name)
    prompts = case.prompts_per_gpu * spec.gpus // (QUICK_SHARE if quick else 1)
    served = serve(spec, islice(arriving, prompts), trial.seed)
    return [Latency(ttft_s(course), course.tpot_s or 0.0) for course in served]


def ttft_s(course: Course) -> float:
    assert course.ttft_s is not None
    return course.ttft_s


def scaled(slo: SLOClass, scale: float) -> SLOClass:
    return replace(slo, ttft_s=scale * slo.ttft_s, tpot_s=scale * slo.tpot_s)


def sweep(lab: Lab, case: Case, system: System, scales: Sequence[float]) -> Sweep:
    """Every rate, and every SLO scale at the figure's rate; a policy that knows its objective is run at each scale."""
    seeds = range(1, 1 + (1 if lab.quick else SEEDS))
    rates = case.rates[1::3] if lab.quick else case.rates
    knows = system not in PAPERS_OWN
    scales = scales[:: 4 if lab.quick else 2] if knows else scales
    at_scales = scales if knows else (1.0,)
    wanted = [Trial(case, system, rate, 1.0, seed) for rate in rates for seed in seeds]
    wanted += [Trial(case, system, case.scale_rate, scale, seed) for scale in at_scales for seed in seeds]
    wanted = list(dict.fromkeys(wanted))
    found = dict(zip(wanted, lab.each(partial(finite, lab.traces, lab.quick), wanted), strict=True))

    def curve(slo: SLOClass, seed: int) -> Points:
        return tuple((rate, attainment(found[Trial(case, system, rate, 1.0, seed)], 1.0, slo)) for rate in rates)

    single = tuple(curve(case.osdi, seed) for seed in seeds)
    by_scale = []
    for scale in scales:
        runs = [found[Trial(case, system, case.scale_rate, scale if knows else 1.0, seed)] for seed in seeds]
        by_scale.append((scale, fmean(attainment(run, scale, case.osdi) for run in runs)))
    return Sweep(mean(single), mean([curve(case.arxiv, seed) for seed in seeds]), tuple(by_scale), single)


def mean(curves: Sequence[Points]) -> Points:
    """Of curves over the same rates."""
    return tuple((points[0][0], fmean(percent for _, percent in points)) for points in zip(*curves, strict=True))


def run(lab: Lab) -> Result:
    published = digitised(lab.traces)
    findings: list[Finding] = []
    rows, arxiv_rows = [], []
    by_rate, by_scale = [], []
    for case in QUICK_CASES if lab.quick else CASES:
        shown = {s: published.get((case.scale_figure, s), ()) for s in PAPERS_OWN}
        scales = sorted({x for points in shown.values() for x, _ in points})
        found = {system: sweep(lab, case, system, scales) for system in SYSTEMS}
        theirs = {s: published[case.figure, s] for s in PAPERS_OWN}
        findings += judge(case, found, theirs)
        rows += [row(case, system, found[system].osdi) for system in SYSTEMS]
        arxiv_rows += [row(case, system, found[system].arxiv) for system in PAPERS_OWN]
        by_rate.append(panel(case.name, "requests/s per GPU", {s: f.osdi for s, f in found.items()}, theirs))
        by_scale.append(panel(case.name, "SLO scale", {s: f.scales for s, f in found.items()}, shown))
    findings.append(real_runs(lab))
    columns = ("case", "system", "90 % crossing, rps/GPU", "80 %", "attainment at the figure's rates")
    return Result(
        tuple(findings),
        (
            Grid("OSDI objectives, the paper's number of requests", columns, tuple(rows)),
            Grid("arXiv v1 objectives (chat alone differs), the same runs", columns, tuple(arxiv_rows)),
            Grid("mean tokens", WORKLOAD_COLUMNS, workload_rows(lab.traces)),
        ),
        tuple(by_rate + by_scale),
        REMARKS,
    )


def judge(case: Case, found: dict[System, Sweep], theirs: dict[System, Points]) -> list[Finding]:
    """The ratio of the 90 % crossings, and how far our curves are from the published points."""
    ratio = crossings_ratio(found["DistServe"].osdi, found["vLLM"].osdi)
    name, (least, most) = f"{case.name}: DistServe / vLLM at 90 %", case.claimed
    note = f"{single_ratios(found)}; claimed {least}–{most}"
    if ratio is None:
        note = f"a curve does not cross 90 % on these rates; {note}"
    judged = Finding(name, case.ratio, ratio, (1 - TOLERANCE) * least, (1 + TOLERANCE) * most, note=note)
    if case.by_roofline:
        judged = Finding(name, case.ratio, ratio, note=f"{note}; by roofline, not judged")
    errors = []
    for s in PAPERS_OWN:
        at = dict(found[s].osdi)
        off = [abs(at[x] - y) for x, y in theirs[s] if x in at]
        if off:
            errors.append(
                Finding(f"{case.name}: {s}, mean distance from the published points", None, fmean(off), unit="points")
            )
    return [judged, *errors]


def crossings_ratio(over: Points, under: Points) -> float | None:
    """Of the rates at which two curves fall below TARGET; None where one does not."""
    first, second = crossing(under, TARGET), crossing(over, TARGET)
    return second / first if first and second else None


def real_runs(lab: Lab) -> Finding:
    """How far attainment by the OSDI objectives is from the real runs', on their own arrivals; the worst of them."""
    slo = CASES[0].osdi
    runs = read_runs(lab.traces / FILE)
    name = f"{len(runs)} real runs of OPT-13B by {slo.ttft_s:g} s and {slo.tpot_s:g} s, their arrivals: worst distance"
    return Finding(name, None, max(lab.each(partial(distance_points, slo), runs)), unit="points")


def distance_points(slo: SLOClass, run: MeasuredRun) -> float:
    return abs(attainment(replay(run).simulated, 1.0, slo) - attainment(run.measured, 1.0, slo))


def row(case: Case, system: System, points: Points) -> tuple[str, ...]:
    cells = (crossing(points, TARGET), crossing(points, 80.0))
    curve = "  ".join(f"{rate:g}: {percent:.0f}" for rate, percent in points)
    return (case.name, system, *("–" if cell is None else f"{cell:.3g}" for cell in cells), curve)


def single_ratios(found: dict[System, Sweep]) -> str:
    """The middle four fifths of the ratios that single runs as short as the paper's give."""
    pairs = zip(found["DistServe"].single, found["vLLM"].single, strict=True)
    ratios = sorted(ratio for second, first in pairs if (ratio := crossings_ratio(second, first)) is not None)
    if not ratios:
        return "no single run crosses"
    tenth = len(ratios) // 10
    return f"single runs {ratios[tenth]:.2g}–{ratios[-1 - tenth]:.2g}"


def workload_rows(folder: Path) -> tuple[tuple[str, ...], ...]:
    """Mean lengths of what is drawn beside the published ones, tokens."""
    rows = []
    for workload, published in MEAN_TOKENS.items():
        rng, source = Random(1), lengths(folder, workload)
        drawn = list(zip(*(source.draw(rng) for _ in range(20_000)), strict=True))
        ours = (f"{fmean(of):.0f}" for of in drawn)
        rows.append((workload, *(f"{tokens:.0f}" for tokens in published), *ours))
    return tuple(rows)


def panel(title: str, x: str, ours: dict[System, Points], theirs: dict[System, Points]) -> Panel:
    curves = [Curve(system, points) for system, points in ours.items()]
    curves += [Curve(f"{system}, published", points, published=True) for system, points in theirs.items() if points]
    return Panel(title, x, "attainment, %", tuple(curves))


EXPERIMENT = Experiment(
    "distserve-fig8-9", "DistServe: attainment over rate and SLO scale", "OSDI'24 figures 8, 9", run
)
