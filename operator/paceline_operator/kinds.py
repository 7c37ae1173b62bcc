"""The kinds of objects that the operator makes, and where the API server keeps them.

Their order is the one in which they are written: what a pod needs comes before the pod.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline_api.schema import API_VERSION
from paceline_router.kube import path_of

Json = dict[str, Any]
Key = tuple[str, str]  # kind, name

KINDS: Mapping[str, tuple[str, str]] = {  # kind → apiVersion, plural
    "ServiceAccount": ("v1", "serviceaccounts"),
    "RoleBinding": ("rbac.authorization.k8s.io/v1", "rolebindings"),
    "ConfigMap": ("v1", "configmaps"),
    "Service": ("v1", "services"),
    "NetworkPolicy": ("networking.k8s.io/v1", "networkpolicies"),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets"),
    "EnginePool": (API_VERSION, "enginepools"),
    "ControllerRevision": ("apps/v1", "controllerrevisions"),
    "Deployment": ("apps/v1", "deployments"),
}
SERVICE_KIND = "LLMService"
SERVICES = (API_VERSION, "llmservices")
PODS = ("v1", "pods")


def path(kind: str, namespace: str, name: str = "") -> str:
    """Of an object of one of KINDS, or of them all."""
    api_version, plural = KINDS[kind]
    return path_of(api_version, plural, namespace, name)


def key_of(manifest: Mapping[str, Any]) -> Key:
    return manifest["kind"], manifest["metadata"]["name"]
