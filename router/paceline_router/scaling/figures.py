"""What is reported of a service's classes: attainment, goodput and latencies as the routers count them. Pure.

Attainment and latencies are over the reporting window, goodput over the shorter one of the rates. A class of which
nothing was decided has no figures, rather than 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline_router.scaling.answers import Told
from paceline_router.scaling.checks import routers_blind
from paceline_router.scaling.gather import verdicts
from paceline_router.scaling.queries import Signal
from paceline_router.scaling.views import ServiceView


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """`good_ratio` is None where no verdict was decided."""

    name: str
    target_ratio: float
    good_ratio: float | None = None
    goodput_rps: float | None = None
    ttft_p90_s: float | None = None
    tpot_p90_s: float | None = None

    @property
    def is_missed(self) -> bool:
        return self.good_ratio is not None and self.good_ratio < self.target_ratio


def figures(service: ServiceView, told: Told | None) -> tuple[ClassFigures, ...]:
    """By class; names alone where the routers are not to be believed, or nothing was told."""
    if told is None or routers_blind(service, told):
        return tuple(ClassFigures(slo.name, slo.target_ratio) for slo in service.classes)
    found = []
    for slo in service.classes:
        seen = verdicts(told, Signal.REPORTED_VERDICTS, slo.name)
        if seen.decided < 0.5:  # Prometheus extrapolates counts to fractions
            found.append(ClassFigures(slo.name, slo.target_ratio))
            continue
        found.append(
            ClassFigures(
                slo.name,
                slo.target_ratio,
                min(1.0, seen.good / seen.decided),
                verdicts(told, Signal.VERDICTS, slo.name).good / told.answers.window_s,
                told.one(Signal.TTFT_P90, slo_class=slo.name),
                told.one(Signal.TPOT_P90, slo_class=slo.name),
            )
        )
    return tuple(found)
