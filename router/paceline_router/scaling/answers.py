"""What Prometheus answered in one tick, sorted by service.

A row counts for the service that its metric names, and only if the namespace that Prometheus attached to it, where it
did, is that service's: what another namespace's pods say of it is left out. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from paceline_router.scaling.queries import Row, Signal, window_s
from paceline_router.scaling.views import Id

Rows = Mapping[Signal, Sequence[Row]]


@dataclass(frozen=True, slots=True)
class Answers:
    """`clock_s` is Prometheus' time and `asked_s` ours of the same moment, epoch seconds."""

    rows: Mapping[Id, Rows]
    clock_s: float
    asked_s: float
    scrape_s: float

    @property
    def window_s(self) -> float:
        return window_s(self.scrape_s)

    def of(self, service: Id) -> Told:
        return Told(self, self.rows.get(service, {}))


@dataclass(frozen=True, slots=True)
class Told:
    """The rows of one service."""

    answers: Answers
    rows: Rows = field(default_factory=dict)

    def all(self, signal: Signal, **labels: str) -> list[Row]:
        return [row for row in self.rows.get(signal, ()) if labels.items() <= row.labels.items()]

    def one(self, signal: Signal, **labels: str) -> float | None:
        """The first such row's value; None where there is none."""
        return next((row.value for row in self.all(signal, **labels)), None)


def by_service(found: Mapping[Signal, Iterable[Row]]) -> dict[Id, dict[Signal, list[Row]]]:
    sorted_: dict[Id, dict[Signal, list[Row]]] = {}
    for signal, rows in found.items():
        for row in rows:
            namespace = row.labels.get("llmservice_namespace", "")
            if row.labels.get("namespace", namespace) == namespace:
                service = namespace, row.labels.get("llmservice", "")
                sorted_.setdefault(service, {}).setdefault(signal, []).append(row)
    return sorted_
