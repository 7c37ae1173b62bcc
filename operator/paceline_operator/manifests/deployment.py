"""Deployments: one for each revision of a pool, and the routers'. The template comes from its ControllerRevision."""

from __future__ import annotations

from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import ROUTER_LABELS, Owner, Shard

START_MARGIN_S = 120  # scheduling and pulling come before the startup probe begins


def shard_deployment(owner: Owner, shard: Shard, replicas: int, template: Json, startup_timeout_s: int) -> Json:
    """Never rolls by itself: another template is another revision, and another Deployment."""
    spec = {
        "replicas": replicas,
        "revisionHistoryLimit": 1,
        "progressDeadlineSeconds": startup_timeout_s + START_MARGIN_S,
        "selector": {"matchLabels": {**owner.labels, **shard.labels}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": template,
    }
    return owner.manifest("Deployment", shard.name(owner), shard.labels, spec=spec)


def router_deployment(owner: Owner, replicas: int, template: Json) -> Json:
    spec = {
        "replicas": replicas,
        "revisionHistoryLimit": 1,
        "selector": {"matchLabels": {**owner.labels, **ROUTER_LABELS}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": template,
    }
    return owner.manifest("Deployment", owner.router, ROUTER_LABELS, spec=spec)
