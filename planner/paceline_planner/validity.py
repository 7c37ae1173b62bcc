"""What a run says about itself besides its figures: how late it ran, and whether the router counted the same.

A run is void when its client or a simulated engine ran later, at p99, than max(2 ms, a tenth of the median step) of
wall time (DESIGN §8): its latencies would be the machine's, not the fleet's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paceline_planner.aggregate import percent

LATENESS_FLOOR_S = 0.002
LATENESS_PER_STEP = 0.1

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Lateness:
    """How late the measurement itself ran, wall seconds at p99. None: not known; virtual clocks are never late."""

    client_p99_s: float | None = None
    engine_p99_s: float | None = None
    step_p50_s: float | None = None
    virtual: bool = False

    @property
    def limit_s(self) -> float:
        return max(LATENESS_FLOOR_S, LATENESS_PER_STEP * (self.step_p50_s or 0.0))

    def faults(self, *, simulated: bool) -> list[str]:
        """Why a run that was this late is not valid."""
        if self.virtual:
            return []
        found = [
            f"{who} ran {1e3 * late:.1f} ms late at p99, more than {1e3 * self.limit_s:.1f} ms"
            for who, late in (("the client", self.client_p99_s), ("an engine", self.engine_p99_s))
            if late is not None and not late <= self.limit_s
        ]
        if simulated and self.engine_p99_s is None:
            found.append("the simulated engines do not say how late they ran")
        return found

    def to_json(self) -> Json:
        return {
            "virtual": self.virtual,
            "client_p99_ms": _ms(self.client_p99_s),
            "engine_p99_ms": _ms(self.engine_p99_s),
            "step_p50_ms": _ms(self.step_p50_s),
            "limit_ms": _ms(self.limit_s),
        }


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The same run as the router counted it, beside what was sent; other clients of that router make them differ."""

    sent: int
    router_arrivals: int
    router_outcomes: Mapping[str, int]
    router_verdicts: Mapping[str, int] = field(default_factory=dict)

    @property
    def matches(self) -> bool:
        return self.sent == self.router_arrivals == sum(self.router_outcomes.values())

    @property
    def attainment_percent(self) -> float | None:
        return percent(self.router_verdicts.get("good", 0), sum(self.router_verdicts.values()))

    def to_json(self) -> Json:
        return {
            "sent": self.sent,
            "router_arrivals": self.router_arrivals,
            "router_outcomes": dict(self.router_outcomes),
            "matches": self.matches,
            "router_verdicts": dict(self.router_verdicts),
            "router_attainment_percent": rounded(self.attainment_percent),
        }


def rounded(value: object) -> object:
    """Reports carry four decimals."""
    return round(value, 4) if isinstance(value, float) else value


def _ms(seconds: float | None) -> object:
    return rounded(None if seconds is None else 1e3 * seconds)
