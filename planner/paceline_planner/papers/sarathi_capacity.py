"""Sarathi-Serve's capacities without pipeline parallelism (OSDI'24, figure 10), and what tells them apart.

Mistral-7B on one A100 and Yi-34B on two, strict and relaxed objectives, conversations and summaries; Orca, vLLM and
Sarathi as published, and beside them split-fuse, vLLM v1's default and the deadline-driven policy. The ratios to vLLM
on conversations are judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from paceline_planner.papers.experiment import Curve, Experiment, Finding, Grid, Lab, Panel, Result, ratio, within
from paceline_planner.papers.sarathi_machines import (
    BESIDE,
    MISTRAL,
    ORCA,
    PUBLISHED,
    SARATHI,
    VLLM,
    YI,
    Deployment,
    System,
)
from paceline_planner.papers.sarathi_trial import REQUESTS, Capacity, Case, Load, Search, find

TOLERANCE, QUICK_TOLERANCE = 0.03, 0.3
QUICK_REQUESTS = 256
SEEDS = (1, 2)
ALLOWED = 0.2  # issue: the ratios to vLLM on the four points without pipeline parallelism
OBJECTIVES = ("strict", "relaxed")


@dataclass(frozen=True, slots=True)
class Point:
    """One group of bars: `to_orca` as printed on it, `read_rps` of Orca, vLLM and Sarathi read off the plot."""

    deployment: Deployment
    relaxed: bool
    workload: str
    to_orca: float | None = None
    read_rps: tuple[float, ...] = ()

    @property
    def rates_rps(self) -> Mapping[System, float]:
        return dict(zip(PUBLISHED, self.read_rps, strict=False))

    @property
    def name(self) -> str:
        return f"{self.deployment.name}, {self.workload}, {OBJECTIVES[self.relaxed]}"


CHAT = (
    Point(MISTRAL, False, "chat", 2.78, (0.74, 0.78, 2.05)),
    Point(MISTRAL, True, "chat", 2.15, (1.05, 1.57, 2.25)),
    Point(YI, False, "chat", 4.00, (0.285, 0.31, 1.14)),
    Point(YI, True, "chat", 2.44, (0.52, 0.78, 1.28)),
)
TO_VLLM = (2.63, 1.43, 3.69, 1.65)  # §5.1; the 2.6, 1.43, 3.7 and 1.65
ARXIV = (
    Point(MISTRAL, False, "arxiv", 1.82),
    Point(MISTRAL, True, "arxiv", 1.97),
    Point(YI, False, "arxiv", 1.69),
    Point(YI, True, "arxiv", 1.94),
)
GUESS_OF_ARXIV = 0.4  # of the same point's on chat; where a search begins


@dataclass(frozen=True, slots=True)
class Found:
    """The capacity of a case: the mean over its seeds, and each one's search."""

    searches: tuple[Capacity, ...]

    @property
    def rate_rps(self) -> float:
        return fmean(s.rate_rps for s in self.searches)


def measure(lab: Lab, guesses: Mapping[Case, float], seeds: Sequence[int] = SEEDS) -> dict[Case, Found]:
    """The capacity of every case."""
    seeds = seeds[:1] if lab.quick else seeds
    tolerance = QUICK_TOLERANCE if lab.quick else TOLERANCE
    wanted = [Search(case, guess, seed, tolerance) for case, guess in guesses.items() for seed in seeds]
    found = lab.each(find, wanted)
    n = len(seeds)
    return {case: Found(tuple(found[i * n : (i + 1) * n])) for i, case in enumerate(guesses)}


def load(lab: Lab, workload: str) -> Load:
    return Load(workload, lab.traces, QUICK_REQUESTS if lab.quick else REQUESTS)


def capacity_grid(title: str, rates: Mapping[Point, Mapping[System, float]], systems: Sequence[System]) -> Grid:
    """Requests per second, ours and in brackets the published ones."""
    rows = []
    for point, of in rates.items():
        cells = [f"{of[s]:.2f} ({point.rates_rps[s]:g})" if s in point.rates_rps else f"{of[s]:.2f}" for s in systems]
        rows.append((point.name, *cells))
    return Grid(title, ("requests/s, published in brackets", *(s.name for s in systems)), tuple(rows))


