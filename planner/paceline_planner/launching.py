"""What a planned service hands to its processes: the launch of a pool's engines and the routers' configuration.

`paceline up` and the operator start from these and add only where things are (ports, hosts, replicas), so that both
run the same fleet, but for keys and certificates: only pods have Secrets. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Literal, cast

from paceline_api.config import (
    ClassConfig,
    KubernetesDiscovery,
    KVTransferConfig,
    LimitsConfig,
    PolicyName,
    RoleName,
    RouterConfig,
    StaticDiscovery,
    TracingConfig,
)
from paceline_api.v1alpha1 import LLMService, OnFailure, Role, RouterPolicy, RouterSpec, Switch, Topology
from paceline_engine.launch import LaunchSpec

from paceline_planner.plan import Plan, PoolPlan

ROLE_NAMES: Mapping[Role, RoleName] = {Role.PREFILL: "prefill", Role.DECODE: "decode", Role.MIXED: "mixed"}
DRAIN_NOTICE_S = 10  # in which endpoints and routers notice that a replica is going
ON_FAILURE: Mapping[OnFailure, Literal["recompute", "fail"]] = {
    OnFailure.RECOMPUTE: "recompute",
    OnFailure.FAIL: "fail",
}


def policy_name(policy: RouterPolicy) -> PolicyName:
    """As routers call it."""
    return cast(PolicyName, policy.name.lower().replace("_", "-"))


def policy_called(name: PolicyName) -> RouterPolicy:
    """As the API calls it."""
    return RouterPolicy[name.upper().replace("-", "_")]


def launch_spec(service: LLMService, plan: Plan, pool: PoolPlan) -> LaunchSpec:
    """The launch of one engine of the pool, on the defaults of port, host and side channel."""
    model, engine = service.spec.model, service.spec.engine
    default = service.slo_classes()[service.default_class_name]
    return LaunchSpec(
        runtime=engine.runtime.value,
        service=service.name,
        namespace=service.metadata.namespace,
        pool=pool.name,
        role=ROLE_NAMES[pool.role],
        model_uri=model.uri,
        model_revision=model.revision,
        served_name=service.served_name,
        max_context_tokens=model.max_context_tokens,
        default_class=default.name,
        default_ttft_s=default.ttft_s,
        default_tpot_s=default.tpot_s,
        default_max_stall_s=default.max_stall_s,
        tensor=pool.tensor,
        pipeline=pool.pipeline,
        table=pool.table,
        token_budget=plan.token_budget,
        disaggregated=plan.topology is Topology.DISAGGREGATED,
        kv_timeout_ms=engine.kv_transfer.timeout_ms,
        kv_on_failure=ON_FAILURE[engine.kv_transfer.on_failure],
        kv_lease_s=KVTransferConfig().lease_s,
        drain_timeout_s=engine.drain_timeout_seconds,
        extra_args=engine.extra_args,
    )


def router_config(service: LLMService, discovery: StaticDiscovery | KubernetesDiscovery) -> RouterConfig:
    engine, router = service.spec.engine, service.spec.router
    transfer = engine.kv_transfer
    return RouterConfig(
        service=service.name,
        namespace=service.metadata.namespace,
        model=service.served_name,
        max_context_tokens=service.spec.model.max_context_tokens,
        default_class=service.default_class_name,
        classes=tuple(ClassConfig.of(spec.to_slo(), spec.priority) for spec in service.spec.slo.classes),
        policy=policy_name(router.policy),
        local_prefill=router.local_prefill is Switch.ENABLED,
        waiting_room=router.waiting_room is Switch.ENABLED,
        discovery=discovery,
        kv_transfer=KVTransferConfig(timeout_s=transfer.timeout_ms / 1e3, on_failure=ON_FAILURE[transfer.on_failure]),
        limits=LimitsConfig(drain_timeout_s=engine.drain_timeout_seconds),
        tracing=_tracing(router),
    )


def _tracing(router: RouterSpec) -> TracingConfig | None:
    if router.tracing is None:
        return None
    sampled = Decimal(router.tracing.sample_percent) / 100
    return TracingConfig(endpoint=router.tracing.endpoint, sample_ratio=float(sampled))
