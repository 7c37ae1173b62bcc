"""The autoscaler's part of LLMService status: classes, decisions, three conditions (DESIGN §3, "Status, two writers").

Figures are rounded so that noise writes nothing. Invariants: the same state gives the same status; a condition's time
moves only when its status does; at most ten decisions of at most 1 KiB each. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline_api.conditions import AUTOSCALER_CONDITIONS, ConditionType, Reason

from paceline_router.autoscale.signals import Blind, Change, Ruling, Unattainable
from paceline_router.judged import Judged, condition, rfc3339
from paceline_router.scaling.figures import ClassFigures
from paceline_router.scaling.holds import Hold
from paceline_router.scaling.views import ServiceView

Json = dict[str, Any]
DECISIONS = 10
WHY_BYTES = 500  # of a decision; the schema bounds characters, DESIGN §3 bytes
QUIET_S = 60.0  # between two writes of which neither tells a decision or a flip
RECOMMENDED = "recommended: "


@dataclass(frozen=True, slots=True)
class Finding:
    """What one tick found of a service; `seen_s` is of the stabilisation window. `ruling`: None where none was made."""

    blind: Blind | None
    figures: tuple[ClassFigures, ...]
    ruling: Ruling | None = None
    holds: tuple[Hold, ...] = ()
    seen_s: float = 0.0


def status_part(service: ServiceView, finding: Finding, decisions: Sequence[Json], now_s: float) -> Json:
    """What is applied to /status; `now_s` is epoch seconds."""
    judged = (_metrics_available(finding), _slo_met(finding), _scaling_active(service, finding))
    return {
        "classes": [_class(one) for one in finding.figures],
        "decisions": list(decisions),
        "conditions": [condition(one, service.generation, service.status, rfc3339(now_s)) for one in judged],
    }


def own_part(status: Mapping[str, Any]) -> Json:
    """The part of a live status that the autoscaler writes, to compare by."""
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    return {
        "classes": list(status.get("classes") or ()),
        "decisions": list(status.get("decisions") or ()),
        "conditions": [conditions[t] for t in AUTOSCALER_CONDITIONS if t in conditions],
    }


def is_news(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """A decision, a flip or a judgement of another generation, which are written at once."""

    def told(part: Mapping[str, Any]) -> Any:
        judged = ("type", "status", "reason", "observedGeneration")
        return part["decisions"], [tuple(c.get(name) for name in judged) for c in part["conditions"]]

    return bool(told(before) != told(after))


def decided(decisions: Iterable[Json], changes: Iterable[Change], now_s: float, prefix: str = "") -> list[Json]:
    """`decisions` and the new ones after them, the last ten."""
    new = [
        {
            "time": rfc3339(now_s),
            "pool": change.pool,
            "from": change.before,
            "to": change.after,
            "binding": change.binding,
            "why": _cut(prefix + change.why),
        }
        for change in changes
    ]
    return [*decisions, *new][-DECISIONS:]


def last_advice(status: Mapping[str, Any]) -> dict[str, int]:
    """Pool → the size that was recommended last, where that was its last decision."""
    last = {one["pool"]: one for one in status.get("decisions") or ()}
    return {pool: one["to"] for pool, one in last.items() if str(one.get("why", "")).startswith(RECOMMENDED)}


def _cut(text: str) -> str:
    return text.encode()[:WHY_BYTES].decode(errors="ignore")


def _metrics_available(finding: Finding) -> Judged:
    kind = ConditionType.METRICS_AVAILABLE
    if finding.blind:
        return Judged(kind, "False", finding.blind.reason, f"{finding.blind.message}; sizes stay as they are")
    return Judged(kind, "True", Reason.METRICS_FRESH, "Prometheus has fresh figures of routers and engines")


def _slo_met(finding: Finding) -> Judged:
    kind = ConditionType.SLO_MET
    known = [one for one in finding.figures if one.good_ratio is not None]
    if not known:
        if finding.blind:
            return Judged(kind, "Unknown", finding.blind.reason, "there are no figures to judge by")
        return Judged(kind, "Unknown", Reason.NO_TRAFFIC, "no request was decided in the last minutes")
    missed = [one for one in known if one.is_missed]
    if not missed:
        return Judged(kind, "True", Reason.OBJECTIVES_MET, ", ".join(map(_share, known)))
    beyond = {one.class_name: one for one in (finding.ruling.unattainable if finding.ruling else ())}
    hopeless = [beyond[one.name] for one in missed if one.name in beyond]
    if len(hopeless) == len(missed):
        return Judged(kind, "False", Reason.OBJECTIVE_UNATTAINABLE, "; ".join(map(_beyond, hopeless)))
    return Judged(kind, "False", Reason.OBJECTIVES_MISSED, ", ".join(map(_share, missed)))


def _share(one: ClassFigures) -> str:
    return f"{one.name} {100 * (one.good_ratio or 0.0):.1f} % of {100 * one.target_ratio:g} %"


def _beyond(one: Unattainable) -> str:
    return (
        f"{one.class_name}: even an unloaded fleet attains {100 * one.attains:.0f} % of {100 * one.target:g} %; "
        f"{one.objective} binds: relax it, or choose a faster accelerator"
    )


def _scaling_active(service: ServiceView, finding: Finding) -> Judged:
    kind = ConditionType.SCALING_ACTIVE
    if service.mode == "Disabled":
        return Judged(kind, "False", Reason.SCALING_DISABLED, "autoscaling.mode is Disabled")
    if finding.blind:
        return Judged(kind, "False", finding.blind.reason, f"{finding.blind.message}; sizes stay as they are")
    if service.mode == "Recommend":
        return Judged(kind, "False", Reason.RECOMMEND_ONLY, "decisions are recorded, and none is acted on")
    if finding.holds:
        return Judged(kind, "False", Reason.MANUAL_HOLD, "; ".join(map(str, finding.holds)))
    if finding.seen_s < service.stabilisation_s:
        message = f"pools grow at once, and shrink once {service.stabilisation_s:g} s have been seen without a gap"
        return Judged(kind, "True", Reason.WINDOW_INCOMPLETE, message)
    waits = finding.ruling.waits if finding.ruling else ""
    return Judged(kind, "True", Reason.SCALING, "; ".join(filter(None, ("sizes follow the load", waits))))


def _class(one: ClassFigures) -> Json:
    found: Json = {"name": one.name}
    if one.good_ratio is not None:
        found["attainmentPercent"] = f"{100 * one.good_ratio:.1f}"
    if one.goodput_rps is not None:
        found["goodputPerSecond"] = f"{one.goodput_rps:.1f}"
    if one.ttft_p90_s is not None:
        found["ttftP90Ms"] = round(1000 * one.ttft_p90_s)
    if one.tpot_p90_s is not None:
        found["tpotP90Ms"] = round(1000 * one.tpot_p90_s)
    return found
