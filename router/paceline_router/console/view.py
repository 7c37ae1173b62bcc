"""What the console shows, as JSON: figures of the last minute and since the router started, against the objectives.

Pure: counters, replicas and jobs come in as they are, numbers go out unrounded, in seconds and shares of one; the page
formats them. Invariant: every total is the figure that /metrics gives, and a status is judged on the last minute alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from paceline_api.slo import SLOClass

from paceline_router.console.scaling import Scaling
from paceline_router.console.tally import Sample, Tally
from paceline_router.facts import Role
from paceline_router.replica import Replica

SCHEMA = "paceline.console/v1"
QUANTILES = {"p50": 0.5, "p90": 0.9}

Json = dict[str, Any]


class Standing(StrEnum):
    """How a class stands."""

    MEETING = "meeting"
    MISSING = "missing"
    UNDECIDED = "no verdict yet"
    NO_TRAFFIC = "no traffic"


@dataclass(frozen=True, slots=True)
class Service:
    """What is served, and by which kind of fleet."""

    name: str
    namespace: str
    model: str
    default_class: str
    classes: Mapping[str, SLOClass]
    simulated: bool
    time_scale: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request without its first token: where it is, and since when the router has it."""

    role: Role
    since_s: float


@dataclass(frozen=True, slots=True)
class Present:
    """One moment. `not_ready`: what /readyz says no with; `in_flight`: the role of each request without an outcome."""

    service: Service
    now: Sample
    not_ready: str
    replicas: Sequence[Replica]
    in_flight: Sequence[Role]
    waiting: Sequence[Waiting]
    scaling: Scaling


def view(present: Present, recent: Sample, trend: Sequence[Sample]) -> Json:
    """`recent`: the last minute's increase; `trend`: the increase in each of the last steps."""
    service, total = present.service, present.now
    return {
        "schema": SCHEMA,
        "service": service.name,
        "namespace": service.namespace,
        "model": service.model,
        "simulated": service.simulated,
        "time_scale": service.time_scale,
        "not_ready": present.not_ready,
        "uptime_s": total.at_s,
        "window_s": recent.at_s,
        "classes": [
            {
                "name": name,
                "default": name == service.default_class,
                "standing": standing(recent.tallies.get(name, Tally()), slo),
                **_objective(slo),
                "recent": figures(recent.tallies.get(name, Tally()), recent.at_s),
                "total": figures(total.tallies.get(name, Tally()), total.at_s),
                "trend": [_step(sample, name) for sample in trend],
            }
            for name, slo in service.classes.items()
        ],
        "requests": {"recent": _requests(recent), "total": _requests(total), "in_flight": len(present.in_flight)},
        "misses": {
            "recent": _summed(tally.misses for tally in recent.tallies.values()),
            "total": _summed(tally.misses for tally in total.tallies.values()),
        },
        "roles": _roles(present),
        "pools": _pools(present.replicas, present.scaling),
        "scaling": {
            "note": present.scaling.note,
            "conditions": [asdict(condition) for condition in present.scaling.conditions],
            "decisions": [asdict(decision) for decision in present.scaling.decisions],
        },
    }


def standing(recent: Tally, slo: SLOClass) -> Standing:
    """Of a class, by what was decided in the last minute."""
    if recent.attainment is None:
        return Standing.UNDECIDED if recent.arrivals else Standing.NO_TRAFFIC
    return Standing.MEETING if recent.attainment >= slo.target_ratio else Standing.MISSING


def figures(tally: Tally, span_s: float) -> Json:
    """Of one class over `span_s` seconds."""
    return {
        "arrivals": tally.arrivals,
        "arrivals_per_s": _rate(tally.arrivals, span_s),
        "decided": tally.decided,
        "good": tally.good,
        "goodput_per_s": _rate(tally.good, span_s),
        "attainment_ratio": tally.attainment,
        "ttft_s": {name: tally.ttft.quantile(q) for name, q in QUANTILES.items()},
        "tpot_s": {name: tally.tpot.quantile(q) for name, q in QUANTILES.items()},
    }


def _objective(slo: SLOClass) -> Json:
    return {
        "target_ratio": slo.target_ratio,
        "ttft_limit_s": slo.ttft_s,
        "ttft_s_per_1k_prompt_tokens": slo.ttft_s_per_1k_prompt_tokens,
        "tpot_limit_s": slo.tpot_s,
    }


def _step(step: Sample, name: str) -> Json:
    tally = step.tallies.get(name, Tally())
    return {"arrivals_per_s": _rate(tally.arrivals, step.at_s), "attainment_ratio": tally.attainment}


def _requests(sample: Sample) -> Json:
    """Over all classes, also those that were refused before their class was known."""
    tallies = sample.tallies.values()
    arrivals, good = sum(t.arrivals for t in tallies), sum(t.good for t in tallies)
    return {
        "arrivals": arrivals,
        "arrivals_per_s": _rate(arrivals, sample.at_s),
        "goodput_per_s": _rate(good, sample.at_s),
        "outcomes": _summed(tally.outcomes for tally in tallies),
    }


def _roles(present: Present) -> list[Json]:
    roles = {*present.in_flight, *(replica.role for replica in present.replicas)}
    return [
        {
            "role": role,
            "in_flight": present.in_flight.count(role),
            "waiting": sum(waiting.role is role for waiting in present.waiting),
            "oldest_s": max((present.now.at_s - w.since_s for w in present.waiting if w.role is role), default=None),
        }
        for role in Role
        if role in roles
    ]


def _pools(replicas: Sequence[Replica], scaling: Scaling) -> list[Json]:
    by_pool: dict[tuple[str, str], list[Replica]] = {
        (pool.role, name): [] for name, pool in scaling.pools.items() if pool.desired
    }
    for replica in replicas:
        by_pool.setdefault((replica.role, replica.pool), []).append(replica)
    order = {str(role): i for i, role in enumerate(Role)}
    pools = sorted(by_pool.items(), key=lambda item: (order.get(item[0][0], len(order)), item[0][1]))
    return [
        {"name": name, "role": role, "desired": planned.desired if planned else None, **_pool(members)}
        for (role, name), members in pools
        for planned in [scaling.pools.get(name)]
    ]


def _pool(members: Sequence[Replica]) -> Json:
    known = [r for r in members if r.facts.kv_tokens]
    capacity = sum(r.facts.kv_tokens or 0 for r in known)
    return {
        "replicas": len(members),
        "ready": sum(r.is_active for r in members),
        "leaving": sum(r.retired for r in members),
        "gpus": sum(r.gpus for r in members),
        "in_flight": sum(r.legs for r in members),
        "kv_reserved_ratio": sum(r.kv_reserved for r in known) / capacity if capacity else None,
        "token_budgets": sorted({r.facts.token_budget for r in members if r.facts.seen_at_s}),
    }


def _rate(count: int, span_s: float) -> float:
    return count / span_s if span_s > 0 else 0.0


def _summed(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, count in part.items():
            total[str(name)] = total.get(str(name), 0) + count
    return total
