"""What a plan, an image and a revision are made from, as hashes (DESIGN §3, "Children").

A revision is the hash of model, engine, parallelism, accelerator entry, podTemplate and image: never of rendered
manifests, classes, replicas or bounds. Prefill and decode pools share one, because KV goes between them; a mixed pool
has its own. Only fields that a person set count, so that a new default of a later release changes no hash. Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline_api.catalog import Accelerator
from paceline_api.config import LIVE_FIELDS, KubernetesDiscovery
from paceline_api.v1alpha1 import LLMService, PoolSpec, Role
from paceline_planner.launching import router_config
from paceline_planner.plan import Plan, PoolPlan
from pydantic import BaseModel

REPLAN = "paceline.dev/replan"  # annotation: another value plans again and takes this release's images
DIGITS = 10
SIZES = {"replicas", "minReplicas", "maxReplicas"}


def digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def plan_inputs(service: LLMService) -> str:
    """Of all that a plan is made from; objectives, sizes and bounds are left out."""
    spec = _set(service.spec)
    for name in ("slo", "maxGPUs", "router", "autoscaling"):
        spec.pop(name, None)
    spec["pools"] = [{k: v for k, v in pool.items() if k not in SIZES} for pool in spec["pools"]]
    return digest([spec, _replan(service)])


def image_inputs(service: LLMService) -> str:
    return digest([_set(service.spec.model), _set(service.spec.engine), _replan(service)])


def router_inputs(service: LLMService) -> str:
    """Of a router's pod and of what it reads at its start alone: objectives, keys, certificates come later too."""
    config = router_config(service, KubernetesDiscovery(namespace="any", service=service.name))
    read_once = config.model_dump(mode="json", exclude={*LIVE_FIELDS, "discovery"}, exclude_defaults=True)
    router = service.spec.router
    mounted = [spec.secret_name if spec else "" for spec in (router.api_keys, router.tls)]
    return digest([read_once, _replan(service), *(mounted if any(mounted) else ())])


@dataclass(frozen=True, slots=True)
class Group:
    """Pools that change revision together."""

    pools: tuple[PoolPlan, ...]
    revision: str


def groups(service: LLMService, plan: Plan, image: str, accelerators: Mapping[str, Accelerator]) -> tuple[Group, ...]:
    """Each mixed pool alone, the prefill and decode pools in one."""
    paired = tuple(p for p in plan.pools if p.role is not Role.MIXED)
    alone = [(p,) for p in plan.pools if p.role is Role.MIXED]
    return tuple(
        Group(pools, _revision(service, plan, pools, image, accelerators))
        for pools in ([paired] if paired else []) + alone
    )


def _revision(
    service: LLMService,
    plan: Plan,
    pools: Sequence[PoolPlan],
    image: str,
    accelerators: Mapping[str, Accelerator],
) -> str:
    specs = {spec.name: spec for spec in service.spec.pools}
    parts = [_pool(pool, specs[pool.name], accelerators[pool.accelerator]) for pool in pools]
    return digest([_set(service.spec.model), _set(service.spec.engine), plan.token_budget, image, parts])


def _pool(pool: PoolPlan, spec: PoolSpec, gpu: Accelerator) -> list[Any]:
    entry = [gpu.table, gpu.memory_gib, gpu.gpus_per_node, gpu.resource_name, dict(gpu.node_selector)]
    entry.append([dict(toleration) for toleration in gpu.tolerations])
    return [pool.name, str(pool.role), pool.tensor, pool.pipeline, pool.accelerator, entry, spec.pod_template]


def _set(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _replan(service: LLMService) -> str:
    return service.metadata.annotations.get(REPLAN, "")
