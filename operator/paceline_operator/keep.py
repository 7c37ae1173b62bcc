"""What was decided once and stands in the EnginePools: the plan and the image that a service keeps (DESIGN §3).

Both hold as long as the hash of what they were made from does; an edited objective, size or bound changes neither, and
a new release of Paceline moves no pod. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paceline_api.catalog import Accelerator
from paceline_api.v1alpha1 import EnginePool, LLMService, Runtime
from paceline_planner.plan import ROLES, Infeasible, Plan, PoolPlan
from paceline_planner.step_tables import CATALOGUE

from paceline_operator.revision import image_inputs, plan_inputs
from paceline_operator.settings import Settings


def keep_plan(
    service: LLMService,
    verdict: Plan | Infeasible,
    pools: Sequence[EnginePool],
    accelerators: Mapping[str, Accelerator],
) -> Plan | None:
    """The plan to run: the stored one while it holds, else the verdict's; None when there is neither."""
    fresh = verdict if isinstance(verdict, Plan) else None
    inputs = plan_inputs(service)
    stored = {p.spec.pool: p.spec.plan for p in pools if p.spec.plan and p.spec.plan.inputs_hash == inputs}
    first = next(iter(stored.values()), None)
    if first is None:
        return fresh
    kept: list[PoolPlan] = []
    for spec in service.spec.pools:
        if spec.role not in ROLES[first.topology]:
            continue
        own, gpu = stored.get(spec.name), accelerators.get(spec.accelerator)
        if own is None or own.topology is not first.topology or gpu is None:
            return fresh
        known = CATALOGUE.find(gpu, service.spec.model.uri, own.tensor)
        table = known.name if known else ""
        least = spec.replicas if spec.replicas is not None else max(1, spec.least_replicas)
        kept.append(PoolPlan(spec.name, spec.role, least, own.tensor, own.pipeline, spec.accelerator, table))
    budget = first.token_budget if isinstance(first.token_budget, int) else 0
    same = fresh is not None and fresh.topology is first.topology
    reason = fresh.reason if fresh and same else "kept as planned before"
    return Plan(first.topology, budget, tuple(kept), reason, fresh.rejected if fresh and same else ())


def keep_image(service: LLMService, pools: Sequence[EnginePool], settings: Settings) -> str:
    """The engine's image: the stored one while model and engine stay, else the service's own or this release's."""
    inputs = image_inputs(service)
    stored = next((p.spec.image for p in pools if p.spec.image and p.spec.image_inputs_hash == inputs), "")
    engine = service.spec.engine
    default = settings.control_image if engine.runtime is Runtime.SIMULATED else settings.engine_image
    return stored or engine.image or default
