"""What a router's `/metrics` says of its fleet before and after a run, read from Prometheus' text format. Pure.

Before: limits and targets of the classes, GPUs, whether the engines are simulated, their time scale. After: how late
they ran, and what the router counted, as the difference of two readings. Another server's metrics give an empty fleet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from paceline_api.slo import SLOClass
from prometheus_client.parser import text_string_to_metric_families

from paceline_planner.validity import Reconciliation

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Fleet:
    """One reading. Lateness and step are wall seconds; None where the fleet does not say."""

    slos: Mapping[str, SLOClass] = field(default_factory=dict)
    default_class: str | None = None
    gpus: int | None = None
    simulated: bool = False
    time_scale: float | None = None
    lateness_p99_s: float | None = None
    step_p50_s: float | None = None
    received: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    verdicts: Mapping[str, int] = field(default_factory=dict)


class MetricsError(ValueError):
    """A /metrics page that is not Prometheus' text format."""


def parse_fleet(text: str) -> Fleet:
    """The fleet behind a /metrics page; MetricsError when the page cannot be read."""
    try:
        samples = list(_samples(text))
    except (ValueError, KeyError, IndexError) as e:
        raise MetricsError(f"not Prometheus' text format ({e})") from e

    def having(name: str) -> Iterator[tuple[Labels, float]]:
        return ((labels, value) for found, labels, value in samples if found == name)

    def single(name: str) -> float | None:
        values = [value for _, value in having(name) if not math.isnan(value)]
        return max(values, default=None)

    def counted(name: str, label: str) -> dict[str, int]:
        total: dict[str, int] = {}
        for labels, value in having(name):
            if label in labels:
                total[labels[label]] = total.get(labels[label], 0) + int(value)
        return total

    info = next((labels for labels, _ in having("paceline_fleet_info")), {})
    limits = {
        (labels.get("slo_class"), labels.get("objective")): v for labels, v in having("paceline_slo_limit_seconds")
    }
    targets = {labels.get("slo_class"): value for labels, value in having("paceline_slo_target_ratio")}
    names = [name for name, objective in limits if name and objective == "ttft" and (name, "tpot") in limits]
    gpus = sum(value for _, value in having("paceline_gpus"))
    return Fleet(
        slos={
            name: SLOClass(
                name,
                ttft_s=limits[name, "ttft"],
                tpot_s=limits[name, "tpot"],
                target_ratio=targets.get(name, 0.9),
                max_stall_s=limits.get((name, "stall"), 0.0),
                ttft_s_per_1k_prompt_tokens=limits.get((name, "ttft_per_1k_prompt_tokens"), 0.0),
            )
            for name in names
        },
        default_class=info.get("default_class") or (names[0] if len(names) == 1 else None),
        gpus=round(gpus) or None,
        simulated=info.get("simulated") == "1",
        time_scale=float(info["time_scale"]) if "time_scale" in info else None,
        lateness_p99_s=single("paceline_fleet_lateness_p99_seconds"),
        step_p50_s=single("paceline_fleet_step_p50_seconds"),
        received=int(sum(value for _, value in having("paceline_requests_received_total"))),
        outcomes=counted("paceline_requests_total", "outcome"),
        verdicts=counted("paceline_slo_decided_total", "result"),
    )


def reconcile(sent: int, before: Fleet, after: Fleet) -> Reconciliation:
    """What the router counted between two readings, beside what was sent."""
    return Reconciliation(
        sent=sent,
        router_arrivals=after.received - before.received,
        router_outcomes=_grown(before.outcomes, after.outcomes),
        router_verdicts=_grown(before.verdicts, after.verdicts),
    )


def _grown(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    return {name: n - before.get(name, 0) for name, n in after.items() if n > before.get(name, 0)}


def _samples(text: str) -> Iterator[tuple[str, Labels, float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value
