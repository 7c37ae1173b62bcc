"""How far the router's decisions are from the best: beside the same policy with perfect inputs, and beside an oracle.

Three mixed replicas without noise serve the same short load, around capacity: with each line's router, and with places
found by local search that knows all arrivals, lengths and step times (planner/paceline_planner/sim/look_ahead.py). The
search begins with the best line's places; what it finds bounds the best from below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from statistics import fmean

from paceline_planner.sim.look_ahead import Played, look_ahead, play
from paceline_planner.sim.routing import production
from paceline_planner.sim.seer import seer
from rich.console import Console
from rich.table import Table
from routing_workloads import OURS, REPLICAS, RIVAL, WORKLOADS, Side, Workload, fleet

ORACLE = "oracle"
FLEET, FACTORS, REQUESTS, TRIALS, SEEDS = 3, (1.0, 1.25), 240, 250, (1, 2)
QUICK_REQUESTS, QUICK_TRIALS = 120, 60
GREEDY = "greedy with perfect inputs"
LINES = (
    Side(OURS, OURS, FACTORS),
    Side(GREEDY, OURS, FACTORS, make_router=seer),
    Side(RIVAL, RIVAL, FACTORS),
    Side("round-robin", "round-robin", FACTORS),
)
NAMES = ("azure", "mooncake", "mixed")
LEAST_OF_GREEDY = 0.95


@dataclass(frozen=True, slots=True)
class Gap:
    """Attainment in percent of each line, mean of the seeds, on one workload at one rate."""

    workload: str
    factor: float
    attained: dict[str, float]


def oracle(console: Console, *, quick: bool) -> tuple[list[dict[str, object]], list[str]]:
    """Prints the lines; as JSON, and what is missed."""
    chosen = [w for w in WORKLOADS if w.name in NAMES]
    gaps = [gap(w, factor, quick=quick) for w in chosen for factor in (FACTORS[:1] if quick else FACTORS)]
    rows = Table(title=f"{FLEET} replicas without noise, {REQUESTS} requests: attainment in percent — SIMULATED")
    for column in ("workload", "× capacity", *(line.name for line in LINES), ORACLE, f"{OURS} / {ORACLE}"):
        rows.add_column(column, justify="left" if column == "workload" else "right")
    for found in gaps:
        share = found.attained[OURS] / found.attained[ORACLE]
        attained = (f"{percent:.1f}" for percent in found.attained.values())
        rows.add_row(found.workload, f"{found.factor:g}", *attained, f"{share:.3f}")
    console.print(rows)
    as_json: list[dict[str, object]] = [{"workload": g.workload, "factor": g.factor, **g.attained} for g in gaps]
    return as_json, missed(gaps)


def missed(gaps: Sequence[Gap]) -> list[str]:
    return [
        f"{g.workload} at {g.factor:g} × capacity, small fleet: below 95 % of greedy with perfect inputs"
        for g in gaps
        if g.attained[OURS] < LEAST_OF_GREEDY * g.attained[GREEDY]
    ]


def gap(workload: Workload, factor: float, *, quick: bool) -> Gap:
    found: dict[str, list[float]] = {}
    for seed in SEEDS[:1] if quick else SEEDS:
        for name, played in lines(workload, factor, seed, quick=quick).items():
            found.setdefault(name, []).append(100 * fmean(played.good))
    return Gap(workload.name, factor, {name: fmean(percents) for name, percents in found.items()})


def lines(workload: Workload, factor: float, seed: int, *, quick: bool) -> dict[str, Played]:
    rate = workload.capacity_rps * factor * FLEET / REPLICAS
    jobs = list(islice(workload.jobs(rate, seed), QUICK_REQUESTS if quick else REQUESTS))
    found: dict[str, Played] = {}
    for line in LINES:
        spec = fleet(workload, line, replicas=FLEET, noisy=False)
        found[line.name] = play(spec, jobs, line.make_router)
    begin = max(found.values(), key=lambda played: sum(played.good))
    spec = fleet(workload, LINES[0], replicas=FLEET, noisy=False)
    assert LINES[0].make_router is production
    found[ORACLE] = look_ahead(spec, jobs, begin, QUICK_TRIALS if quick else TRIALS, Random(seed))
    return found
