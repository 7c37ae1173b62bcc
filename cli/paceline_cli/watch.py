"""Attainment per class from a router's /metrics: what `paceline up` shows while it runs.

`read_metrics` turns one scrape into a Snapshot; `Window` compares snapshots of the last minute. Attainment is good /
decided (DESIGN §1). Counters that fall mean a restarted router: its requests count anew. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

WINDOW_S = 60.0
READ = (
    "paceline_requests_received_total",
    "paceline_slo_decided_total",
    "paceline_slo_limit_seconds",
    "paceline_slo_target_ratio",
    "paceline_requests_in_flight",
    "paceline_ready_replicas",
)


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of one class since the router began."""

    arrivals: int = 0
    good: int = 0
    decided: int = 0

    def since(self, earlier: Counts) -> Counts:
        if self.arrivals < earlier.arrivals or self.decided < earlier.decided:
            return self
        return Counts(
            self.arrivals - earlier.arrivals, max(self.good - earlier.good, 0), self.decided - earlier.decided
        )

    @property
    def attainment(self) -> float | None:
        """Share of good requests; None before a verdict."""
        return self.good / self.decided if self.decided else None


@dataclass(frozen=True, slots=True)
class Objective:
    """Limits in seconds, target as a share."""

    ttft_s: float
    tpot_s: float
    target: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One scrape; `at_s` is when, on any clock that does not go back."""

    at_s: float
    counts: Mapping[str, Counts]
    objectives: Mapping[str, Objective]
    in_flight: int
    ready_replicas: int  # that the router gives requests to


@dataclass(frozen=True, slots=True)
class Row:
    """One class as it is shown: the last minute, and all since the router began."""

    name: str
    objective: Objective
    recent: Counts
    total: Counts


def read_metrics(text: str, at_s: float) -> Snapshot:
    """The snapshot in a router's exposition; classes in its order."""
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(READ)) + "\n"
    arrivals: dict[str, int] = {}
    decided: dict[str, dict[str, int]] = {}
    limits: dict[str, dict[str, float]] = {}
    targets: dict[str, float] = {}
    in_flight = ready_replicas = 0
    for family in text_string_to_metric_families(wanted):
        for sample in family.samples:
            name = sample.labels.get("slo_class", "")
            match sample.name:
                case "paceline_requests_received_total":
                    arrivals[name] = int(sample.value)
                case "paceline_slo_decided_total":
                    decided.setdefault(name, {})[sample.labels["result"]] = int(sample.value)
                case "paceline_slo_limit_seconds":
                    limits.setdefault(name, {})[sample.labels["objective"]] = sample.value
                case "paceline_slo_target_ratio":
                    targets[name] = sample.value
                case "paceline_requests_in_flight":
                    in_flight += int(sample.value)
                case "paceline_ready_replicas":
                    ready_replicas += int(sample.value)
    counts = {
        name: Counts(arrivals.get(name, 0), decided.get(name, {}).get("good", 0), sum(decided.get(name, {}).values()))
        for name in targets
    }
    objectives = {name: Objective(limits[name]["ttft"], limits[name]["tpot"], targets[name]) for name in targets}
    return Snapshot(at_s, counts, objectives, in_flight, ready_replicas)


@dataclass(slots=True)
class Window:
    """Snapshots of the last minute, oldest first, and one from before it to compare with."""

    snapshots: deque[Snapshot] = field(default_factory=deque)

    def add(self, snapshot: Snapshot) -> list[Row]:
        """The rows as of this snapshot."""
        kept = self.snapshots
        kept.append(snapshot)
        while len(kept) > 2 and kept[1].at_s <= snapshot.at_s - WINDOW_S:
            kept.popleft()
        return [
            Row(name, snapshot.objectives[name], self._recent(name, now), now) for name, now in snapshot.counts.items()
        ]

    def _recent(self, name: str, now: Counts) -> Counts:
        earlier = self.snapshots[0].counts.get(name, Counts())
        return now.since(earlier) if len(self.snapshots) > 1 else now
