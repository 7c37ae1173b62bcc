"""What the router's benchmark measured, as tables, and which of issue 8's goals it misses.

Sides are compared on the same arrivals, so a ratio is one of pairs: seed by seed, with a 95 % interval of Student's t.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

from rich.console import Console
from rich.table import Table
from routing_workloads import FRESH, OURS, PERFECT, RIVAL, ROOM, THREE_ROUTERS

STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
ABOVE_RIVAL, LEAST_OF_RIVAL, LEAST_OF_PERFECT, LEAST_APART = 1.1, 0.98, 0.95, 0.95
LEAST_AT_TWICE, LEAST_QUARTILE = 0.9, 0.5
ADVANTAGED = "mixed"  # the workload on which LMETRIC is to be beaten by ABOVE_RIVAL


@dataclass(frozen=True, slots=True)
class Figure:
    """One side at one rate. `goodputs`: good requests/s of each seed; `quartiles`: percent, by class and length."""

    workload: str
    side: str
    factor: float  # of the capacity
    rate_rps: float
    goodputs: tuple[float, ...]
    quartiles: Mapping[str, Sequence[float]]

    @property
    def goodput_rps(self) -> float:
        return fmean(self.goodputs)

    @property
    def attained_percent(self) -> float:
        return 100 * self.goodput_rps / self.rate_rps

    @property
    def worst_quartile_percent(self) -> float:
        return min((q for of_class in self.quartiles.values() for q in of_class), default=0.0)


Figures = Mapping[tuple[str, float], Figure]  # of one workload, by side and factor


def by_side(figures: Sequence[Figure], workload: str) -> Figures:
    return {(f.side, f.factor): f for f in figures if f.workload == workload}


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval of their mean; 0 of a single one."""
    return STUDENT_T[len(values)] * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def ratio(of: Figures, side: str, rival: str, factor: float) -> tuple[float, float]:
    """Goodput of `side` over that of `rival`, and half of its interval."""
    pairs = zip(of[side, factor].goodputs, of[rival, factor].goodputs, strict=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    return fmean(ratios), half_width(ratios)


def factors(of: Figures, side: str) -> list[float]:
    return sorted(factor for name, factor in of if name == side)


def peak(of: Figures, side: str) -> Figure:
    return max((f for (name, _), f in of.items() if name == side), key=lambda f: f.goodput_rps)


def area_ratio(of: Figures, side: str, rival: str) -> float:
    """Of the areas under the curves of goodput over rate."""
    return _area(of, side) / _area(of, rival)


def _area(of: Figures, side: str) -> float:
    curve = [of[side, factor] for factor in factors(of, side)]
    return sum((b.rate_rps - a.rate_rps) * (a.goodput_rps + b.goodput_rps) / 2 for a, b in pairwise(curve))


def show(console: Console, workload: str, figures: Sequence[Figure]) -> None:
    rows = Table(title=f"{workload}: good requests/s, attainment and its worst prompt-length quartile — SIMULATED")
    for column in (
        "side",
        "× capacity",
        "requests/s",
        "good/s",
        "± 95 %",
        "attained %",
        "worst quartile %",
        "/ LMETRIC",
    ):
        rows.add_column(column, justify="left" if column == "side" else "right")
    of = by_side(figures, workload)
    for (side, factor), f in of.items():
        cells = (f.goodput_rps, half_width(f.goodputs), f.attained_percent, f.worst_quartile_percent)
        against = ""
        if side != RIVAL and (RIVAL, factor) in of:
            mean, half = ratio(of, side, RIVAL, factor)
            against = f"{mean:.3f} ± {half:.3f}"
        rows.add_row(side, f"{factor:g}", f"{f.rate_rps:g}", *(f"{x:.1f}" for x in cells), against)
    console.print(rows)
    for line in summary(of):
        console.print(line)


def summary(of: Figures) -> Iterator[str]:
    top = peak(of, RIVAL)
    mean, half = ratio(of, OURS, RIVAL, top.factor)
    yield f"  over LMETRIC where that peaks ({top.rate_rps:g}/s): {mean:.3f} ± {half:.3f}"
    yield f"  over LMETRIC, areas under the curves: {area_ratio(of, OURS, RIVAL):.3f}"
    for side in (PERFECT, FRESH, THREE_ROUTERS):
        for factor in factors(of, side):
            a, b = (OURS, side) if side != THREE_ROUTERS else (side, OURS)
            mean, half = ratio(of, a, b, factor)
            yield f"  {a} over {b} at {factor:g} × capacity: {mean:.3f} ± {half:.3f}"


def goals(name: str, figures: Sequence[Figure]) -> list[str]:
    """What of issue 8's goals a workload misses."""
    of = by_side(figures, name)
    missed = [
        f"{name} at {f:g} × capacity: more than 2 % under LMETRIC"
        for f in factors(of, RIVAL)
        if ratio(of, OURS, RIVAL, f)[0] < LEAST_OF_RIVAL
    ]
    if name == ADVANTAGED:
        if ratio(of, OURS, RIVAL, peak(of, RIVAL).factor)[0] < ABOVE_RIVAL:
            missed.append(f"{name}: less than 10 % above LMETRIC where that peaks")
        if area_ratio(of, OURS, RIVAL) < ABOVE_RIVAL:
            missed.append(f"{name}: less than 10 % above LMETRIC over the curve")
    for side, other, least, what in (
        (OURS, PERFECT, LEAST_OF_PERFECT, "below 95 % of the same policy with perfect inputs"),
        (OURS, FRESH, LEAST_APART, "state 1 s old costs more than 5 %"),
        (THREE_ROUTERS, OURS, LEAST_APART, "three routers cost more than 5 %"),
    ):
        for factor in factors(of, other if side == OURS else side):
            if ratio(of, side, other, factor)[0] < least:
                missed.append(f"{name} at {factor:g} × capacity: {what}")
    return missed + list(_past_capacity(name, of))


def _past_capacity(name: str, of: Figures) -> Iterator[str]:
    """With the waiting room, at the highest rate against its peak."""
    top, twice = peak(of, ROOM), of[ROOM, factors(of, ROOM)[-1]]
    if twice.goodput_rps < LEAST_AT_TWICE * top.goodput_rps:
        yield f"{name} at {twice.factor:g} × capacity: goodput is below 90 % of its peak"
    for class_name, at_peak in top.quartiles.items():
        for i, (before, after) in enumerate(zip(at_peak, twice.quartiles[class_name], strict=True), 1):
            if after < LEAST_QUARTILE * before:
                yield (
                    f"{name} at {twice.factor:g} × capacity: of {class_name}'s prompt-length quartile {i} "
                    f"{after:.0f} % are good, {before:.0f} % at the peak"
                )
