"""Why a pool has the size that the law gave it, in one sentence with the figures, and the objective that binds it.

The binding objective is the one that a replica fewer would cost most: TTFT by the queue, TPOT, or TTFT by the KV that
a request waits for. It is empty where a bound, the budget or a person decides. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline_router.autoscale.ladder import Sizes
from paceline_router.autoscale.outlook import Outlook, Targets
from paceline_router.autoscale.phases import Forecast
from paceline_router.autoscale.signals import PoolSignals

SHOWN = {"ttft": "TTFT", "tpot": "TPOT", "kv": "KV capacity"}


@dataclass(frozen=True, slots=True)
class Account:
    """What a size is explained from: `wish` is what there would be without maxGPUs."""

    outlook: Outlook
    sizes: Sizes
    wish: Sizes
    targets: Targets


def explain(account: Account, pool: PoolSignals) -> tuple[str, str]:
    """The binding objective, CLASS/ttft, CLASS/tpot or CLASS/kv, and the sentence."""
    n, wish = account.sizes[pool.name], account.wish[pool.name]
    if pool.held:
        return "", f"{replicas(n)}, as set by a person; {level(account.outlook, account.sizes, account.targets)}"
    if n < wish:
        cut = f"maxGPUs {account.outlook.signals.max_gpus} leaves {n} of {replicas(wish)}"
        return "", f"{cut}; {level(account.outlook, account.sizes, account.targets)}"
    if n <= max(pool.least, 1):
        least = f"minReplicas {n}" if n == pool.least else replicas(n)
        return "", f"{least} is enough: {level(account.outlook, account.sizes, account.targets)}"
    if n == pool.most and not account.outlook.holds(account.sizes, account.targets):
        return "", f"maxReplicas {n} reached; {level(account.outlook, account.sizes, account.targets)}"
    return _bound(account, pool, n)


def _bound(account: Account, pool: PoolSignals, n: int) -> tuple[str, str]:
    fewer = {**account.sizes, pool.name: n - 1}
    before, after = account.outlook.forecast(account.sizes), account.outlook.forecast(fewer)
    name = nearest(account.outlook, fewer, account.targets)
    objective = _objective(name, before, after)
    figures = f"{replicas(n)} attain {percent(before.attained[name].joint)}, "
    figures += f"{n - 1} attain{'s' if n == 2 else ''} {percent(after.attained[name].joint)}"
    where = f"{SHOWN[objective]} of {name} at {_rate(account.outlook, name)}"
    return f"{name}/{objective}", f"{where}: {figures}, target {percent(account.targets[name])}"


def _objective(class_name: str, before: Forecast, after: Forecast) -> str:
    """What the class loses most of from one forecast to the other: ttft (the queue's part of it), tpot or kv."""

    def parts(forecast: Forecast) -> dict[str, float]:
        attained, room = forecast.attained[class_name], forecast.room[class_name]
        return {"ttft": attained.ttft / room if room else 1.0, "tpot": attained.tpot, "kv": room}

    had, has = parts(before), parts(after)
    return max(had, key=lambda part: had[part] - has[part])


def nearest(outlook: Outlook, sizes: Sizes, targets: Targets) -> str:
    """The class nearest to missing its target, or the furthest below it."""
    attained = outlook.at(sizes)
    return min(targets, key=lambda name: attained[name].joint / max(targets[name], 1e-9))


def level(outlook: Outlook, sizes: Sizes, targets: Targets) -> str:
    """What that class attains with `sizes`."""
    name = nearest(outlook, sizes, targets)
    attains = f"attains {percent(outlook.at(sizes)[name].joint)}, target {percent(targets[name])}"
    return f"{name} at {_rate(outlook, name)} {attains}"


def _rate(outlook: Outlook, name: str) -> str:
    rate = next(c.arrivals_rps for c in outlook.signals.classes if c.slo.name == name)
    return f"{rate:.3g} rps"


def replicas(n: int) -> str:
    return f"{n} replica" if n == 1 else f"{n} replicas"


def percent(share: float) -> str:
    """At most one decimal more than a target needs: 95 %, 96.1 %, 99.95 %."""
    return f"{round(100 * share, 1 if share < 0.995 else 2):g} %"
