"""EnginePools: the plan and the image that a pool keeps; its size is written through /scale and never here."""

from __future__ import annotations

from dataclasses import dataclass

from paceline_api.v1alpha1 import Topology
from paceline_planner.plan import PoolPlan
from paceline_router.endpoints import REVISION_LABEL

from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import Owner, Shard


@dataclass(frozen=True, slots=True)
class Kept:
    """What is decided once and kept while what it was made from stays (DESIGN §3)."""

    topology: Topology
    token_budget: int | str
    plan_inputs: str
    image: str
    image_inputs: str


def pool_name(owner: Owner, pool: str) -> str:
    return f"{owner.name}-{pool}"


def engine_pool(owner: Owner, shard: Shard, pool: PoolPlan, kept: Kept) -> Json:
    plan = {
        "topology": str(kept.topology),
        "tensor": pool.tensor,
        "pipeline": pool.pipeline,
        "tokenBudget": kept.token_budget,
        "inputsHash": kept.plan_inputs,
    }
    spec = {
        "service": owner.name,
        "pool": pool.name,
        "role": str(pool.role),
        "plan": plan,
        "image": kept.image,
        "imageInputsHash": kept.image_inputs,
    }
    labels = {name: value for name, value in shard.labels.items() if name != REVISION_LABEL}
    return owner.manifest("EnginePool", pool_name(owner, pool.name), labels, spec=spec)
