"""What an experiment on a published result says: published and our figures side by side, tables and curves.

One module beside this one holds the experiments of one figure or table; `benchmarks/papers.py` runs those that
`catalogue.py` lists, prints, draws and judges them. A finding without bounds is shown and not judged. Values only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Finding:
    """One published figure (None: the paper has none) beside ours. `low` and `high` are what is allowed of ours.

    `ours` None: the experiment did not show it, as where a curve never leaves the level asked about; bounds then miss.
    """

    name: str
    published: float | None
    ours: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    note: str = ""  # why it differs, where it does

    @property
    def held(self) -> bool:
        if self.ours is None:
            return not self.is_judged
        return (self.low is None or self.ours >= self.low) and (self.high is None or self.ours <= self.high)

    @property
    def is_judged(self) -> bool:
        return self.low is not None or self.high is not None


def within(name: str, published: float, ours: float | None, ratio: float, unit: str = "", note: str = "") -> Finding:
    """A finding that may be off by `ratio` of the published figure."""
    return Finding(name, published, ours, published * (1 - ratio), published * (1 + ratio), unit, note)


Points = tuple[tuple[float, float], ...]


def ratio(over: float, under: float) -> float | None:
    """None where `under` is 0: a capacity that no rate tried has."""
    return over / under if under else None


def crossing(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """Where y first falls below a level, interpolated over x; None when it starts below or never falls."""
    for (x, above), (further, below) in pairwise(points):
        if above >= level > below:
            return x + (above - level) / (above - below) * (further - x)
    return None


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of text; all rows are as long as `columns`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """`published` curves are drawn dashed."""

    name: str
    points: Points
    published: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot of an experiment's figure."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """`remarks` say what agrees, what does not, and why, where that follows from the figures themselves."""

    findings: tuple[Finding, ...] = ()
    grids: tuple[Grid, ...] = ()
    panels: tuple[Panel, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lab:
    """Where and how far an experiment runs. `quick`: the same code on fewer requests, points and seeds."""

    traces: Path
    quick: bool = False
    pool: Executor | None = field(default=None, compare=False)

    def each(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`work` of every item, in order, on all cores; `work` is a module's function or a partial of one."""
        return list(self.pool.map(work, items) if self.pool else map(work, items))


@dataclass(frozen=True, slots=True)
class Experiment:
    """`name` is what the command line and the files are called; `source` is the paper's figure, table or section."""

    name: str
    title: str
    source: str
    run: Callable[[Lab], Result]
