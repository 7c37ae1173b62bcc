"""The autoscaling law (DESIGN §7): the least replicas of each pool that bring every class to its target, and why.

The target of a class is min(its target, A∞ − 1 point), A∞ being what an unloaded fleet attains on the present
lengths. Where A∞ itself is below the target no pool grows for that class, and none that it still needs is taken away.
Invariants: sizes lie within the pools' bounds and, unless those alone exceed it, within maxGPUs; a role that requests
need has a replica; more load never asks for fewer GPUs while bounds and maxGPUs let every class reach its target. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paceline_router.autoscale.explain import Account, explain
from paceline_router.autoscale.ladder import Ladder, Rank, Sizes, best_within, bounds, gpus_of
from paceline_router.autoscale.outlook import PHASES, Model, Outlook, Targets
from paceline_router.autoscale.phases import AS_PREDICTED, Factors
from paceline_router.autoscale.signals import ServiceSignals, Unattainable
from paceline_router.facts import Role

A_INF_MARGIN = 0.01  # DESIGN §7: no fleet is asked for the last point before A∞


@dataclass(frozen=True, slots=True)
class Sizing:
    """`binding` and `why` as in `Change`; `targets` of classes with traffic; `limited`: bounds or maxGPUs miss one."""

    sizes: Sizes
    binding: Mapping[str, str]
    why: Mapping[str, str]
    unattainable: tuple[Unattainable, ...] = ()
    targets: Targets = field(default_factory=dict)
    limited: bool = False


def least_sizes(signals: ServiceSignals, factors: Factors = AS_PREDICTED, model: Model = PHASES) -> Sizing:
    """The law. Sizes are absolute: replicas that are starting count towards them."""
    return sized(Outlook(signals, factors, model(signals)))


def sized(outlook: Outlook) -> Sizing:
    """`least_sizes` of a service whose forecasts are at hand."""
    signals = outlook.signals
    targets, unattainable = objectives(outlook)
    if not targets:
        return _constant(_idle(signals), "no traffic")
    found = outlook.ladders()
    missing = _missing(signals, found)
    if missing:
        return _constant(present(signals), f"there may be no {missing} replica: nothing can be served")
    lost = {u.class_name for u in unattainable}
    sought = {name: target for name, target in targets.items() if name not in lost}
    wish = _wish(outlook, found, targets, sought)
    sizes = within_budget(outlook, wish, _floors(signals, found, wish), sought or targets)
    account = Account(outlook, sizes, wish, targets)
    explained = {pool.name: explain(account, pool) for pool in signals.pools}
    return Sizing(
        sizes,
        {name: binding for name, (binding, _) in explained.items()},
        {name: why for name, (_, why) in explained.items()},
        unattainable,
        targets,
        limited=not outlook.holds(sizes, sought),
    )


def objectives(outlook: Outlook) -> tuple[Targets, tuple[Unattainable, ...]]:
    """Of the classes that have traffic: the shares to reach, and those whose own target no fleet attains."""
    busy = [c.slo for c in outlook.signals.classes if c.arrivals_rps > 0]
    if not busy:
        return {}, ()
    best = outlook.foresight.unloaded()
    targets = {slo.name: max(min(slo.target_ratio, best[slo.name].joint - A_INF_MARGIN), 0.0) for slo in busy}
    lost = tuple(
        Unattainable(slo.name, "ttft" if a.ttft <= a.tpot else "tpot", a.joint, slo.target_ratio)
        for slo in busy
        if (a := best[slo.name]).joint < slo.target_ratio
    )
    return targets, lost


def present(signals: ServiceSignals) -> dict[str, int]:
    """The sizes that /scale says."""
    return {pool.name: pool.replicas for pool in signals.pools}


def within_budget(outlook: Outlook, wish: Sizes, floors: Sizes, targets: Targets) -> Sizes:
    """`wish`, or from `floors` to it the affordable sizes whose worst class comes nearest to its target.

    Equal ones: in sum over the classes, then by how evenly the pools are cut.
    """
    budget = outlook.signals.max_gpus
    if budget is None or gpus_of(outlook.signals, wish) <= budget:
        return wish

    def rank(sizes: Sizes) -> Rank:
        return (*outlook.score(sizes, targets), min(n / wish[name] for name, n in sizes.items() if wish[name]))

    return best_within(outlook.ladders(floors, wish), budget, rank)


def _wish(outlook: Outlook, found: tuple[Ladder, ...], targets: Targets, sought: Targets) -> Sizes:
    """Without maxGPUs. Classes that are not `sought` keep what they need of the present sizes, and get no more."""
    wish = outlook.least(found, sought)
    if sought == targets:
        return wish
    kept = outlook.least(found, targets)
    return {p.name: max(wish[p.name], min(kept[p.name], p.replicas)) for p in outlook.signals.pools}


def _missing(signals: ServiceSignals, found: tuple[Ladder, ...]) -> str:
    """The role without which no request is served, where no pool of it may have a replica; empty: none."""
    most = {name: n for ladder in found for name, n in ladder[-1].sizes.items()}
    roles = {pool.role for pool in signals.pools if most[pool.name]}
    needed = (Role.MIXED,) if any(pool.role is Role.MIXED for pool in signals.pools) else (Role.PREFILL, Role.DECODE)
    return next((role.value for role in needed if role not in roles), "")


def _floors(signals: ServiceSignals, found: tuple[Ladder, ...], wish: Sizes) -> Sizes:
    """What the budget alone takes from no pool: its ready replicas, unless they exceed the budget together."""
    lowest = {name: n for ladder in found for name, n in ladder[0].sizes.items()}
    ready = {pool.name: max(pool.ready, lowest[pool.name]) for pool in signals.pools}
    if signals.max_gpus is not None and gpus_of(signals, ready) > signals.max_gpus:
        return lowest
    return {name: min(n, wish[name]) for name, n in ready.items()}


def _idle(signals: ServiceSignals) -> Sizes:
    """The least sizes, but one replica of each role that has any: nothing wakes a role that is at 0."""
    sizes = {pool.name: bounds(pool)[0] for pool in signals.pools}
    for role in Role:
        pools = [pool for pool in signals.pools if pool.role is role]
        awake = [pool.name for pool in pools if pool.replicas]
        if awake and not any(sizes[pool.name] for pool in pools):
            sizes[awake[0]] = 1
    return sizes


def _constant(sizes: Sizes, why: str) -> Sizing:
    """Sizes that no model was asked for."""
    return Sizing(sizes, dict.fromkeys(sizes, ""), dict.fromkeys(sizes, why))
