"""EnginePool: one for each pool of a service, made by the operator and called `<service>-<pool>` (DESIGN §3).

Autoscaler, HPA, KEDA and `kubectl scale` write its size, through the scale subresource and nothing else. The plan and
the resolved image are stored here, so that neither changes unless what it was made from does.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from paceline_api.schema import (
    DNS_LABEL,
    POOL_NAME_MAX,
    SERVICE_NAME_MAX,
    Count,
    Degree,
    DnsLabel,
    Hash,
    Model,
    ObjectMeta,
    PoolName,
    Replicas,
    Role,
    Rule,
    TokenBudget,
    Topology,
)
from paceline_api.status import Conditions


class PoolMeta(ObjectMeta):
    name: Annotated[str, Field(pattern=DNS_LABEL, max_length=SERVICE_NAME_MAX + 1 + POOL_NAME_MAX)] = Field(
        description="<service>-<pool>."
    )


class EnginePoolPlan(Model):
    topology: Topology = Field(description="Topology that this pool belongs to.")
    tensor: Degree = Field(default=1, description="GPUs over which each layer is split.")
    pipeline: Degree = Field(default=1, description="Groups of layers.")
    token_budget: TokenBudget = Field(default="Auto", description="Most tokens of one engine step.")
    inputs_hash: Hash = Field(default="", description="Of what the plan was made from.")


class EnginePoolSpec(Model):
    CEL = (
        Rule(
            "self.service == oldSelf.service && self.pool == oldSelf.pool && self.role == oldSelf.role",
            "service, pool and role of an EnginePool never change; leave them as they are",
        ),
    )
    service: DnsLabel = Field(description="LLMService that it belongs to.")
    pool: PoolName = Field(description="Pool of that service.")
    role: Role = Field(description="Role of the pool.")
    replicas: Replicas = Field(default=1, description="Wanted replicas; written through /scale only.")
    plan: EnginePoolPlan | None = Field(default=None, description="The stored plan.")
    image: Annotated[str, Field(max_length=512)] = Field(default="", description="The resolved image of the engine.")
    image_inputs_hash: Hash = Field(default="", description="Of what the image was resolved from.")


class EnginePoolStatus(Model):
    observed_generation: Count | None = Field(default=None, description="Generation that the operator acted on.")
    replicas: Count = Field(default=0, description="Pods that exist, over all revisions.")
    ready_replicas: Count = Field(default=0, description="Pods that are ready.")
    selector: Annotated[str, Field(max_length=1024)] = Field(default="", description="Label selector of the pods.")
    revision: Hash = Field(default="", description="Revision that new pods have.")
    conditions: Conditions = Field(default=(), description="State of the pool.")


class EnginePool(Model):
    """The engine replicas of one pool; its size is its scale subresource."""

    api_version: Literal["paceline.dev/v1alpha1"] = "paceline.dev/v1alpha1"
    kind: Literal["EnginePool"] = "EnginePool"
    metadata: PoolMeta
    spec: EnginePoolSpec = Field(description="What is wanted.")
    status: EnginePoolStatus | None = Field(default=None, description="What is.")
