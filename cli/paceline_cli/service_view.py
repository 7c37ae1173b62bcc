"""What `paceline status` tells of one service: what runs, held to which objective, why it is not ready, and whether its
sizes follow the load.

LLMService, its EnginePools and pods → ServiceView, whose fields are those of `--json` (schema `paceline.status/v1`).
Pure. Invariant: a service that is not ready has at least one cause, and each cause says who said it: the operator, by a
condition, or a pod, by its own status; an autoscaler that has said nothing is told as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paceline_api.conditions import AUTOSCALER_CONDITIONS, READY_PARTS, ConditionType
from paceline_api.v1alpha1 import AutoscalingMode, Condition, EnginePool, LLMService, PoolSpec, Runtime
from paceline_router.pod_state import Json

from paceline_cli.pod_view import PodView, pod_causes, view_pod

SCHEMA = "paceline.status/v1"
MOST_DECISIONS = 3
RUNS = "see whether it runs: kubectl get deployments -A -l app.kubernetes.io/name=paceline"
NO_WORD = f"the operator has not reported on this service; {RUNS}"
NO_SCALING = f"the autoscaler has not reported on this service; {RUNS}"


@dataclass(frozen=True, slots=True)
class PoolView:
    """`desired` and `ready` None: no EnginePool of that name exists yet."""

    name: str
    role: str
    accelerator: str
    tensor: int | None
    pipeline: int | None
    desired: int | None
    ready: int | None
    revision: str
    image: str


@dataclass(frozen=True, slots=True)
class ClassView:
    """An objective as it was written, and as the autoscaler last measured it."""

    name: str
    is_default: bool
    ttft_ms: int
    ttft_ms_per_1k_prompt_tokens: int
    tpot_ms: int
    target_percent: str
    attainment_percent: str | None
    goodput_per_second: str | None
    ttft_p90_ms: int | None
    tpot_p90_ms: int | None


@dataclass(frozen=True, slots=True)
class ConditionView:
    """`status` is True, False or Unknown."""

    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class ScalingView:
    """What the autoscaler says, in its conditions; `decisions` are its latest, the last of them first."""

    mode: str
    conditions: tuple[ConditionView, ...]
    decisions: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What stands in the way of sizes that follow the load."""
        if self.conditions:
            return tuple(f"{c.type} {c.status}: {c.reason}: {c.message}" for c in self.conditions if c.status != "True")
        return () if self.mode == AutoscalingMode.DISABLED else (NO_SCALING,)


@dataclass(frozen=True, slots=True)
class ServiceView:
    """`ready` None: the operator has not said."""

    name: str
    namespace: str
    ready: bool | None
    simulated: bool
    url: str
    model: str
    topology: str
    plan_reason: str
    predicted_attainment_percent: str | None
    routers_desired: int
    routers_ready: int
    pools: tuple[PoolView, ...]
    classes: tuple[ClassView, ...]
    causes: tuple[str, ...]
    scaling: ScalingView
    pods: tuple[PodView, ...]


def view(service: LLMService, pools: Sequence[EnginePool], pods: Iterable[Json]) -> ServiceView:
    """`pools` and `pods` are those with the service's label in its namespace."""
    status = service.status
    plan = status.plan if status else None
    seen = tuple(sorted(map(view_pod, pods), key=lambda pod: (pod.pool, pod.name)))
    predicted = plan.predicted.attainment_percent if plan else None
    return ServiceView(
        name=service.name,
        namespace=service.metadata.namespace,
        ready=_is_ready(service),
        simulated=service.spec.engine.runtime is Runtime.SIMULATED,
        url=(status.url if status else None) or "",
        model=service.served_name,
        topology=str(plan.topology if plan else service.spec.topology),
        plan_reason=plan.reason if plan else "",
        predicted_attainment_percent=None if predicted is None else str(predicted),
        routers_desired=service.spec.router.replicas,
        routers_ready=sum(pod.ready and not pod.terminating for pod in seen if not pod.pool),
        pools=_pools(service, pools),
        classes=_classes(service),
        causes=_causes(service, seen),
        scaling=_scaling(service),
        pods=seen,
    )


