"""A cluster that does what manifests say at once, for the operator's pure parts: no API server, no time.

`step` feeds the operator's decision with what there is, puts its manifests in place and answers as Kubernetes would:
EnginePools keep their size, Deployments get pods. Tests turn pods ready, or take them away.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from factories_api import make_manifest
from paceline_api.v1alpha1 import LLMService
from paceline_operator.deletion_cost import DELETION_COST, TEMPLATE_HASH
from paceline_operator.desire import Desired, desire
from paceline_operator.differ import must_write, stamped
from paceline_operator.kinds import Json, Key, key_of
from paceline_operator.manifests.meta import Owner
from paceline_operator.observe import Observed, observe
from paceline_operator.settings import Settings
from paceline_operator.status import service_status
from paceline_router.endpoints import SERVICE_LABEL

SETTINGS = Settings("localhost/paceline:dev", "localhost/paceline-engine:dev")
NOW = "2026-01-01T00:00:00Z"
COMPLETE = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}


def make_live(name: str = "chat", **spec: Any) -> LLMService:
    """A service as the API server holds it."""
    manifest = make_manifest(name, **spec)
    manifest["metadata"] |= {"namespace": "llm", "uid": f"uid-{name}", "generation": 1}
    return LLMService.model_validate(manifest)


class Cluster:
    """What there is of one service."""

    def __init__(self, service: LLMService, settings: Settings = SETTINGS) -> None:
        self.service, self.settings = service, settings
        self.objects: dict[Key, Json] = {}
        self.pods: dict[str, Json] = {}
        self.status: Json = {}
        self._made = 0

    @property
    def owner(self) -> Owner:
        return Owner(self.service.name, self.service.metadata.namespace, self.service.metadata.uid)

    def seen(self) -> Observed:
        return observe(self.owner, self.objects.values(), self.pods.values())

    def desired(self) -> Desired:
        return desire(self.owner, self.service, self.seen(), self.settings)

    def step(self) -> list[Key]:
        """One reconciliation; the keys that it wrote or deleted."""
        desired = self.desired()
        changed: list[Key] = []
        for manifest in map(stamped, desired.manifests):
            key = key_of(manifest)
            if must_write(manifest, self.objects.get(key)):
                self._write(key, copy.deepcopy(manifest), desired)
                changed.append(key)
        for key in desired.unwanted:
            del self.objects[key]
            changed.append(key)
        for cost in desired.costs:
            annotations = self.pods[cost.pod]["metadata"].setdefault("annotations", {})
            annotations.pop(DELETION_COST, None)
            annotations |= {DELETION_COST: cost.value} if cost.value else {}
        self._run_pods()
        self.status = service_status(self.owner, self.service, desired, self.seen(), (), self.status, NOW)
        return changed

    def settle(self, steps: int = 100) -> int:
        """Steps until nothing changes, each pod ready at once; how many there were."""
        for count in range(steps):
            before = set(self.pods)
            self.turn_ready(self.pods)
            changed = self.step()
            if not changed and before == set(self.pods):
                return count
        raise AssertionError(f"not settled after {steps} steps")

    def turn_ready(self, names: Iterable[str]) -> None:
        for name in list(names):
            self.pods[name]["status"] = {"phase": "Running", "ready": True}
        self._run_pods()

    def scale(self, pool: str, replicas: int) -> None:
        self.objects["EnginePool", f"{self.service.name}-{pool}"]["spec"]["replicas"] = replicas

    def ready(self, **labels: str) -> int:
        return sum(1 for pod in self.seen().pods_of(_labels(labels)) if pod["status"].get("ready"))

    def names(self, kind: str) -> list[str]:
        return sorted(name for k, name in self.objects if k == kind)

    def condition(self, kind: str) -> tuple[str, str, str]:
        """Status, reason and message."""
        found = next(c for c in self.status["conditions"] if c["type"] == kind)
        return found["status"], found["reason"], found["message"]

    def _write(self, key: Key, manifest: Json, desired: Desired) -> None:
        before = self.objects.get(key)
        if key[0] == "EnginePool":
            pool = manifest["spec"]["pool"]
            manifest["spec"]["replicas"] = before["spec"]["replicas"] if before else desired.sizes[pool]
        if before and "status" in before:
            manifest["status"] = before["status"]
        self.objects[key] = manifest

    def _run_pods(self) -> None:
        """Pods of each Deployment; those that are not ready go first, then those that cost least."""
        wanted: set[str] = set()
        for (kind, name), deployment in self.objects.items():
            if kind != "Deployment":
                continue
            mine = sorted((n for n in self.pods if n.startswith(f"{name}/")), key=self._rank)
            mine = mine[: deployment["spec"]["replicas"]]
            while len(mine) < deployment["spec"]["replicas"]:
                mine.append(f"{name}/{self._made}")
                self.pods[mine[-1]] = self._pod(mine[-1], name, deployment["spec"]["template"])
            wanted |= set(mine)
            ready = sum(1 for n in mine if self.pods[n]["status"].get("ready"))
            done = [COMPLETE] if ready == len(mine) else (deployment.get("status") or {}).get("conditions", [])
            deployment["status"] = {"replicas": len(mine), "readyReplicas": ready, "conditions": done}
        self.pods = {name: pod for name, pod in self.pods.items() if name in wanted}

    def _rank(self, name: str) -> tuple[bool, int]:
        cost = (self.pods[name]["metadata"].get("annotations") or {}).get(DELETION_COST, "0")
        return not self.pods[name]["status"].get("ready"), -int(cost)

    def _pod(self, name: str, deployment: str, template: Json) -> Json:
        self._made += 1
        labels = {**template["metadata"]["labels"], TEMPLATE_HASH: "5f7d"}
        assert labels[SERVICE_LABEL] == self.service.name
        owner = {"kind": "ReplicaSet", "name": f"{deployment}-5f7d", "controller": True}
        metadata = {"name": name, "labels": labels, "ownerReferences": [owner]}
        return {"metadata": metadata, "status": {"phase": "Pending"}}


def _labels(labels: dict[str, str]) -> dict[str, str]:
    return {f"paceline.dev/{name}": value for name, value in labels.items()}
