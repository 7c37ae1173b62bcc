"""What the LLMService's status says of its sizes: desired replicas, whether they follow the load, the last decisions.

Pure reduction of an object that others write: what is absent or makes no sense is left out, and nothing raises. What
the router cannot know is said in `note`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline_api.conditions import AUTOSCALER_CONDITIONS

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Decision:
    """One change of a pool's size; `time` is RFC 3339."""

    time: str
    pool: str
    before: int
    after: int
    binding: str
    why: str


@dataclass(frozen=True, slots=True)
class Condition:
    """One of the autoscaler's."""

    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class PlannedPool:
    """A pool as the operator reports it."""

    role: str
    desired: int


@dataclass(frozen=True, slots=True)
class Scaling:
    """`note` says why there is nothing to show, or is empty; `decisions` newest first; `pools` by name."""

    note: str = ""
    conditions: tuple[Condition, ...] = ()
    decisions: tuple[Decision, ...] = ()
    pools: Mapping[str, PlannedPool] = field(default_factory=dict)


LOCAL = Scaling(
    "Nothing scales here: paceline up runs the replicas of its file. "
    "On a cluster, the autoscaler's last decisions stand in this place."
)
UNKNOWN = Scaling("The router has not heard of its LLMService yet.")
FORBIDDEN = Scaling(
    "This router may not read its LLMService, so decisions are not shown here. Upgrade the chart, whose router role "
    "allows it; kubectl describe llm shows them meanwhile."
)
GONE = Scaling("The LLMService is gone.")
UNDECIDED = "No size has been changed yet."


def scaling_of(service: Json) -> Scaling:
    """Of the LLMService as the API server gives it."""
    status = _mapping(service.get("status"))
    decisions = sorted(filter(None, map(_decision, _list(status.get("decisions")))), key=lambda d: d.time, reverse=True)
    conditions = {c.type: c for c in map(_condition, _list(status.get("conditions")))}
    return Scaling(
        "" if decisions else UNDECIDED,
        tuple(conditions[type_] for type_ in AUTOSCALER_CONDITIONS if type_ in conditions),
        tuple(decisions),
        {
            str(pool.get("name")): PlannedPool(str(pool.get("role", "")).lower(), pool["desired"])
            for pool in _list(status.get("pools"))
            if _is_count(pool.get("desired"))
        },
    )


def _decision(value: Json) -> Decision | None:
    before, after = value.get("from"), value.get("to")
    if not (isinstance(before, int) and isinstance(after, int)):
        return None
    time, pool, binding, why = (_text(value, name) for name in ("time", "pool", "binding", "why"))
    return Decision(time, pool, before, after, binding, why)


def _condition(value: Json) -> Condition:
    return Condition(*(_text(value, name) for name in ("type", "status", "reason", "message")))


def _text(value: Json, name: str) -> str:
    return str(value.get(name) or "")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _mapping(value: object) -> Json:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Json]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, Sequence) else []
