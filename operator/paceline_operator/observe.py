"""What there is of one service, as the store saw it last: its own objects by kind and name, and its pods.

An object counts only if its controller is the service itself; one that merely carries our labels is somebody else's.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from paceline_api.config import RoleName
from paceline_router.endpoints import GPUS_LABEL, POOL_LABEL, REVISION_LABEL, ROLE_LABEL

from paceline_operator.kinds import Json, Key, key_of
from paceline_operator.manifests.meta import COMPONENT_LABEL, Owner, Shard
from paceline_operator.rollout import Running

ROLES: Mapping[str, RoleName] = {"prefill": "prefill", "decode": "decode", "mixed": "mixed"}


@dataclass(frozen=True, slots=True)
class Observed:
    """`objects` are the service's own; `pods` are those with its label."""

    objects: Mapping[Key, Json]
    pods: tuple[Json, ...]

    def get(self, kind: str, name: str) -> Json | None:
        return self.objects.get((kind, name))

    def of(self, kind: str) -> list[Json]:
        return [obj for (k, _), obj in sorted(self.objects.items()) if k == kind]

    def shards(self) -> list[tuple[Shard, Running]]:
        """Every Deployment of engines."""
        found = []
        for deployment in self.of("Deployment"):
            labels = deployment["metadata"].get("labels") or {}
            role = ROLES.get(labels.get(ROLE_LABEL, ""))
            pool, revision = labels.get(POOL_LABEL), labels.get(REVISION_LABEL)
            if role and pool and revision:
                shard = Shard(pool, role, revision, self._gpus(deployment["metadata"]["name"]))
                wanted, ready = deployment["spec"].get("replicas", 0), ready_of(deployment)
                found.append((shard, Running(pool, role, revision, wanted, ready, _was_complete(deployment))))
        return found

    def _gpus(self, name: str) -> int:
        kept = self.get("ControllerRevision", name)
        gpus = str(((kept or {}).get("metadata", {}).get("labels") or {}).get(GPUS_LABEL, "1"))
        return int(gpus) if gpus.isdecimal() else 1

    def pods_of(self, labels: Mapping[str, str]) -> list[Json]:
        """Terminating ones too."""
        return [pod for pod in self.pods if labels.items() <= (pod["metadata"].get("labels") or {}).items()]

    def router_pods(self) -> list[Json]:
        return self.pods_of({COMPONENT_LABEL: "router"})


def observe(owner: Owner, children: Iterable[Json], pods: Iterable[Json]) -> Observed:
    """Of objects and pods with the service's label in its namespace."""
    ours = {key_of(obj): obj for obj in children if owner.owns(obj)}
    return Observed(ours, tuple(sorted(pods, key=_name)))


def ready_of(deployment: Mapping[str, Any] | None) -> int:
    return int(((deployment or {}).get("status") or {}).get("readyReplicas") or 0)


def may_serve(pod: Json) -> bool:
    """Whether it serves, will, or still drains: one that was evicted has ended, and stays until its owner goes."""
    return (pod.get("status") or {}).get("phase") not in ("Failed", "Succeeded")


def _was_complete(deployment: Mapping[str, Any]) -> bool:
    """All its replicas were available once: the controller keeps that reason until the template changes, and ours never
    does (Kubernetes, Deployments, "Complete Deployment")."""
    conditions = (deployment.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Progressing" and c.get("reason") == "NewReplicaSetAvailable" for c in conditions)


def _name(obj: Json) -> str:
    return str(obj["metadata"]["name"])
