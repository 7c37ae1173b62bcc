"""What the operator and the autoscaler report of an LLMService (DESIGN §3, "Status, two writers").

Two field managers apply it server-side, each its whole part: lists are maps by key, so that neither removes the other's
conditions. Everything is bounded: ten decisions of at most 1 KiB each.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from paceline_api.schema import (
    ATOMIC,
    MAX_CLASSES,
    MAX_POOLS,
    Count,
    Degree,
    DnsLabel,
    Hash,
    MeasuredPercent,
    Milliseconds,
    Model,
    PoolName,
    Rate,
    Replicas,
    Role,
    Text,
    Timestamp,
    TokenBudget,
    Topology,
    list_map,
)


class Condition(Model):
    """metav1.Condition."""

    type: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]*$", max_length=316)] = Field(description="Which one.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: Count | None = Field(default=None, description="Generation that it was judged on.")
    last_transition_time: Timestamp = Field(description="When status changed last.")
    reason: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=1024)] = Field(
        description="The cause in one CamelCase word."
    )
    message: Annotated[str, Field(max_length=32_768)] = Field(description="The cause in a sentence.")


Conditions = Annotated[tuple[Condition, ...], Field(max_length=16, json_schema_extra=list_map("type"))]


class PlannedPool(Model):
    name: PoolName = Field(description="Which pool.")
    replicas: Replicas = Field(description="First size.")
    tensor: Degree = Field(default=1, description="GPUs over which each layer is split.")
    pipeline: Degree = Field(default=1, description="Groups of layers.")


class Prediction(Model):
    attainment_percent: MeasuredPercent | None = Field(default=None, description="Share that meets its objective.")
    requests_per_second_per_gpu: Rate | None = Field(
        default=None, alias="requestsPerSecondPerGPU", description="Capacity for each GPU."
    )


class RejectedTopology(Model):
    topology: Topology = Field(description="Not chosen.")
    reason: Text = Field(description="Why not.")


class PlanStatus(Model):
    topology: Topology = Field(description="Chosen.")
    token_budget: TokenBudget = Field(default="Auto", description="Most tokens of one engine step.")
    pools: tuple[PlannedPool, ...] = Field(
        default=(), max_length=MAX_POOLS, description="Pools in use.", json_schema_extra=list_map("name")
    )
    predicted: Prediction = Field(default=Prediction(), description="What the plan expects.")
    reason: Text = Field(default="", description="Why this plan.")
    rejected: tuple[RejectedTopology, ...] = Field(
        default=(), max_length=4, description="The other topologies.", json_schema_extra=list_map("topology")
    )


class PoolStatus(Model):
    name: PoolName = Field(description="Which pool.")
    role: Role = Field(description="Its role.")
    desired: Replicas = Field(description="Replicas wanted.")
    ready: Count = Field(description="Replicas ready.")
    revision: Hash = Field(default="", description="Revision that new replicas have.")


class ClassStatus(Model):
    name: DnsLabel = Field(description="Which class.")
    attainment_percent: MeasuredPercent | None = Field(default=None, description="Share of good requests.")
    goodput_per_second: Rate | None = Field(default=None, description="Good requests per second.")
    ttft_p90_ms: Milliseconds | None = Field(default=None, description="90th percentile of TTFT, in milliseconds.")
    tpot_p90_ms: Milliseconds | None = Field(default=None, description="90th percentile of TPOT, in milliseconds.")


class Decision(Model):
    time: Timestamp = Field(description="When.")
    pool: PoolName = Field(description="Which pool.")
    from_: Replicas = Field(alias="from", description="Size before.")
    to: Replicas = Field(description="Size after.")
    binding: Annotated[str, Field(pattern=r"^[-a-z0-9]*(/[a-z]+)?$", max_length=64)] = Field(
        default="", description="Objective that decided: CLASS/ttft, CLASS/tpot or CLASS/kv."
    )
    why: Text = Field(default="", description="In a sentence.")


class LLMServiceStatus(Model):
    observed_generation: Count | None = Field(default=None, description="Generation that the operator acted on.")
    url: Annotated[str, Field(max_length=512)] | None = Field(default=None, description="Base URL inside the cluster.")
    plan: PlanStatus | None = Field(default=None, description="How the service runs.")
    pools: tuple[PoolStatus, ...] = Field(
        default=(), max_length=MAX_POOLS, description="State of the pools.", json_schema_extra=list_map("name")
    )
    classes: tuple[ClassStatus, ...] = Field(
        default=(), max_length=MAX_CLASSES, description="Measured at the router.", json_schema_extra=list_map("name")
    )
    decisions: tuple[Decision, ...] = Field(
        default=(), max_length=10, description="The autoscaler's last decisions.", json_schema_extra=ATOMIC
    )
    conditions: Conditions = Field(default=(), description="Ready, PlanFeasible, PoolsReady, RouterReady, …")
