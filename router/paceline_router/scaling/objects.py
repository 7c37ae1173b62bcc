"""Kubernetes' objects → what the autoscaler looks at: where LLMServices, EnginePools and pods are parsed.

Invariant: an object that makes no sense is None, and one line in the log names it; it never stops the others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from paceline_api.catalog import ACCELERATORS
from paceline_api.pools import PoolSpec
from paceline_api.schema import Role as PoolRole
from paceline_api.schema import Topology
from paceline_api.v1alpha1 import EnginePool, LLMService, WorkloadSpec
from pydantic import ValidationError

from paceline_router.endpoints import POOL_LABEL, REVISION_LABEL, SERVICE_LABEL, drained_first
from paceline_router.facts import Role
from paceline_router.scaling.holds import read_marks
from paceline_router.scaling.views import Hint, Id, Marks, PodView, PoolView, ServiceView

_log = logging.getLogger(__name__)

Json = Mapping[str, Any]
COMPONENT_LABEL = "app.kubernetes.io/component"
SERVING = ("router", "engine")
ROLES: Mapping[str, frozenset[PoolRole]] = {
    Topology.DISAGGREGATED: frozenset({PoolRole.PREFILL, PoolRole.DECODE}),
    Topology.AGGREGATED: frozenset({PoolRole.MIXED}),
}


@dataclass(frozen=True, slots=True)
class Service:
    """An LLMService and its status, raw."""

    spec: LLMService
    status: Json


@dataclass(frozen=True, slots=True)
class Pool:
    """An EnginePool; `owner` is the uid of its LLMService."""

    spec: EnginePool
    owner: str
    drain_first: frozenset[str]
    marks: Marks
    version: str


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of `service`."""

    service: Id
    view: PodView


def read_service(obj: Json) -> Service | None:
    if obj["metadata"].get("deletionTimestamp"):
        return None
    try:
        spec = LLMService.model_validate({name: value for name, value in obj.items() if name != "status"})
    except ValidationError as e:  # a CRD of another release admitted it
        _not_understood(obj, e)
        return None
    return Service(spec, obj.get("status") or {})


def read_pool(obj: Json) -> Pool | None:
    metadata = obj["metadata"]
    if metadata.get("deletionTimestamp"):
        return None
    try:
        spec = EnginePool.model_validate(obj)
    except ValidationError as e:
        _not_understood(obj, e)
        return None
    owner = next((r["uid"] for r in metadata.get("ownerReferences") or () if r.get("controller")), "")
    marks = read_marks(metadata.get("annotations") or {})
    return Pool(spec, owner, drained_first(obj), marks, metadata.get("resourceVersion", ""))


def read_pod(obj: Json) -> Pod | None:
    """None for a pod on its way out, and for one that serves no requests."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    labels = metadata.get("labels") or {}
    ended = status.get("phase") in ("Failed", "Succeeded")  # an evicted pod stays, and is nobody's replica
    if ended or metadata.get("deletionTimestamp") or labels.get(COMPONENT_LABEL) not in SERVING:
        return None
    ready = next((c for c in status.get("conditions") or () if c["type"] == "Ready" and c["status"] == "True"), None)
    view = PodView(
        metadata["name"],
        labels.get(POOL_LABEL, ""),
        labels.get(REVISION_LABEL, ""),
        _epoch_s(metadata["creationTimestamp"]),
        _epoch_s(ready["lastTransitionTime"]) if ready else None,
    )
    return Pod((metadata["namespace"], labels.get(SERVICE_LABEL, "")), view)


def view_of(service: Service, pools: Iterable[Pool], pods: Iterable[Pod]) -> ServiceView:
    """Of a service with the pools and pods of its namespace and name. Not those of others, nor those that another
    topology had: the operator keeps these until what follows them is whole, at the size that they have.
    """
    spec, metadata = service.spec.spec, service.spec.metadata
    topology = (service.status.get("plan") or {}).get("topology", "")
    roles = ROLES.get(topology, frozenset(PoolRole))
    own = {pool.spec.spec.pool: pool for pool in pools if pool.owner == metadata.uid and pool.spec.spec.role in roles}
    prompt_hint, output_hint = hints(spec.workload)
    return ServiceView(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        generation=metadata.generation,
        mode=str(spec.autoscaling.mode),
        stabilisation_s=float(spec.autoscaling.scale_down_stabilization_seconds),
        model=spec.model.uri,
        classes=tuple(service.spec.slo_classes().values()),
        pools=tuple(_pool(declared, own[declared.name]) for declared in spec.pools if declared.name in own),
        pods=tuple(pod.view for pod in pods),
        max_gpus=spec.max_gpus,
        prompt_hint=prompt_hint,
        output_hint=output_hint,
        status=service.status,
    )


def hints(workload: WorkloadSpec | None) -> tuple[Hint | None, Hint | None]:
    """Of prompts and of answers, where the file has them."""
    if workload is None:
        return None, None
    prompt, output = workload.prompt_tokens, workload.output_tokens
    return Hint(prompt.mean, prompt.p90), Hint(output.mean, output.p90)


def _pool(declared: PoolSpec, pool: Pool) -> PoolView:
    spec, status, gpu = pool.spec.spec, pool.spec.status, ACCELERATORS.get(declared.accelerator)
    return PoolView(
        name=declared.name,
        role=Role(declared.role.lower()),
        replicas=spec.replicas,
        existing=status.replicas if status else 0,
        ready=status.ready_replicas if status else 0,
        least=declared.least_replicas,
        most=declared.most_replicas,
        gpus=spec.plan.tensor * spec.plan.pipeline if spec.plan else declared.gpus_per_replica,
        tensor=spec.plan.tensor if spec.plan else 1,
        table=gpu.table if gpu else "",
        revision=status.revision if status else "",
        drain_first=pool.drain_first,
        marks=pool.marks,
        version=pool.version,
    )


def _epoch_s(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _not_understood(obj: Json, error: ValidationError) -> None:
    metadata = obj["metadata"]
    _log.error("not understood namespace=%s name=%s error=%s", metadata.get("namespace"), metadata.get("name"), error)
