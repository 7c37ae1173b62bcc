"""Condition types and reasons of LLMService and EnginePool status (DESIGN §3, "Status, two writers").

The operator writes Ready, PlanFeasible, PoolsReady and RouterReady; the autoscaler MetricsAvailable, SLOMet and
ScalingActive. Ready = PlanFeasible ∧ PoolsReady ∧ RouterReady; what the autoscaler writes is no part of it. Standard
library only.
"""

from __future__ import annotations

from enum import StrEnum


class ConditionType(StrEnum):
    READY = "Ready"
    PLAN_FEASIBLE = "PlanFeasible"
    POOLS_READY = "PoolsReady"  # each pool has at least max(1, minReplicas) ready, or is at 0 on purpose
    ROUTER_READY = "RouterReady"
    METRICS_AVAILABLE = "MetricsAvailable"
    SLO_MET = "SLOMet"  # Unknown without traffic
    SCALING_ACTIVE = "ScalingActive"  # whether sizes follow the load now


class Reason(StrEnum):
    """The `reason` of a condition: one CamelCase word for each cause that a person acts on differently."""

    # Ready
    SERVING = "Serving"
    NOT_SERVING = "NotServing"  # the message names the condition that is missing
    # PlanFeasible
    PLANNED = "Planned"
    UNKNOWN_ACCELERATOR = "UnknownAccelerator"
    UNKNOWN_MODEL = "UnknownModel"  # no step-time table for the model on the accelerator
    PARALLELISM_TOO_LARGE = "ParallelismTooLarge"  # tensor × pipeline above gpusPerNode
    MODEL_DOES_NOT_FIT = "ModelDoesNotFit"
    GPU_LIMIT = "GPULimit"  # maxGPUs or the pools' bounds allow no plan that attains the target
    OBJECTIVE_UNATTAINABLE = "ObjectiveUnattainable"  # an unloaded fleet already misses it
    # PoolsReady, RouterReady
    REPLICAS_READY = "ReplicasReady"
    REPLICAS_STARTING = "ReplicasStarting"
    REPLICAS_FAILING = "ReplicasFailing"
    SCALED_TO_ZERO = "ScaledToZero"
    ROLLING_OUT = "RollingOut"
    APPLY_FAILED = "ApplyFailed"  # the API server refuses an object; what is there goes on serving
    # MetricsAvailable
    METRICS_FRESH = "MetricsFresh"
    METRICS_MISSING = "MetricsMissing"
    METRICS_STALE = "MetricsStale"
    METRICS_INVALID = "MetricsInvalid"  # they make no sense, or contradict each other
    METRICS_UNREACHABLE = "MetricsUnreachable"  # Prometheus is away, refuses, or none is configured
    # SLOMet
    OBJECTIVES_MET = "ObjectivesMet"
    OBJECTIVES_MISSED = "ObjectivesMissed"
    NO_TRAFFIC = "NoTraffic"  # and ObjectiveUnattainable
    # ScalingActive
    SCALING = "Scaling"
    WINDOW_INCOMPLETE = "WindowIncomplete"  # it grows, and shrinks once a whole window has been seen
    MANUAL_HOLD = "ManualHold"  # a person set a size, and that is respected for a while
    SCALING_DISABLED = "ScalingDisabled"
    RECOMMEND_ONLY = "RecommendOnly"
    # of the Event on a service that needs a name which somebody else's object has
    NAME_TAKEN = "NameTaken"


READY_PARTS = (ConditionType.PLAN_FEASIBLE, ConditionType.POOLS_READY, ConditionType.ROUTER_READY)
OPERATOR_CONDITIONS = (ConditionType.READY, *READY_PARTS)
AUTOSCALER_CONDITIONS = (ConditionType.METRICS_AVAILABLE, ConditionType.SLO_MET, ConditionType.SCALING_ACTIVE)
