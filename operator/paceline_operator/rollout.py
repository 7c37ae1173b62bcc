"""The next step of a rollout: how many replicas each revision of a group's pools should have now (DESIGN §3).

Surge, then drain, one replica of each pool at a time. It remembers nothing: sizes follow from what is wanted and what
is seen, so that a restart of the operator cannot corrupt a rollout. Invariants, for a group whose old revision serves:
a pool never has more than one replica above its size; an old replica goes only after a new one is ready in its place;
as long as the new revision is not whole, the old one keeps a replica of every pool, because prefill and decode
replicas of different revisions never pair. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paceline_api.config import RoleName

Sizes = Mapping[tuple[str, str], int]  # (pool, revision) → replicas


@dataclass(frozen=True, slots=True)
class Target:
    """The size that a pool should have."""

    pool: str
    role: RoleName
    replicas: int


@dataclass(frozen=True, slots=True)
class Running:
    """One revision of one pool: replicas that its Deployment asks for, and those that are ready."""

    pool: str
    role: RoleName
    revision: str
    replicas: int
    ready: int


def is_whole(targets: Sequence[Target], revision: str, running: Sequence[Running]) -> bool:
    """Every pool has all its replicas of the revision, ready."""
    ready = {r.pool: r.ready for r in running if r.revision == revision}
    return all(ready.get(t.pool, 0) >= t.replicas for t in targets)


def next_sizes(targets: Sequence[Target], revision: str, running: Sequence[Running]) -> Sizes:
    """`running` are all revisions of the targets' pools."""
    old = [r for r in running if r.revision != revision]
    sizes: dict[tuple[str, str], int] = {(r.pool, r.revision): 0 for r in old}
    serving = _serving(targets, old)
    if not serving or is_whole(targets, revision, running):
        return sizes | {(t.pool, revision): t.replicas for t in targets}
    new = {r.pool: r for r in running if r.revision == revision}

    def rank(r: Running) -> int:
        return serving.index(r.revision)

    for target in targets:
        seen = new.get(target.pool)
        ready = min(seen.ready, target.replicas) if seen else 0
        asked = seen.replicas if seen else 0
        sizes[target.pool, revision] = min(target.replicas, max(asked, ready + 1))
        left = max(1, target.replicas - ready)
        for r in sorted((r for r in old if r.pool == target.pool and r.revision in serving), key=rank):
            sizes[r.pool, r.revision] = min(r.replicas, left)
            left -= sizes[r.pool, r.revision]
    return sizes


def _serving(targets: Sequence[Target], old: Sequence[Running]) -> list[str]:
    """Old revisions that serve on their own: a ready replica of every role. The fullest first."""
    roles = {t.role for t in targets if t.replicas}
    ready: dict[str, int] = {}
    has: dict[str, set[RoleName]] = {}
    for r in old:
        ready[r.revision] = ready.get(r.revision, 0) + r.ready
        if r.ready:
            has.setdefault(r.revision, set()).add(r.role)
    return sorted((v for v, found in has.items() if roles <= found), key=lambda v: (-ready[v], v))
