"""How the replicas of an LLMService run (DESIGN §3): pools by role, accelerator and parallelism, and their engine.

A pool has either a fixed size (`replicas`) or bounds; a role never changes, because the revision of a pool does not
depend on it. GPUs of a replica = tensor × pipeline.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from paceline_api.schema import (
    ATOMIC,
    DNS_LABEL,
    MAX_POOLS,
    MAX_REPLICAS,
    Degree,
    Manifest,
    Model,
    OnFailure,
    PoolName,
    Replicas,
    Role,
    Rule,
    Runtime,
    TokenBudget,
)


class Parallelism(Model):
    tensor: Degree = Field(default=1, description="GPUs over which each layer is split.")
    pipeline: Degree = Field(default=1, description="Groups of layers on GPUs of their own.")

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline


class PoolSpec(Model):
    CEL = (
        Rule(
            "!(has(self.replicas) && (has(self.minReplicas) || has(self.maxReplicas)))",
            "replicas is a fixed size, minReplicas and maxReplicas are bounds; keep one or the other",
            ".replicas",
            "FieldValueForbidden",
        ),
        Rule(
            "has(self.replicas) || has(self.maxReplicas)",
            "the pool has no size; add maxReplicas (and minReplicas, default 1), or replicas for a fixed size",
            ".maxReplicas",
            "FieldValueRequired",
        ),
        Rule(
            "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            "minReplicas is above maxReplicas; lower minReplicas or raise maxReplicas",
            ".minReplicas",
        ),
        Rule(
            "self.name != 'router'",
            "objects called <service>-router are the router's; give the pool another name",
            ".name",
        ),
        Rule(
            "self.role == oldSelf.role",
            "a pool keeps its role; add a pool of another name with the new role and remove this one",
            ".role",
        ),
    )
    name: PoolName = Field(description="The EnginePool is called <service>-<pool>.")
    role: Role = Field(description="What its replicas compute: prefills, decodes, or both in mixed steps.")
    replicas: Replicas | None = Field(default=None, description="Fixed size, instead of minReplicas and maxReplicas.")
    min_replicas: Replicas | None = Field(default=None, description="Smallest size; absent: 1. 0: may be empty.")
    max_replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] | None = Field(default=None, description="Largest size.")
    accelerator: Annotated[str, Field(pattern=DNS_LABEL, min_length=1, max_length=63)] = Field(
        description="An entry of the chart value `accelerators`, such as a100-sxm-80gb or h100-sxm."
    )
    parallelism: Parallelism | None = Field(
        default=None, description="How a replica is spread over tensor × pipeline GPUs; absent: the plan chooses."
    )
    pod_template: Manifest | None = Field(
        default=None, description="Merged strategically into the pods; the engine's container is called `engine`."
    )

    @property
    def least_replicas(self) -> int:
        if self.replicas is not None:
            return self.replicas
        return 1 if self.min_replicas is None else self.min_replicas

    @property
    def most_replicas(self) -> int:
        return self.replicas if self.replicas is not None else max(self.max_replicas or 0, self.least_replicas)

    @property
    def gpus_per_replica(self) -> int:
        """tensor × pipeline; 1, the least there can be, where the plan chooses."""
        return self.parallelism.gpus if self.parallelism else 1


class KVTransferSpec(Model):
    connector: Literal["Nixl"] = Field(default="Nixl", description="How KV blocks go from prefill to decode engines.")
    timeout_ms: Annotated[int, Field(ge=100, le=600_000)] = Field(
        default=5000, description="Bound of one KV transfer, in milliseconds."
    )
    on_failure: OnFailure = Field(
        default=OnFailure.RECOMPUTE, description="After a second failure: prefill on the decode replica, or fail."
    )


class EngineSpec(Model):
    CEL = (
        Rule(
            "!has(self.extraArgs) || self.extraArgs.all(a, !a.matches("
            "'^(--(host|port|model|revision|api-key|served[-_]model[-_]name|"
            "max[-_]model[-_]len|tensor[-_]parallel[-_]size|pipeline[-_]parallel[-_]size|"
            "max[-_]num[-_]batched[-_]tokens|kv[-_]transfer[-_]config|scheduler[-_]cls)|-tp|-pp)(=|$)'))",
            "extraArgs holds a flag that Paceline sets itself; remove it, and say it in model, slo, pools or engine",
            ".extraArgs",
            "FieldValueForbidden",
        ),
    )
    runtime: Runtime = Field(default=Runtime.VLLM, description="VLLM, or Simulated: the same API without a GPU.")
    image: Annotated[str, Field(pattern=r"^\S*$", max_length=512)] = Field(
        default="", description="Container image of the engine; empty: the one of this release."
    )
    extra_args: tuple[Annotated[str, Field(min_length=1, max_length=512)], ...] = Field(
        default=(), max_length=64, description="Further arguments of `vllm serve`.", json_schema_extra=ATOMIC
    )
    token_budget: TokenBudget = Field(
        default="Auto",
        description="Most tokens that one engine step may compute; Auto: the plan chooses.",
    )
    startup_timeout_seconds: Annotated[int, Field(ge=10, le=86_400)] = Field(
        default=1800, description="Bound of the start of an engine, downloads included."
    )
    drain_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = Field(
        default=300, description="Longest wait for running requests before an engine stops."
    )
    kv_transfer: KVTransferSpec = Field(default=KVTransferSpec(), description="Hand-over from prefill to decode.")


def _least_gpus_of(pool: str) -> str:
    """CEL: GPUs that the smallest size of `pool` takes (1 a replica where the plan chooses)."""
    least = f"(has({pool}.replicas) ? {pool}.replicas : has({pool}.minReplicas) ? {pool}.minReplicas : 1)"
    return f"{least} * (has({pool}.parallelism) ? {pool}.parallelism.tensor * {pool}.parallelism.pipeline : 1)"


# Core CEL has no sum: one term for each pool that there can be.
LEAST_GPUS = " + ".join(
    f"(size(self.pools) > {i} ? {_least_gpus_of(f'self.pools[{i}]')} : 0)" for i in range(MAX_POOLS)
)
