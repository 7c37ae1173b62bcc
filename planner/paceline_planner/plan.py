"""How an LLMService is run: LLMService → Plan, or Infeasible with every obstacle and what exists instead.

Used by `paceline up` and the operator. A plan that is returned fits: known accelerators, GPUs within a node and within
maxGPUs, weights and one whole context within memory, limits that a lone request can meet, and for simulated engines a
step-time table, a roofline's where none was measured. `topology: Auto` follows a fixed rule: Disaggregated where a
Prefill and a Decode pool can run, else Aggregated; `reason` says so. Where a pool leaves parallelism open, the fewest
GPUs that pass are taken, of those that pass by a roofline's estimate too if there are any. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from paceline_api.catalog import ACCELERATORS, Accelerator
from paceline_api.conditions import Reason
from paceline_api.v1alpha1 import LLMService, Parallelism, PoolSpec, Role, Runtime, Topology

from paceline_planner.feasible import Obstacle, check_context, check_limits, check_pool, no_table, warn_pool
from paceline_planner.step_tables import CATALOGUE, TENSORS, Tables

ROLES: Mapping[Topology, tuple[Role, ...]] = {  # in the order in which Auto tries them
    Topology.DISAGGREGATED: (Role.PREFILL, Role.DECODE),
    Topology.AGGREGATED: (Role.MIXED,),
}
RULE = "fixed rule, no search: Disaggregated where pools of role Prefill and Decode can run, else Aggregated"


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """One pool in use. `table` is empty where no step-time table is known (vLLM only)."""

    name: str
    role: Role
    replicas: int
    tensor: int
    pipeline: int
    accelerator: str
    table: str

    @property
    def gpus_per_replica(self) -> int:
        return self.tensor * self.pipeline

    @property
    def gpus(self) -> int:
        return self.replicas * self.gpus_per_replica


@dataclass(frozen=True, slots=True)
class Rejected:
    """A topology that was considered and not taken."""

    topology: Topology
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `token_budget` is tokens, or 0: each engine chooses its own, step by step."""

    topology: Topology
    token_budget: int
    pools: tuple[PoolPlan, ...]
    reason: str
    rejected: tuple[Rejected, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def gpus(self) -> int:
        return sum(pool.gpus for pool in self.pools)

    @property
    def roles_without_replicas(self) -> tuple[Role, ...]:
        """Roles that the topology needs and whose pools are all fixed at 0: nothing can be served."""
        return tuple(r for r in ROLES[self.topology] if not any(p.replicas for p in self.pools if p.role is r))


@dataclass(frozen=True, slots=True)
class Infeasible:
    obstacles: tuple[Obstacle, ...]

    @property
    def reason(self) -> str:
        return "; ".join(o.message for o in self.obstacles)


def plan(
    service: LLMService, accelerators: Mapping[str, Accelerator] = ACCELERATORS, tables: Tables = CATALOGUE
) -> Plan | Infeasible:
    """The plan of a validated service on these accelerators, by these step-time tables."""
    wanted = service.spec.topology
    rejected: list[Rejected] = []
    obstacles: list[Obstacle] = []
    chosen: Plan | None = None
    for topology in ROLES if wanted is Topology.AUTO else (wanted,):
        missing = [role for role in ROLES[topology] if not any(p.role is role for p in service.spec.pools)]
        if missing:
            rejected.append(Rejected(topology, f"no pool of role {' or '.join(missing)}"))
        elif chosen:
            rejected.append(Rejected(topology, f"not compared: {chosen.topology} can run"))
        else:
            found = _plan_topology(service, topology, accelerators, tables)
            if isinstance(found, Plan):
                chosen = found
            else:
                rejected.append(Rejected(topology, found.reason))
                obstacles += (o for o in found.obstacles if o not in obstacles)
    if chosen:
        reason = RULE if wanted is Topology.AUTO else "as the service says"
        return replace(chosen, reason=reason, rejected=tuple(rejected))
    if not obstacles:
        text = "; ".join(f"{r.topology}: {r.reason}" for r in rejected)
        obstacles.append(Obstacle("spec.pools", Reason.GPU_LIMIT, f"no topology has its pools ({text}); add them"))
    return Infeasible(tuple(obstacles))


def _plan_topology(
    service: LLMService, topology: Topology, accelerators: Mapping[str, Accelerator], tables: Tables
) -> Plan | Infeasible:
    obstacles = list(check_context(service, tables))
    pools: list[PoolPlan] = []
    warnings: list[str] = []
    for i, pool in enumerate(service.spec.pools):
        if pool.role not in ROLES[topology]:
            warnings.append(f"pool {pool.name} is not used: {topology} has no role {pool.role}")
            continue
        found = _plan_pool(service, pool, f"spec.pools[{i}]", accelerators, tables)
        if isinstance(found, PoolPlan):
            pools.append(found)
            known = tables.find(accelerators[pool.accelerator], service.spec.model.uri, found.tensor)
            warnings += warn_pool(service, pool, found.tensor, known)
        else:
            obstacles += (o for o in found.obstacles if o not in obstacles)
    obstacles = obstacles or list(_check_gpus(service, topology, pools))
    if obstacles:
        return Infeasible(tuple(obstacles))
    budget = service.spec.engine.token_budget
    return Plan(topology, budget if isinstance(budget, int) else 0, tuple(pools), "", (), tuple(warnings))


def _check_gpus(service: LLMService, topology: Topology, pools: list[PoolPlan]) -> Iterator[Obstacle]:
    most, gpus = service.spec.max_gpus, sum(pool.gpus for pool in pools)
    if most is not None and gpus > most:
        parts = " + ".join(f"{p.name} {p.replicas} × {p.gpus_per_replica}" for p in pools)
        message = f"{topology} starts with {gpus} GPUs ({parts}) and maxGPUs is {most}; raise it or shrink pools"
        yield Obstacle("spec.maxGPUs", Reason.GPU_LIMIT, message)


def _plan_pool(
    service: LLMService, pool: PoolSpec, path: str, accelerators: Mapping[str, Accelerator], tables: Tables
) -> PoolPlan | Infeasible:
    """The pool with its own parallelism, or with the fewest GPUs that pass; else the last one's obstacles."""
    accelerator = accelerators.get(pool.accelerator)
    if accelerator is None:
        message = f"no accelerator {pool.accelerator!r}; there are: {', '.join(sorted(accelerators))}"
        return Infeasible((Obstacle(f"{path}.accelerator", Reason.UNKNOWN_ACCELERATOR, message),))
    uri = service.spec.model.uri
    tensors = tables.tensors(accelerator, uri)
    if service.spec.engine.runtime is Runtime.SIMULATED and not tensors:
        return Infeasible((no_table(service, accelerator, tables.model(uri), path),))
    if pool.parallelism:
        choices = [pool.parallelism]
    else:
        choices = [Parallelism(tensor=t) for t in tensors or TENSORS if t <= accelerator.gpus_per_node]
    obstacles: tuple[Obstacle, ...] = ()
    passing: list[tuple[bool, PoolPlan]] = []  # with whether its table doubts a limit
    for parallelism in choices:
        obstacles = tuple(check_pool(service, pool, path, accelerator, parallelism, tables))
        if not obstacles:
            table = tables.find(accelerator, uri, parallelism.tensor)
            doubted = table is not None and parallelism.pipeline == 1 and any(check_limits(service, pool, table))
            passing.append((doubted, _pool_plan(pool, parallelism, table.name if table else "")))
    return min(passing, key=lambda p: p[0])[1] if passing else Infeasible(obstacles)


def _pool_plan(pool: PoolSpec, parallelism: Parallelism, table: str) -> PoolPlan:
    """A pool that may be empty still starts with one replica: nothing would wake it up."""
    replicas = pool.replicas if pool.replicas is not None else max(1, pool.least_replicas)
    tensor, pipeline = parallelism.tensor, parallelism.pipeline
    return PoolPlan(pool.name, pool.role, replicas, tensor, pipeline, pool.accelerator, table)
