"""What should be there for a service: all its objects, and how large each pool is. The whole policy of the operator.

service + what there is + settings → Desired. What was decided once is kept: the plan and the image in EnginePools, pod
templates in ControllerRevisions; they are made anew only when what they were made from has changed. Without a feasible
plan to run nothing is wanted, and nothing that runs is touched. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from paceline_api.v1alpha1 import EnginePool, LLMService, PoolSpec
from paceline_planner.launching import ROLE_NAMES
from paceline_planner.plan import Infeasible, Plan, PoolPlan, plan

from paceline_operator.deletion_cost import Cost, find_costs
from paceline_operator.keep import keep_image, keep_plan
from paceline_operator.kinds import KINDS, Json, Key, key_of
from paceline_operator.manifests.config_map import router_config_map
from paceline_operator.manifests.controller_revision import (
    router_revision,
    router_revision_name,
    shard_revision,
    stored_template,
)
from paceline_operator.manifests.deployment import router_deployment, shard_deployment
from paceline_operator.manifests.engine_pod import EnginePod, engine_template
from paceline_operator.manifests.engine_pool import Kept, engine_pool, pool_name
from paceline_operator.manifests.meta import Owner, Shard
from paceline_operator.manifests.network_policy import engine_policy
from paceline_operator.manifests.pod_disruption_budget import pool_budget, router_budget
from paceline_operator.manifests.rbac import router_account, router_binding
from paceline_operator.manifests.router_pod import RouterPod, router_template
from paceline_operator.manifests.service import router_service, shard_service
from paceline_operator.observe import Observed, may_serve
from paceline_operator.revision import Group, groups, image_inputs, plan_inputs, router_inputs
from paceline_operator.rollout import Target, is_whole, next_sizes
from paceline_operator.settings import Settings


@dataclass(frozen=True, slots=True)
class Desired:
    """`plan` is what runs, maybe an older one than `verdict`; None: nothing can. `sizes`, `revisions`: by pool. `costs`
    are written before the rest, so that a pool that shrinks loses the pods that it should."""

    verdict: Plan | Infeasible
    plan: Plan | None = None
    manifests: tuple[Json, ...] = ()
    unwanted: tuple[Key, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    revisions: Mapping[str, str] = field(default_factory=dict)
    rolling: bool = False
    costs: tuple[Cost, ...] = ()


@dataclass(frozen=True, slots=True)
class _Case:
    """One service, and what was decided of it before anything is built."""

    owner: Owner
    service: LLMService
    seen: Observed
    settings: Settings
    plan: Plan
    image: str
    sizes: Mapping[str, int]
    groups: tuple[Group, ...]

    def spec_of(self, pool: PoolPlan) -> PoolSpec:
        return next(spec for spec in self.service.spec.pools if spec.name == pool.name)

    def template(self, revision_name: str, deployment_name: str) -> Json | None:
        """The one stored of a revision; where it was lost, the one that runs."""
        if stored := self.seen.get("ControllerRevision", revision_name):
            return stored_template(stored)
        live = self.seen.get("Deployment", deployment_name)
        return live["spec"]["template"] if live else None


def desire(owner: Owner, service: LLMService, seen: Observed, settings: Settings) -> Desired:
    verdict = plan(service, settings.accelerators)
    pools = [EnginePool.model_validate(_without_status(live)) for live in seen.of("EnginePool")]
    runs = keep_plan(service, verdict, pools, settings.accelerators)
    if runs is None:
        return Desired(verdict)
    image = keep_image(service, pools, settings)
    specs = {spec.name: spec for spec in service.spec.pools}
    sizes = {p.name: size_of(specs[p.name], p, seen.get("EnginePool", pool_name(owner, p.name))) for p in runs.pools}
    changing = groups(service, runs, image, settings.accelerators)
    case = _Case(owner, service, seen, settings, runs, image, sizes, changing)
    shards = _shards(case)
    manifests = [*_router(case), *_pools(case)]
    for shard, replicas in shards.items():
        manifests += _engines(case, shard, replicas)
    order = list(KINDS)
    manifests.sort(key=lambda m: (order.index(m["kind"]), m["metadata"]["name"]))
    wanted = {key_of(m) for m in manifests} | _retained(case, shards)
    unwanted = sorted(seen.objects.keys() - wanted, key=lambda key: (-order.index(key[0]), key[1]))
    revisions = {pool.name: group.revision for group in changing for pool in group.pools}
    rolling = any(shard.revision != revisions.get(shard.pool) for shard in shards)
    return Desired(verdict, runs, tuple(manifests), tuple(unwanted), sizes, revisions, rolling, find_costs(seen))


def size_of(spec: PoolSpec, pool: PoolPlan, live: Json | None) -> int:
    """What /scale says, within the pool's bounds; the plan's size for a new pool."""
    if spec.replicas is not None:
        return spec.replicas
    asked = pool.replicas if live is None else int(live["spec"].get("replicas", 1))
    return min(max(asked, spec.least_replicas), spec.most_replicas)


def _without_status(live: Json) -> Json:
    return {name: value for name, value in live.items() if name != "status"}


def _router(case: _Case) -> Iterator[Json]:
    owner, spec = case.owner, case.service.spec
    yield router_account(owner)
    yield router_binding(owner, case.settings.router_cluster_role)
    yield router_config_map(owner, case.service)
    yield router_service(owner, tls=spec.router.tls is not None)
    yield engine_policy(owner)
    yield router_budget(owner)
    inputs = router_inputs(case.service)
    stored = case.seen.get("ControllerRevision", router_revision_name(owner, inputs))
    image, pull = case.settings.control_image, case.settings.image_pull_policy
    pod = RouterPod(image, pull, spec.engine.drain_timeout_seconds, inputs, spec.router)
    template = stored_template(stored) if stored else router_template(owner, pod)
    yield router_revision(owner, inputs, template)
    yield router_deployment(owner, spec.router.replicas, template)


def _pools(case: _Case) -> Iterator[Json]:
    """EnginePool and budget of each pool of the plan."""
    kept = Kept(
        case.plan.topology,
        case.plan.token_budget or "Auto",
        plan_inputs(case.service),
        case.image,
        image_inputs(case.service),
    )
    for pool in case.plan.pools:
        shard = Shard(pool.name, ROLE_NAMES[pool.role], "")
        yield engine_pool(case.owner, shard, pool, kept)
        yield pool_budget(case.owner, shard)


def _retained(case: _Case, shards: Mapping[Shard, int]) -> set[Key]:
    """What a pool that left the plan keeps until its last pod is gone."""
    planned = {pool.name for pool in case.plan.pools}
    left = {pool_name(case.owner, shard.pool) for shard in shards if shard.pool not in planned}
    return {(kind, name) for name in left for kind in ("EnginePool", "PodDisruptionBudget")}


def _shards(case: _Case) -> dict[Shard, int]:
    """Every revision of every pool that should exist, and its replicas now."""
    seen = case.seen.shards()
    out: dict[Shard, int] = {}
    whole = True
    for group in case.groups:
        names = {pool.name for pool in group.pools}
        targets = [Target(p.name, ROLE_NAMES[p.role], case.sizes[p.name]) for p in group.pools]
        running = [r for s, r in seen if s.pool in names]
        sizes = next_sizes(targets, group.revision, running)
        whole = whole and is_whole(targets, group.revision, running)
        for pool in group.pools:
            shard = Shard(pool.name, ROLE_NAMES[pool.role], group.revision, pool.gpus_per_replica)
            size = sizes[pool.name, group.revision]
            # A Deployment of nobody counts as complete (observe.py): one that is to run starts with somebody.
            if size or not case.sizes[pool.name] or case.seen.get("Deployment", shard.name(case.owner)):
                out[shard] = size
        old = [(s, sizes[s.pool, s.revision]) for s, r in seen if s.pool in names and s.revision != group.revision]
        out |= _not_drained(case, old)
    planned = {pool.name for pool in case.plan.pools}
    left = [(s, 0 if whole else r.replicas) for s, r in seen if s.pool not in planned]
    return out | _not_drained(case, left)


def _not_drained(case: _Case, old: Sequence[tuple[Shard, int]]) -> dict[Shard, int]:
    """Without those that are at 0 and have no pod left, not even one that is still draining."""
    out = {}
    for shard, replicas in old:
        live = case.seen.get("Deployment", shard.name(case.owner))
        asked = live["spec"].get("replicas", 0) if live else 0
        if replicas or asked or any(map(may_serve, case.seen.pods_of(shard.labels))):
            out[shard] = replicas
    return out


def _engines(case: _Case, shard: Shard, replicas: int) -> Iterator[Json]:
    """Revision, Service and Deployment of one shard."""
    name = shard.name(case.owner)
    template = case.template(name, name)
    if template is None:
        pool = next(p for p in case.plan.pools if p.name == shard.pool)
        spec = case.spec_of(pool)
        accelerator = case.settings.accelerators[pool.accelerator]
        pod = EnginePod(case.service, case.plan, pool, spec, accelerator, case.image, case.settings.image_pull_policy)
        template = engine_template(case.owner, shard, pod)
    startup_s = case.service.spec.engine.startup_timeout_seconds
    yield shard_revision(case.owner, shard, template)
    yield shard_service(case.owner, shard)
    yield shard_deployment(case.owner, shard, replicas, template, startup_s)
