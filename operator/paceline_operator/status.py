"""The operator's part of LLMService status, and EnginePool status (DESIGN §3, "Status, two writers").

Ready = PlanFeasible ∧ PoolsReady ∧ RouterReady; PoolsReady = each pool has at least max(1, minReplicas) ready, or is at
0 on purpose. Invariant: the same state gives the same status; a condition's time moves only when its status does. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paceline_api.conditions import OPERATOR_CONDITIONS, ConditionType, Reason
from paceline_api.v1alpha1 import LLMService
from paceline_planner.launching import ROLE_NAMES
from paceline_planner.plan import Infeasible, Plan, PoolPlan
from paceline_router.endpoints import POOL_LABEL
from paceline_router.judged import Judged, condition

from paceline_operator.desire import Desired
from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import PORT, Owner, Shard
from paceline_operator.observe import Observed, ready_of
from paceline_operator.troubles import find_trouble

MAX_REASON = 512  # of texts in status.plan, and of what the API server says


@dataclass(frozen=True, slots=True)
class Taken:
    """An object of somebody else's under a name that the service needs."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} exists and is not this service's; remove it, or name the service otherwise"


@dataclass(frozen=True, slots=True)
class Refused:
    """An object that the API server does not take."""

    kind: str
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} is refused: {' '.join(self.why.split())[:MAX_REASON]}"


def service_status(
    owner: Owner,
    service: LLMService,
    desired: Desired,
    seen: Observed,
    missing: Sequence[Taken | Refused],
    live: Json,
    now: str,
) -> Json:
    """What the operator applies to /status; `missing` could not be written, `live` is the status that there is, `now`
    RFC 3339.
    """
    routers = [m for m in missing if m.name == owner.name or m.name.startswith(owner.router)]
    engines = [m for m in missing if m not in routers]
    parts = [
        _plan_feasible(desired),
        _after(engines, _pools_ready(service, desired, seen)),
        _after(routers, _router_ready(owner, desired, seen)),
    ]
    unmet = [part for part in (parts if desired.plan else parts[:1]) if part.status != "True"]
    message = "; ".join(f"{part.type}: {part.message}" for part in unmet)
    reason = Reason.NOT_SERVING if unmet else Reason.SERVING
    ready = Judged(ConditionType.READY, "False" if unmet else "True", reason, message or "requests are served")
    generation = service.metadata.generation
    status: Json = {"observedGeneration": generation}
    if desired.plan:
        scheme = "https" if service.spec.router.tls else "http"
        status["url"] = f"{scheme}://{owner.name}.{owner.namespace}.svc:{PORT}"
        status["plan"] = _plan(desired.plan)
        status["pools"] = [_pool(desired, seen, pool) for pool in desired.plan.pools]
    status["conditions"] = [condition(judged, generation, live, now) for judged in (ready, *parts)]
    return status


def pool_status(owner: Owner, desired: Desired, seen: Observed, pool: Json) -> Json:
    """Of one EnginePool; the selector is what an HPA counts pods by."""
    name = pool["spec"]["pool"]
    deployments = _deployments(seen, name)
    labels = {**owner.labels, POOL_LABEL: name}
    return {
        "observedGeneration": pool["metadata"].get("generation", 0),
        "replicas": sum(int((d.get("status") or {}).get("replicas") or 0) for d in deployments),
        "readyReplicas": sum(map(ready_of, deployments)),
        "selector": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        "revision": desired.revisions.get(name, ""),
    }


def own_part(status: Mapping[str, Any]) -> Json:
    """The part of a live status that the operator writes, without empty values, to compare by."""
    own = {key: status.get(key) for key in ("observedGeneration", "url", "plan", "pools")}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    own["conditions"] = [conditions.get(str(type_)) for type_ in OPERATOR_CONDITIONS]
    pruned: Json = _prune(own)
    return pruned


def _prune(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: v for k, child in value.items() if (v := _prune(child)) not in (None, "", [], {})}
    return [_prune(child) for child in value] if isinstance(value, list) else value


