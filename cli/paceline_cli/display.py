"""How `paceline up` tells what happens: a live table on a terminal, one key=value line a transition elsewhere.

Nothing is decided here. Both say the same; a line is written once, when something changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from paceline_cli.watch import Row

_PLAIN = re.compile(r"[^\s\"'=]+")


class Display(Protocol):
    @property
    def every_s(self) -> float:
        """Between two looks at attainment: a look costs the router a scrape."""

    def event(self, what: str, **fields: object) -> None:
        """One transition, now."""

    def say(self, text: str) -> None:
        """A line for people, as it is."""

    def starting(self, ready: Mapping[str, tuple[int, int]]) -> None:
        """Process → replicas that are ready, of how many."""

    def attainment(self, rows: Sequence[Row], in_flight: int) -> None:
        """Per class."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


def line(what: str, fields: Iterable[tuple[str, object]]) -> str:
    """`what key=value …`; a value with spaces or quotes is a JSON string."""
    return " ".join([what, *(f"{key}={_quoted(str(value))}" for key, value in fields)])


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def percent(share: float | None) -> str:
    """97.1, or - before there is a verdict; rounded down, so that 99.96 does not look like a target met."""
    return "-" if share is None else f"{int(share * 1000 + 1e-9) / 10:.1f}"


class PlainDisplay:
    """Lines for a log or a pipe."""

    every_s = 10.0

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._ready: dict[str, tuple[int, int]] = {}
        self._shown: object = None

    def event(self, what: str, **fields: object) -> None:
        self.say(line(what, fields.items()))

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def starting(self, ready: Mapping[str, tuple[int, int]]) -> None:
        for name, (some, of) in ready.items():
            if self._ready.get(name) != (some, of):
                self._ready[name] = (some, of)
                self.event("starting", process=name, ready=f"{some}/{of}")

    def attainment(self, rows: Sequence[Row], in_flight: int) -> None:
        counts = [row.total for row in rows]
        if counts == self._shown or not any(c.arrivals for c in counts):
            return
        self._shown = counts
        for row in rows:
            self.event(
                "attainment",
                slo_class=row.name,
                last_minute_percent=percent(row.recent.attainment),
                percent=percent(row.total.attainment),
                target_percent=f"{row.objective.target * 100:g}",
                good=row.total.good,
                decided=row.total.decided,
                arrivals=row.total.arrivals,
                in_flight=in_flight,
            )

    def close(self) -> None:
        pass


class LiveDisplay:
    """A table that is redrawn in place; transitions scroll by above it."""

    every_s = 2.0

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def event(self, what: str, **fields: object) -> None:
        style = {"ready": "bold green", "crashed": "bold red", "unclean": "bold red", "warning": "yellow"}.get(
            what, "bold"
        )
        self._console.print(Text.assemble((what, style), line("", fields.items())), soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def starting(self, ready: Mapping[str, tuple[int, int]]) -> None:
        table = _table(f"{self._title}: starting", "process")
        table.add_column("replicas ready")
        for name, (some, of) in ready.items():
            table.add_row(name, f"{'[green]' if some == of else '[yellow]'}{some} of {of}")
        self._live.update(table, refresh=True)

    def attainment(self, rows: Sequence[Row], in_flight: int) -> None:
        table = _table(f"{self._title}: {in_flight} in flight", "class")
        for heading in ("TTFT ms", "TPOT ms", "target", "1 min", "all", "good", "decided", "arrived"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            goal, total = row.objective, row.total
            limits = (f"{goal.ttft_s * 1e3:g}", f"{goal.tpot_s * 1e3:g}", f"{goal.target * 100:g}%")
            shares = (_coloured(row.recent.attainment, goal.target), _coloured(total.attainment, goal.target))
            table.add_row(row.name, *limits, *shares, str(total.good), str(total.decided), str(total.arrivals))
        self._live.update(table, refresh=True)

    def close(self) -> None:
        self._live.stop()


def _table(title: str, first: str) -> Table:
    """Narrow enough for 80 columns."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column(first, no_wrap=True)
    return table


def _coloured(share: float | None, target: float) -> str:
    return percent(share) if share is None else f"[{'green' if share >= target else 'red'}]{percent(share)}%"


def make_display(out: TextIO, title: str, *, plain: bool) -> Display:
    """Lines where `plain`, or where nobody looks."""
    console = Console(file=out)
    return PlainDisplay(out) if plain or not console.is_terminal else LiveDisplay(console, title)
