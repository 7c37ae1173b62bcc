"""Every panel's queries with the variables filled in, as they can be put to a plain Prometheus.

The end-to-end test asks them all: each returns data, or stands in RIGHTLY_EMPTY with the reason. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from paceline_dashboards.dashboards import DASHBOARDS

# (dashboard, panel) → why at least one of its queries may return nothing on a fleet that is well.
RIGHTLY_EMPTY: Mapping[tuple[str, str], str] = {
    ("paceline-fleet", "Error budget left, 30 d"): "it is recorded every five minutes, and this is the first",
    ("paceline-fleet", "Classes that miss their objective"): "every class meets its objective",
    ("paceline-service", "Misses by cause"): "a cause is counted from its first miss",
    ("paceline-service", "Retries"): "a step is counted from the first leg that fails",
}


@dataclass(frozen=True, slots=True)
class Expression:
    """One query: `dashboard` is its uid, `panel` and `series` its names there, `instant` whether only now counts."""

    dashboard: str
    panel: str
    series: str
    expr: str
    instant: bool


def expressions(namespace: str, service: str, slo_class: str) -> list[Expression]:
    """All queries for one class of one service, and all of its pools."""
    values = {"namespace": namespace, "service": service, "slo_class": slo_class, "pool": ".*"}
    return [
        Expression(dashboard.uid, panel.title, query.name, fill(query.expr, values), panel.is_instant)
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for query in panel.queries
    ]


def fill(expr: str, values: Mapping[str, str]) -> str:
    """KeyError on a variable without a value."""
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)
