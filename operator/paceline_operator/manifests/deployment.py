"""Deployments: one for each revision of a pool, and the routers'. The template comes from its ControllerRevision."""

from __future__ import annotations

from collections.abc import Mapping

from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import ROUTER_LABELS, Owner, Shard

START_MARGIN_S = 120  # scheduling and pulling come before the startup probe begins


def shard_deployment(owner: Owner, shard: Shard, replicas: int, template: Json, startup_timeout_s: int) -> Json:
    """Never rolls by itself: another template is another revision, and another Deployment."""
    spec = _spec(owner, shard.labels, replicas, template)
    spec["progressDeadlineSeconds"] = startup_timeout_s + START_MARGIN_S
    return owner.manifest("Deployment", shard.name(owner), shard.labels, spec=spec)


def router_deployment(owner: Owner, replicas: int, template: Json) -> Json:
    spec = _spec(owner, ROUTER_LABELS, replicas, template)
    return owner.manifest("Deployment", owner.router, ROUTER_LABELS, spec=spec)


def _spec(owner: Owner, labels: Mapping[str, str], replicas: int, template: Json) -> Json:
    return {
        "replicas": replicas,
        "revisionHistoryLimit": 1,
        "selector": {"matchLabels": {**owner.labels, **labels}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": template,
    }
