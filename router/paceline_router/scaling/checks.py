"""Whether what Prometheus says of a service may be decided by: fresh, whole, free of contradictions (DESIGN §7, §9).

A list of small checks; the first that finds something says it. Invariant: figures that pass all of them are finite and
not negative, and every router and engine that has been ready for a while is among those they were taken from. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from paceline_api.conditions import Reason
from paceline_engine.step_time import GREATEST_SCALE, LARGEST_OFFSET_S, LEAST_SCALE

from paceline_router.autoscale.signals import Blind
from paceline_router.scaling.answers import Told
from paceline_router.scaling.queries import Row, Signal
from paceline_router.scaling.views import PodView, ServiceView

STALE_INTERVALS = 3  # DESIGN §9
UNSEEN_INTERVALS, DISCOVERY_S = 2, 10.0  # a pod that is ready for longer than both has been found and scraped
CLOCK_S = 30.0  # further apart, ages and holds mean nothing
COVERED = 0.75  # of the window's samples: fewer, and a rate over it is too low
LARGEST = 1e15  # beyond, it counts nothing that there is
ROUNDING = 1e-6  # a difference of two rates may be this far below 0


def find_blind(service: ServiceView, told: Told) -> Blind | None:
    """Why nothing may be decided by `told`."""
    return next((blind for check in CHECKS if (blind := check(service, told))), None)


def routers_blind(service: ServiceView, told: Told) -> Blind | None:
    """Why what the routers count is not to be believed."""
    return next((blind for check in ROUTER_CHECKS if (blind := check(service, told))), None)


def _clock(service: ServiceView, told: Told) -> Blind | None:
    apart_s = told.answers.clock_s - told.answers.asked_s
    if math.isfinite(apart_s) and abs(apart_s) <= CLOCK_S:
        return None
    message = f"the clocks of Prometheus and of the autoscaler are more than {CLOCK_S:.0f} s apart; set both by NTP"
    return Blind(Reason.METRICS_INVALID, message)


def _sound(service: ServiceView, told: Told) -> Blind | None:
    for signal, rows in told.rows.items():
        odd = next((row for row in rows if not _is_sound(signal, row.value)), None)
        if odd:
            labels = ", ".join(odd.labels[k] for k in ("slo_class", "pool", "role") if k in odd.labels)
            return Blind(Reason.METRICS_INVALID, f"{signal} of {labels or service.name} make no sense: {odd.value:g}")
    return None


def _is_sound(signal: Signal, value: float) -> bool:
    match signal:
        case Signal.OFFSETS:
            return abs(value) <= LARGEST_OFFSET_S
        case Signal.SCALES:
            return LEAST_SCALE <= value <= GREATEST_SCALE
        case Signal.ARRIVALS:
            return -ROUNDING <= value <= LARGEST
        case _:
            return 0 <= value <= LARGEST


def _routers(service: ServiceView, told: Told) -> Blind | None:
    return _seen("router", told.all(Signal.ROUTER_AGES), service.pods_of(""), told) or (
        None if told.all(Signal.ROUTER_AGES) else Blind(Reason.METRICS_MISSING, "no router has been seen yet")
    )


def _engines(service: ServiceView, told: Told) -> Blind | None:
    for pool in service.pools:
        rows = told.all(Signal.ENGINE_AGES, pool=pool.name)
        blind = _seen(f"engine of {pool.name}", rows, service.pods_of(pool.name), told)
        if blind:
            return blind
    return None


def _seen(what: str, ages: Sequence[Row], pods: Sequence[PodView], told: Told) -> Blind | None:
    """By name where Prometheus attaches that, else by number."""
    scrape_s = told.answers.scrape_s
    seen_after_s = max(UNSEEN_INTERVALS * scrape_s, DISCOVERY_S)
    due = [pod for pod in pods if pod.is_ready_for(seen_after_s, told.answers.asked_s)]
    fresh = [row for row in ages if row.value <= STALE_INTERVALS * scrape_s]
    if len(fresh) < len(ages) and len(fresh) < max(1, len(due)):
        seconds = f"{STALE_INTERVALS * scrape_s:g}"
        return Blind(Reason.METRICS_STALE, f"Prometheus holds nothing of a {what} that is younger than {seconds} s")
    names = {row.labels.get("pod", "") for row in fresh}
    unseen = len(due) - len(fresh) if "" in names else sum(pod.name not in names for pod in due)
    if unseen <= 0:
        return None
    if not fresh:
        return Blind(Reason.METRICS_STALE, f"Prometheus sees no {what}, and {len(due)} are ready; see its targets")
    return Blind(Reason.METRICS_INVALID, f"Prometheus does not see every {what}: {unseen} of {len(due)} are missing")


def _covered(service: ServiceView, told: Told) -> Blind | None:
    """The router that was seen longest covers the window: a rate over gaps would be too low."""
    window_s, scrape_s = told.answers.window_s, told.answers.scrape_s
    if (told.one(Signal.COVERAGE) or 0.0) >= math.floor(COVERED * window_s / scrape_s):
        return None
    message = (
        f"the routers' figures do not cover the last {window_s:g} s; should that stay so, prometheus.scrapeInterval "
        f"({scrape_s:g}s) is not what Prometheus scrapes them at"
    )
    return Blind(Reason.METRICS_MISSING, message)


def _counted(service: ServiceView, told: Told) -> Blind | None:
    names = {row.labels.get("slo_class") for row in told.all(Signal.ARRIVALS)}
    if names & {slo.name for slo in service.classes}:
        return None
    return Blind(Reason.METRICS_MISSING, "the routers count no class of this service yet")


Check = Callable[[ServiceView, Told], Blind | None]
ROUTER_CHECKS: Sequence[Check] = (_clock, _sound, _routers, _covered, _counted)
CHECKS: Sequence[Check] = (*ROUTER_CHECKS, _engines)
