"""What a dashboard is: variables, and panels that each answer one question. Plain values; Grafana is not known here.

Invariant: every panel has a unit, and a sentence that says what it shows and what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GREEN, RED = "green", "red"


class Kind(StrEnum):
    """How a panel draws its series."""

    LINES = "lines"
    STEPS = "steps"  # lines that hold a value until the next
    STACK = "stack"  # areas on each other: parts of a whole
    STAT = "stat"  # one number, now
    BARS = "bars"  # one bar a series, now
    TABLE = "table"  # one row a label set, one column a query, now


class Unit(StrEnum):
    """Grafana's names of units."""

    SHARE = "percentunit"  # 0..1, shown as per cent
    SECONDS = "s"
    PER_SECOND = "reqps"
    COUNT = "short"
    FLAG = "bool_yes_no"


@dataclass(frozen=True, slots=True)
class Query:
    """`name` of a series, with labels in double braces; in a table the name of the column."""

    expr: str
    name: str


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice among the values of `label` on `metric`; `every` adds All, which stands for any value."""

    name: str
    title: str
    metric: str  # with selectors
    label: str
    every: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """`words`: last words of its series' names that have a colour of their own. `steps`: (from, colour) ascending.

    `least`, `most`: ends of the axis. `second`: (last word of a series' name, its unit) on an axis at the right.
    `drill`: a click on a series opens that service's own dashboard.
    """

    title: str
    says: str
    unit: Unit
    queries: tuple[Query, ...]
    kind: Kind = Kind.LINES
    width: int = 8
    height: int = 8
    words: tuple[str, ...] = ()
    steps: tuple[tuple[float | None, str], ...] = ((None, GREEN),)
    least: float | None = 0.0
    most: float | None = None
    second: tuple[str, Unit] | None = None
    drill: bool = False
    empty: str = ""  # shown where no series is a good sign

    @property
    def is_instant(self) -> bool:
        """A table and bars show now; everything else shows a course, also a number with a spark line."""
        return self.kind in (Kind.TABLE, Kind.BARS)


@dataclass(frozen=True, slots=True)
class Link:
    """To another dashboard, with the variables and the time range kept."""

    title: str
    uid: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    uid: str
    title: str
    says: str
    variables: tuple[Variable, ...]
    panels: tuple[Panel, ...]
    links: tuple[Link, ...] = ()
