"""A size that somebody else set is respected for a while: a person's `kubectl scale`, an HPA, KEDA (DESIGN §3, §7).

The API server notes in managedFields who wrote a Deployment's /scale, and of a custom resource's nothing (seen on
1.36). So the EnginePool itself bears the sizes that Paceline gave it: another one that is not the operator's clamp is
somebody's, held from when it was first seen. Each new size starts the time again. Marks stand on the object, so that a
new leader keeps a hold. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import floor

from paceline_router.judged import rfc3339
from paceline_router.scaling.views import Marks, PoolView

SIZED = "paceline.dev/sized"  # annotation of an EnginePool: sizes that are ours, "3", or "2,3" while one is written
HELD = "paceline.dev/held"  # "5 since 2026-11-22T14:00:00Z"


@dataclass(frozen=True, slots=True)
class Hold:
    """`pool` keeps the size that somebody gave it; `until_s` is epoch seconds."""

    pool: str
    replicas: int
    until_s: float

    def __str__(self) -> str:
        return f"{self.pool}: {self.replicas} replicas, set by others, until {rfc3339(self.until_s)}"


def read_marks(annotations: Mapping[str, str]) -> Marks:
    """What makes no sense counts as absent."""
    sizes = frozenset(int(n) for n in annotations.get(SIZED, "").split(",") if _is_size(n))
    held, _, since = annotations.get(HELD, "").partition(" since ")
    try:
        since_s = datetime.fromisoformat(since).timestamp()
    except ValueError:
        return Marks(sizes)
    return Marks(sizes, int(held), since_s) if _is_size(held) else Marks(sizes)


def annotations_of(marks: Marks) -> dict[str, str | None]:
    """None: to be removed."""
    held = None if marks.held is None else f"{marks.held} since {rfc3339(marks.since_s)}"
    return {SIZED: ",".join(map(str, sorted(marks.sizes))) or None, HELD: held}


def mark(pool: PoolView, hold_s: float, now_s: float) -> Marks:
    """What the pool's marks should say, whose size it is having been judged; after its hold a size counts as ours."""
    n, before = pool.replicas, pool.marks
    if pool.is_fixed or not before.sizes or n in before.sizes or _is_clamp(pool):
        return Marks(frozenset({n}))
    if n != before.held or before.since_s > now_s:  # the clock that noted it was ahead
        return Marks(before.sizes, n, float(floor(now_s)))
    return before if now_s < before.since_s + hold_s else Marks(frozenset({n}))


def hold_of(pool: PoolView, marks: Marks, hold_s: float) -> Hold | None:
    """Whether the pool's size is held; `marks` are those of `mark` at this moment."""
    return None if marks.held is None else Hold(pool.name, marks.held, marks.since_s + hold_s)


def _is_clamp(pool: PoolView) -> bool:
    """The operator brought one of our sizes within bounds that somebody moved."""
    sizes = pool.marks.sizes
    return (pool.replicas == pool.least > max(sizes)) or (pool.replicas == pool.most < min(sizes))


def _is_size(text: str) -> bool:
    return text.isdecimal() and len(text) < 7
