"""PodDisruptionBudgets: one voluntary disruption at a time, of a pool over all its revisions, and of the routers."""

from __future__ import annotations

from paceline_router.endpoints import POOL_LABEL, ROLE_LABEL

from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import COMPONENT_LABEL, ROUTER_LABELS, Owner, Shard


def router_budget(owner: Owner) -> Json:
    return _budget(owner, owner.router, ROUTER_LABELS)


def pool_budget(owner: Owner, shard: Shard) -> Json:
    """Of the pool that `shard` is a revision of."""
    labels = {name: shard.labels[name] for name in (COMPONENT_LABEL, POOL_LABEL, ROLE_LABEL)}
    return _budget(owner, f"{owner.name}-{shard.pool}", labels)


def _budget(owner: Owner, name: str, labels: dict[str, str]) -> Json:
    # a pod that is not ready serves nobody: it never stands in the way of a node that is drained
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": {**owner.labels, **labels}},
    }
    return owner.manifest("PodDisruptionBudget", name, labels, spec=spec)
