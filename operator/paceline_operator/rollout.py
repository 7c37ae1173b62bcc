"""The next step of a rollout: how many replicas each revision of a group's pools should have now (DESIGN §3).

It remembers nothing: sizes follow from what is wanted and what is seen, so that a restart of the operator, another size
or a third revision in the middle corrupt nothing. Prefill and decode replicas of different revisions never pair, so
what a revision serves is its share: the least, over its pools, of ready replicas / size. Old revisions keep the rest of
every pool, which leaves room for one new replica more in each. Invariants, for a group whose old revisions serve: a
pool never has more than one replica above its size; no step takes its ready replicas below its size; a new prefill
replica comes once ready decode replicas can take what it makes; a new revision that has not served yet gets one replica
a pool, and growth meanwhile goes to the old one. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

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
    """One revision of one pool: replicas that its Deployment asks for, and those that are ready.

    `proven`: all that it asked for were ready once, so that those that are not now are expected back.
    """

    pool: str
    role: RoleName
    revision: str
    replicas: int
    ready: int
    proven: bool = False

    @property
    def serving(self) -> int:
        """Ready ones that are to stay: a Deployment's status is behind its spec for a moment."""
        return min(self.ready, self.replicas)


def is_whole(targets: Sequence[Target], revision: str, running: Sequence[Running]) -> bool:
    """Every pool has all its replicas of the revision, ready."""
    ready = {r.pool: r.ready for r in running if r.revision == revision}
    return all(ready.get(t.pool, 0) >= t.replicas for t in targets)


def next_sizes(targets: Sequence[Target], revision: str, running: Sequence[Running]) -> Sizes:
    """Of every revision; `running` are all of the targets' pools."""
    old = [_Revision(v, running) for v in {r.revision for r in running} - {revision}]
    sizes = {(pool, o.name): 0 for o in old for pool in o.pools} | {(t.pool, revision): t.replicas for t in targets}
    sized = [t for t in targets if t.replicas]
    if not any(o.stands(sized) for o in old) or is_whole(targets, revision, running):
        return sizes
    new = _Revision(revision, running)
    ranked = sorted(old, key=lambda o: (not o.stands(sized), -o.share(sized), -o.serving, o.name))
    for target in sized:
        kept = _keep(target, sized, new, ranked)
        sizes |= {(target.pool, name): replicas for name, replicas in kept.items() if (target.pool, name) in sizes}
        sizes[target.pool, revision] = _surge(target, sized, new, sum(kept.values()))
    return sizes


class _Revision:
    """All pools of one revision."""

    def __init__(self, name: str, running: Sequence[Running]) -> None:
        self.name = name
        self.pools = {r.pool: r for r in running if r.revision == name}
        self.serving = sum(r.serving for r in self.pools.values())

    def asked(self, target: Target) -> int:
        return self.pools[target.pool].replicas if target.pool in self.pools else 0

    def ready(self, target: Target) -> int:
        return self.pools[target.pool].serving if target.pool in self.pools else 0

    def share(self, targets: Sequence[Target]) -> Fraction:
        """The part of the load that it takes on its own, 0 to 1."""
        parts = (Fraction(min(self.ready(t), t.replicas), t.replicas) for t in targets)
        return min(parts, default=Fraction(1))

    def stands(self, targets: Sequence[Target]) -> bool:
        """It serves, or did and is expected to again: each role has a replica of it."""
        standing = {r.role for r in self.pools.values() if r.replicas and (r.ready or r.proven)}
        return {t.role for t in targets} <= standing

    def has_served(self, targets: Sequence[Target]) -> bool:
        return all(t.pool in self.pools and (self.ready(t) or self.pools[t.pool].proven) for t in targets)


def _keep(target: Target, sized: Sequence[Target], new: _Revision, ranked: Sequence[_Revision]) -> dict[str, int]:
    """What each old revision keeps of one pool: pairs, other ready replicas, expected ones; growth, before the new one
    has served. The last two never displace a new replica."""
    size, rest = target.replicas, 1 - new.share(sized)
    need = ceil(size * rest)
    kept = {o.name: 0 for o in ranked}

    def keep(o: _Revision, replicas: int, most: int) -> None:
        kept[o.name] += max(0, min(replicas - kept[o.name], most - sum(kept.values())))

    for o in ranked:
        share = min(o.share(sized), rest)
        keep(o, ceil(size * share), need)
        rest -= share
    for o in ranked:
        keep(o, o.ready(target), need)
    most = min(need, size + 1 - min(new.asked(target), size))
    for o in ranked:
        if o.stands(sized):
            keep(o, o.asked(target), most)
    if target.pool in ranked[0].pools and not new.has_served(sized):
        keep(ranked[0], size, most)
    return kept


def _surge(target: Target, sized: Sequence[Target], new: _Revision, kept: int) -> int:
    """The new revision's replicas of one pool: one above its size, decode first."""
    room = min(target.replicas, target.replicas + 1 - kept)
    if target.role != "prefill":
        return room
    decode = new.share([t for t in sized if t.role == "decode"])
    return min(room, max(new.asked(target), ceil(target.replicas * decode)))
