"""The sizes that a service's pools may have, as ladders, and the searches over them.

Prefill pools form one ladder, pools that decode (mixed ones too) another. A rung names the replicas of each pool of
its ladder; the next rung has one replica more, of the pool that needs the fewest GPUs for the same work until that is
at its most. Invariants: sizes stay within the pools' bounds, and held pools as they are; where predicates and scores
are monotone in the sizes, no better pair of rungs exists than the one found. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from paceline_router.autoscale.signals import PoolSignals, ServiceSignals
from paceline_router.facts import Role

Sizes = Mapping[str, int]  # replicas by pool
Rank = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rung:
    """Sizes of the pools of one ladder, and what they cost together."""

    sizes: Sizes
    gpus: int


Ladder = tuple[Rung, ...]


def bounds(pool: PoolSignals) -> tuple[int, int]:
    """Least and most replicas; a held pool has only the size that it has."""
    return (pool.replicas, pool.replicas) if pool.held else (pool.least, max(pool.least, pool.most))


def gpus_of(signals: ServiceSignals, sizes: Sizes) -> int:
    return sum(pool.gpus * sizes[pool.name] for pool in signals.pools)


def ladders(
    pools: Sequence[PoolSignals], costs: Mapping[str, float], floors: Sizes | None = None, tops: Sizes | None = None
) -> tuple[Ladder, ...]:
    """From `floors` to `tops`; without them between the pools' bounds. One or two, the prefill pools' first.

    `costs` orders the pools of a ladder: the GPUs that one replica of each needs for the same work. Between the bounds
    the lowest rung has a replica wherever the highest has one: requests need every role.
    """
    prefill = [pool for pool in pools if pool.role is Role.PREFILL]
    decode = [pool for pool in pools if pool.role is not Role.PREFILL]
    found = []
    for of_ladder in (prefill, decode):
        if of_ladder:
            order = sorted(of_ladder, key=lambda pool: costs[pool.name])
            low = {pool.name: bounds(pool)[0] if floors is None else floors[pool.name] for pool in order}
            high = {pool.name: bounds(pool)[1] if tops is None else tops[pool.name] for pool in order}
            rungs = _climb(order, low, high)
            needed = floors is None and len(rungs) > 1 and not any(low.values())
            found.append(rungs[1:] if needed else rungs)
    return tuple(found)


def _climb(order: Sequence[PoolSignals], low: Sizes, high: Sizes) -> Ladder:
    sizes, gpus = dict(low), sum(pool.gpus * low[pool.name] for pool in order)
    rungs = [Rung(dict(sizes), gpus)]
    for pool in order:
        while sizes[pool.name] < high[pool.name]:
            sizes[pool.name] += 1
            gpus += pool.gpus
            rungs.append(Rung(dict(sizes), gpus))
    return tuple(rungs)


def fewest_gpus(found: Sequence[Ladder], meets: Callable[[Sizes], bool], rank: Callable[[Sizes], Rank]) -> Sizes:
    """The cheapest sizes that meet; among equally cheap ones the least `rank`. The highest rungs together must meet.

    `meets` never turns false as sizes grow, so what meets least lies on a staircase: as one ladder climbs, the other
    goes down.
    """
    if len(found) == 1:
        return found[0][_first(found[0], {}, meets)].sizes
    one, two = found
    i = _first(one, two[-1].sizes, meets)
    lowest = _first(two, one[-1].sizes, meets)
    best: list[Sizes] = []
    cost, j = one[-1].gpus + two[-1].gpus, len(two) - 1
    while i < len(one) and one[i].gpus + two[lowest].gpus <= cost:
        j = lowest + _first(two[lowest : j + 1], one[i].sizes, meets)
        gpus = one[i].gpus + two[j].gpus
        best = [*(best if gpus == cost else []), {**one[i].sizes, **two[j].sizes}] if gpus <= cost else best
        cost = min(cost, gpus)
        i += 1
    return min(best, key=rank)


def _first(ladder: Ladder, others: Sizes, meets: Callable[[Sizes], bool]) -> int:
    """The lowest rung that meets beside `others`."""
    return bisect_left(ladder, True, key=lambda rung: meets({**others, **rung.sizes}))


def best_within(found: Sequence[Ladder], gpus: int, rank: Callable[[Sizes], Rank]) -> Sizes:
    """The affordable sizes of the highest `rank`, of equal ones those that leave less unspent; else the lowest rungs.

    `gpus` may be spent on all ladders together.
    """
    one, two = found[0], found[1] if len(found) > 1 else (Rung({}, 0),)
    affordable: list[Sizes] = []
    for rung in reversed(one):  # of equal ranks the first is kept: the one that leaves less unspent
        j = bisect_right(two, gpus - rung.gpus, key=lambda other: other.gpus) - 1
        if j >= 0:
            affordable.append({**rung.sizes, **two[j].sizes})
    if len(found) == 1:
        affordable = affordable[:1]
    return max(affordable, key=rank) if affordable else {**one[0].sizes, **two[0].sizes}