def _plan_feasible(desired: Desired) -> Judged:
    kind = ConditionType.PLAN_FEASIBLE
    if isinstance(desired.verdict, Infeasible):
        obstacles = desired.verdict.obstacles
        message = "; ".join(f"{o.path}: {o.message}" for o in obstacles)
        return Judged(kind, "False", obstacles[0].cause, message)
    return Judged(kind, "True", Reason.PLANNED, "; ".join((str(desired.verdict.topology), *desired.verdict.warnings)))


def _after(missing: Sequence[Taken | Refused], found: Judged) -> Judged:
    """A name that is taken keeps a service from running; behind a refusal, what was there before goes on."""
    for one in missing:
        if isinstance(one, Taken):
            return replace(found, status="False", reason=Reason.REPLICAS_FAILING, message=str(one))
    if not missing:
        return found
    return replace(found, reason=Reason.APPLY_FAILED, message=f"{missing[0]}; {found.message}")


def _pools_ready(service: LLMService, desired: Desired, seen: Observed) -> Judged:
    kind = ConditionType.POOLS_READY
    if desired.plan is None:
        return Judged(kind, "False", Reason.NOT_SERVING, "there is no plan to run")
    specs = {spec.name: spec for spec in service.spec.pools}
    short, counts = [], []
    for pool in desired.plan.pools:
        wanted, ready = desired.sizes[pool.name], sum(map(ready_of, _deployments(seen, pool.name)))
        counts.append(f"{pool.name} {ready} of {wanted}")
        if wanted and ready < min(wanted, max(1, specs[pool.name].least_replicas)):
            short.append(pool)
    state = f"ready: {', '.join(counts)}"
    trouble = find_trouble(
        pod
        for pool in short or desired.plan.pools
        for pod in seen.pods_of(Shard(pool.name, ROLE_NAMES[pool.role], desired.revisions[pool.name]).labels)
    )
    message = f"{state}; {trouble}" if trouble else state
    if short:
        failing = trouble is not None and trouble.failing
        return Judged(kind, "False", Reason.REPLICAS_FAILING if failing else Reason.REPLICAS_STARTING, message)
    if desired.rolling:
        return Judged(kind, "True", Reason.ROLLING_OUT, message)
    empty = not any(desired.sizes.values())
    return Judged(kind, "True", Reason.SCALED_TO_ZERO if empty else Reason.REPLICAS_READY, message)


def _router_ready(owner: Owner, desired: Desired, seen: Observed) -> Judged:
    kind = ConditionType.ROUTER_READY
    if desired.plan is None:
        return Judged(kind, "False", Reason.NOT_SERVING, "there is no plan to run")
    live = seen.get("Deployment", owner.router)
    ready, wanted = ready_of(live), int(live["spec"].get("replicas", 0)) if live else 0
    state, trouble = f"ready: {ready} of {wanted}", find_trouble(seen.router_pods())
    message = f"{state}; {trouble}" if trouble else state
    if ready:
        return Judged(kind, "True", Reason.REPLICAS_READY, message)
    failing = trouble is not None and trouble.failing
    return Judged(kind, "False", Reason.REPLICAS_FAILING if failing else Reason.REPLICAS_STARTING, message)


def _deployments(seen: Observed, pool: str) -> list[Json]:
    return [d for d in seen.of("Deployment") if d["metadata"]["labels"].get(POOL_LABEL) == pool]


def _plan(plan: Plan) -> Json:
    return {
        "topology": str(plan.topology),
        "tokenBudget": plan.token_budget or "Auto",
        "pools": [
            {"name": p.name, "replicas": p.replicas, "tensor": p.tensor, "pipeline": p.pipeline} for p in plan.pools
        ],
        "reason": plan.reason[:MAX_REASON],
        "rejected": [{"topology": str(r.topology), "reason": r.reason[:MAX_REASON]} for r in plan.rejected],
    }


def _pool(desired: Desired, seen: Observed, pool: PoolPlan) -> Json:
    return {
        "name": pool.name,
        "role": str(pool.role),
        "desired": desired.sizes[pool.name],
        "ready": sum(map(ready_of, _deployments(seen, pool.name))),
        "revision": desired.revisions[pool.name],
    }
