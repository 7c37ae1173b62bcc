"""A size that somebody else set is respected for a while: a person's `kubectl scale`, an HPA, KEDA (DESIGN §3, §7).

Who set it is read from metadata.managedFields, where the API server itself writes it: no bookkeeping of ours can be
lost. Each new size starts the time again, so that what writes without end keeps the size. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from paceline_router.scaling.views import PoolView, Resized

MANAGER = "paceline-autoscaler"
OURS = (MANAGER, "paceline-operator")


@dataclass(frozen=True, slots=True)
class Hold:
    """`pool` keeps the size that `manager` gave it; `until_s` is epoch seconds."""

    pool: str
    replicas: int
    manager: str
    until_s: float

    def __str__(self) -> str:
        until = datetime.fromtimestamp(self.until_s, UTC).strftime("%H:%M:%SZ")
        return f"{self.pool}: {self.replicas} replicas by {self.manager} until {until}"


def resized_by(managed_fields: Iterable[Mapping[str, Any]]) -> Resized | None:
    """The last to set spec.replicas, if that was neither the autoscaler nor the operator."""
    owners = [
        Resized(str(entry.get("manager") or "somebody"), datetime.fromisoformat(entry["time"]).timestamp())
        for entry in managed_fields
        if "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {}) and entry.get("time")
    ]
    last = max(owners, key=lambda owner: (owner.at_s, owner.manager in OURS), default=None)
    return None if last is None or last.manager in OURS else last


def hold_of(pool: PoolView, hold_s: float, now_s: float) -> Hold | None:
    """Whether the pool's size is held at `now_s`; a size that the service fixes is the operator's to keep."""
    if pool.resized is None or pool.is_fixed:
        return None
    until_s = pool.resized.at_s + hold_s
    return Hold(pool.name, pool.replicas, pool.resized.manager, until_s) if now_s < until_s else None
