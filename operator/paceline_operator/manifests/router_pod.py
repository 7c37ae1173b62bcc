"""The pod template of a service's routers.

A router that is told to stop goes on accepting while its preStop sleeps and for the notice after it, then serves what
it has to the end; the grace period covers all three. It renders from few facts, so that few changes move a router.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline_operator.kinds import Json
from paceline_operator.manifests.config_map import CONFIG_FILE
from paceline_operator.manifests.meta import HTTP, INPUTS, PORT, ROUTER_LABELS, SCRAPED, Owner
from paceline_operator.manifests.probe import http_probe
from paceline_operator.manifests.secret import token_env
from paceline_operator.manifests.security import container_security, pod_security

CONFIG_DIR = "/etc/paceline"
SLEEP_S = 5  # until endpoints are told
NOTICE_S = 10  # until the last client has noticed
MARGIN_S = 15


@dataclass(frozen=True, slots=True)
class RouterPod:
    image: str
    pull_policy: str
    drain_timeout_s: int
    inputs: str


def router_template(owner: Owner, pod: RouterPod) -> Json:
    labels = {**owner.labels, **ROUTER_LABELS}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels},
    }
    spec = {
        "serviceAccountName": owner.router,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "terminationGracePeriodSeconds": SLEEP_S + NOTICE_S + pod.drain_timeout_s + MARGIN_S,
        "topologySpreadConstraints": [spread],
        "containers": [_container(owner, pod)],
        "volumes": [{"name": "config", "configMap": {"name": owner.router}}],
    }
    metadata = {"labels": {**owner.pod_labels, **ROUTER_LABELS}, "annotations": {**SCRAPED, INPUTS: pod.inputs}}
    return {"metadata": metadata, "spec": spec}


def _container(owner: Owner, pod: RouterPod) -> Json:
    flags = [f"--config={CONFIG_DIR}/{CONFIG_FILE}", "--host=0.0.0.0", f"--port={PORT}", f"--drain-notice-s={NOTICE_S}"]
    return {
        "name": "router",
        "image": pod.image,
        "imagePullPolicy": pod.pull_policy,
        "command": ["python", "-m", "paceline_router", *flags],
        "env": [token_env(owner)],
        "ports": [{"name": HTTP, "containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": http_probe("/healthz", 1, 60),
        "readinessProbe": http_probe("/readyz", 2, 2),
        "livenessProbe": http_probe("/healthz", 10, 6),
        "lifecycle": {"preStop": {"sleep": {"seconds": SLEEP_S}}},
        "resources": {"requests": {"cpu": "100m", "memory": "160Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": container_security(),
        "volumeMounts": [{"name": "config", "mountPath": CONFIG_DIR, "readOnly": True}],
    }