def _conditions(service: LLMService) -> dict[str, Condition]:
    return {condition.type: condition for condition in (service.status.conditions if service.status else ())}


def _is_ready(service: LLMService) -> bool | None:
    ready = _conditions(service).get(ConditionType.READY)
    return None if ready is None else ready.status == "True"


def _pools(service: LLMService, pools: Sequence[EnginePool]) -> tuple[PoolView, ...]:
    """The pools that run; all that are asked for while none does."""
    by_pool = {pool.spec.pool: pool for pool in pools}
    wanted = [spec for spec in service.spec.pools if spec.name in by_pool] or service.spec.pools
    return tuple(_pool(spec, by_pool.get(spec.name)) for spec in wanted)


def _pool(spec: PoolSpec, pool: EnginePool | None) -> PoolView:
    plan = pool.spec.plan if pool else None
    status = pool.status if pool else None
    return PoolView(
        name=spec.name,
        role=str(spec.role),
        accelerator=spec.accelerator,
        tensor=plan.tensor if plan else None,
        pipeline=plan.pipeline if plan else None,
        desired=pool.spec.replicas if pool else None,
        ready=(status.ready_replicas if status else 0) if pool else None,
        revision=status.revision if status else "",
        image=pool.spec.image if pool else "",
    )


def _classes(service: LLMService) -> tuple[ClassView, ...]:
    measured = {c.name: c for c in (service.status.classes if service.status else ())}
    views = []
    for spec in service.spec.slo.classes:
        found = measured.get(spec.name)
        attained = found.attainment_percent if found else None
        goodput = found.goodput_per_second if found else None
        views.append(
            ClassView(
                name=spec.name,
                is_default=spec.name == service.default_class_name,
                ttft_ms=spec.ttft_ms,
                ttft_ms_per_1k_prompt_tokens=spec.ttft_ms_per_1k_prompt_tokens,
                tpot_ms=spec.tpot_ms,
                target_percent=str(spec.attainment_percent),
                attainment_percent=None if attained is None else str(attained),
                goodput_per_second=None if goodput is None else str(goodput),
                ttft_p90_ms=found.ttft_p90_ms if found else None,
                tpot_p90_ms=found.tpot_p90_ms if found else None,
            )
        )
    return tuple(views)


def _scaling(service: LLMService) -> ScalingView:
    said = _conditions(service)
    conditions = tuple(
        ConditionView(c.type, c.status, c.reason, c.message)
        for c in (said.get(type_) for type_ in AUTOSCALER_CONDITIONS)
        if c is not None
    )
    return ScalingView(str(service.spec.autoscaling.mode), conditions, _decisions(service))


def _decisions(service: LLMService) -> tuple[str, ...]:
    """The latest ones, the last of them first."""
    decisions = sorted(service.status.decisions if service.status else (), key=lambda d: d.time, reverse=True)
    return tuple(
        f"{d.time} {d.pool} {d.from_} → {d.to}{f' for {d.binding}' if d.binding else ''}{f': {d.why}' if d.why else ''}"
        for d in decisions[:MOST_DECISIONS]
    )


def _causes(service: LLMService, pods: Sequence[PodView]) -> tuple[str, ...]:
    """Of a service that is ready: what is wrong nevertheless."""
    if _is_ready(service):
        return tuple(pod_causes(pods, ""))
    conditions = _conditions(service)
    ready = conditions.get(ConditionType.READY)
    if ready is None:
        return (NO_WORD, *pod_causes(pods, ""))
    causes = []
    generation, acted_on = service.metadata.generation, (service.status and service.status.observed_generation) or 0
    if acted_on < generation:
        causes.append(f"the operator has acted on generation {acted_on} of {generation}: the latest edit waits for it")
    missing = [conditions[part] for part in READY_PARTS if part in conditions and conditions[part].status != "True"]
    told = [f"{c.type}: {c.reason}: {c.message}" for c in missing or [ready]]
    return (*causes, *told, *pod_causes(pods, " ".join(told)))
