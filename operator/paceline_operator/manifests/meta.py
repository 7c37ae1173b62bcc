"""Names, labels and owners of everything that is made for a service.

Every object carries the service's labels and is owned by its LLMService, so that the garbage collector deletes it. An
object is ours if its controller is that very LLMService; labels alone prove nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paceline_api.config import RoleName
from paceline_api.schema import API_VERSION
from paceline_router.endpoints import GPUS_LABEL, POOL_LABEL, REVISION_LABEL, ROLE_LABEL, SERVICE_LABEL

from paceline_operator.kinds import KINDS, SERVICE_KIND, Json
from paceline_operator.settings import MANAGER

NAME_LABEL = "app.kubernetes.io/name"
COMPONENT_LABEL = "app.kubernetes.io/component"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
INPUTS = "paceline.dev/inputs"  # annotation of a pod: hash of what it reads at its start alone
DESIRED = "paceline.dev/desired"  # annotation: hash of the manifest that was applied
PORT = 8000
HTTP = "http"  # the port's name
SCRAPED: Mapping[str, str] = {  # annotations of pods, for a Prometheus that goes by these instead of PodMonitors
    "prometheus.io/scrape": "true",
    "prometheus.io/port": str(PORT),
    "prometheus.io/path": "/metrics",
}
SCRAPE_SCHEME = "prometheus.io/scheme"  # annotation beside these, of pods that serve HTTPS; the PodMonitor reads it too


@dataclass(frozen=True, slots=True)
class Owner:
    """The LLMService that objects are made for."""

    name: str
    namespace: str
    uid: str

    @property
    def labels(self) -> dict[str, str]:
        return {NAME_LABEL: "paceline", SERVICE_LABEL: self.name}

    @property
    def pod_labels(self) -> dict[str, str]:
        """Of pods: `labels`, which selectors hold, and who manages them."""
        return {**self.labels, MANAGED_BY_LABEL: MANAGER}

    @property
    def router(self) -> str:
        return f"{self.name}-router"

    @property
    def token_secret(self) -> str:
        return f"{self.name}-token"

    def owns(self, obj: Mapping[str, Any]) -> bool:
        references = obj["metadata"].get("ownerReferences") or ()
        return any(r.get("controller") and r.get("uid") == self.uid for r in references)

    def replaces(self, obj: Mapping[str, Any]) -> bool:
        """It belonged to a service of this name that was deleted."""
        references = obj["metadata"].get("ownerReferences") or ()
        mine = (r for r in references if r.get("controller") and (r["kind"], r["name"]) == (SERVICE_KIND, self.name))
        return any(r.get("uid") != self.uid for r in mine)

    def manifest(self, kind: str, name: str, labels: Mapping[str, str], **parts: Any) -> Json:
        """An object of ours; `parts` is what follows metadata."""
        reference = {
            "apiVersion": API_VERSION,
            "kind": SERVICE_KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }
        metadata = {
            "name": name,
            "namespace": self.namespace,
            "labels": {**self.pod_labels, **labels},
            "ownerReferences": [reference],
        }
        return {"apiVersion": KINDS[kind][0], "kind": kind, "metadata": metadata, **parts}


@dataclass(frozen=True, slots=True)
class Shard:
    """One revision of one pool: what a Deployment of engines and its Service stand for."""

    pool: str
    role: RoleName
    revision: str
    gpus: int = 1

    @property
    def labels(self) -> dict[str, str]:
        """Of its pods: what its Deployment and its Service select by."""
        return {
            COMPONENT_LABEL: "engine",
            POOL_LABEL: self.pool,
            ROLE_LABEL: self.role,
            REVISION_LABEL: self.revision,
        }

    @property
    def service_labels(self) -> dict[str, str]:
        """The EndpointSlices of a Service carry its labels: what the router knows of a replica."""
        return {**self.labels, GPUS_LABEL: str(self.gpus)}

    def name(self, owner: Owner) -> str:
        return f"{owner.name}-{self.pool}-{self.revision}"


ROUTER_LABELS = {COMPONENT_LABEL: "router"}
