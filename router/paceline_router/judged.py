"""A condition of a status as it is judged, and as it is written (metav1.Condition); operator and autoscaler share it.

Invariant: a condition's time moves only when its status does. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from paceline_api.conditions import ConditionType


@dataclass(frozen=True, slots=True)
class Judged:
    """A condition without its times. `reason` is a word of paceline_api.conditions.Reason."""

    type: ConditionType
    status: str
    reason: str
    message: str


def condition(judged: Judged, generation: int, live: Mapping[str, Any], now: str) -> dict[str, Any]:
    """`live` is the status that there is, `now` RFC 3339."""
    before = next((c for c in live.get("conditions") or () if c.get("type") == judged.type), None)
    since = before["lastTransitionTime"] if before and before.get("status") == judged.status else now
    return {
        "type": str(judged.type),
        "status": judged.status,
        "observedGeneration": generation,
        "lastTransitionTime": since,
        "reason": str(judged.reason),
        "message": judged.message,
    }


def rfc3339(epoch_s: float) -> str:
    """As Kubernetes writes times, to the second."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