def tail_panel(point: Point, found: Mapping[System, Found]) -> Panel:
    """P99 TBT over rate as a share of the objective, in the first seed's trials; published capacities at 1."""
    slo_s = point.deployment.slo_s[point.relaxed]
    curves = []
    for system, of in found.items():
        points = tuple((t.rate_rps, min(t.p99_tbt_s / slo_s, 3.0)) for t in of.searches[0].trials)
        curves.append(Curve(system.name, points))
    for system, rate in point.rates_rps.items():
        curves.append(Curve(f"{system.name}, capacity", ((rate, 0.0), (rate, 1.0)), published=True))
    return Panel(f"{point.name} ({slo_s:g} s)", "requests/s", "P99 TBT / objective (cut at 3)", tuple(curves))


def measure_points(
    lab: Lab, guesses: Mapping[Point, Sequence[float]], systems: Sequence[System], seeds: Sequence[int]
) -> dict[Point, dict[System, Found]]:
    """Every system at every point; searches begin at what is guessed for Orca, vLLM and Sarathi, others at the last."""
    cases = {p: {s: Case(p.deployment, s, p.relaxed, load(lab, p.workload)) for s in systems} for p in guesses}
    begin = {p: dict(zip(PUBLISHED, of, strict=True)) for p, of in guesses.items()}
    found = measure(lab, {cases[p][s]: of.get(s, of[SARATHI]) for p, of in begin.items() for s in systems}, seeds)
    return {p: {s: found[case] for s, case in of.items()} for p, of in cases.items()}


def run(lab: Lab) -> Result:
    systems = (*PUBLISHED, *BESIDE)
    by_point = measure_points(lab, {p: p.read_rps for p in (CHAT[:1] if lab.quick else CHAT)}, systems, SEEDS)
    if not lab.quick:
        guesses = {a: [GUESS_OF_ARXIV * r for r in c.read_rps] for a, c in zip(ARXIV, CHAT, strict=True)}
        by_point |= measure_points(lab, guesses, systems, SEEDS[:1])
    rates = {p: {s: f.rate_rps for s, f in of.items()} for p, of in by_point.items()}
    return Result(
        tuple(_findings(rates)),
        (capacity_grid("Capacity", rates, systems), _beside_grid(rates)),
        tuple(tail_panel(p, of) for p, of in by_point.items() if p.workload == "chat"),
        (_absolute(rates), *_tails(by_point)),
    )


def _findings(rates: Mapping[Point, Mapping[System, float]]) -> list[Finding]:
    found = []
    for point, published in zip(CHAT, TO_VLLM, strict=True):
        if point in rates:
            of = rates[point]
            found.append(within(f"{point.name}: Sarathi / vLLM", published, ratio(of[SARATHI], of[VLLM]), ALLOWED))
    found += [Finding(f"{p.name}: Sarathi / Orca", p.to_orca, ratio(of[SARATHI], of[ORCA])) for p, of in rates.items()]
    return found


def _beside_grid(rates: Mapping[Point, Mapping[System, float]]) -> Grid:
    """What today's baselines and the deadline-driven policy add to the published comparison."""
    rows = [(p.name, *(_share(ratio(of[s], of[SARATHI])) for s in BESIDE)) for p, of in rates.items()]
    return Grid("Beside it, as a share of Sarathi's capacity", ("point", *(s.name for s in BESIDE)), tuple(rows))


def _share(of: float | None) -> str:
    return "–" if of is None else f"{of:.2f}"


def _absolute(rates: Mapping[Point, Mapping[System, float]]) -> str:
    off = [abs(of[s] / p.rates_rps[s] - 1.0) for p, of in rates.items() for s in p.rates_rps]
    return (
        f"chat: absolute capacities are off by {100 * fmean(off):.0f} % in the mean and {100 * max(off):.0f} % at "
        "most; one of them (Sarathi, Mistral-7B, strict) set the host's time per sequence"
    )


def _tails(found: Mapping[Point, Mapping[System, Found]]) -> list[str]:
    """Whether the objective binds where it is relaxed."""
    tails = [
        search.best.p99_tbt_s / point.deployment.slo_s[point.relaxed]
        for point, of in found.items()
        if point.relaxed and point.workload == "chat"
        for search in of[SARATHI].searches
        if search.rate_rps
    ]
    if not tails:
        return []
    return [f"chat, relaxed: Sarathi's P99 TBT at its capacity is {min(tails):.2f}-{max(tails):.2f} of the objective"]


EXPERIMENT = Experiment("sarathi-capacity", "Sarathi-Serve: capacity on one pipeline stage", "figure 10", run)
