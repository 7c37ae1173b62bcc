"""The pod template of a service's routers.

A router that is told to stop goes on accepting while its preStop sleeps and for the notice after it, then serves what
it has to the end; the grace period covers all three. It renders from few facts, so that few changes move a router.
Secrets with API keys and a certificate are mounted as whole folders: only these are renewed while a pod runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline_api.v1alpha1 import RouterSpec

from paceline_operator.kinds import Json
from paceline_operator.manifests.config_map import CONFIG_FILE
from paceline_operator.manifests.meta import HTTP, INPUTS, PORT, ROUTER_LABELS, SCRAPE_SCHEME, SCRAPED, Owner
from paceline_operator.manifests.probe import http_probe
from paceline_operator.manifests.secret import token_env
from paceline_operator.manifests.security import container_security, pod_security

CONFIG_DIR = "/etc/paceline"
API_KEYS_DIR, TLS_DIR = "/etc/paceline-api-keys", "/etc/paceline-tls"
SLEEP_S = 5  # until endpoints are told
NOTICE_S = 10  # until the last client has noticed
MARGIN_S = 15
SECRET_MODE = 0o440


@dataclass(frozen=True, slots=True)
class RouterPod:
    image: str
    pull_policy: str
    drain_timeout_s: int
    inputs: str
    spec: RouterSpec

    @property
    def secrets(self) -> tuple[tuple[str, str, str], ...]:
        """Flag and volume, Secret and folder of each that is mounted."""
        keys, tls = self.spec.api_keys, self.spec.tls
        named = (
            ("api-keys", keys and keys.secret_name, API_KEYS_DIR),
            ("tls", tls and tls.secret_name, TLS_DIR),
        )
        return tuple((volume, name, folder) for volume, name, folder in named if name)


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
        "volumes": [{"name": "config", "configMap": {"name": owner.router}}, *map(_volume, pod.secrets)],
    }
    scraped = {**SCRAPED, SCRAPE_SCHEME: "https"} if pod.spec.tls else SCRAPED
    metadata = {"labels": {**owner.pod_labels, **ROUTER_LABELS}, "annotations": {**scraped, INPUTS: pod.inputs}}
    return {"metadata": metadata, "spec": spec}


def _volume(secret: tuple[str, str, str]) -> Json:
    """The pod's group reads it, which is the process's own. Optional, because a missing one keeps a pod waiting in
    silence, and a router that misses its files says so where the status of its pod shows it."""
    volume, name, _ = secret
    return {"name": volume, "secret": {"secretName": name, "defaultMode": SECRET_MODE, "optional": True}}


def _container(owner: Owner, pod: RouterPod) -> Json:
    tls = pod.spec.tls is not None
    mounts = [("config", CONFIG_DIR), *((volume, folder) for volume, _, folder in pod.secrets)]
    flags = [f"--config={CONFIG_DIR}/{CONFIG_FILE}", "--host=0.0.0.0", f"--port={PORT}", f"--drain-notice-s={NOTICE_S}"]
    flags += [f"--{volume}-dir={folder}" for volume, _, folder in pod.secrets]
    return {
        "name": "router",
        "image": pod.image,
        "imagePullPolicy": pod.pull_policy,
        "command": ["python", "-m", "paceline_router", *flags],
        "env": [token_env(owner)],
        "ports": [{"name": HTTP, "containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": http_probe("/healthz", 1, 60, tls=tls),
        "readinessProbe": http_probe("/readyz", 2, 2, tls=tls),
        "livenessProbe": http_probe("/healthz", 10, 6, tls=tls),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "lifecycle": {"preStop": {"sleep": {"seconds": SLEEP_S}}},
        "resources": {"requests": {"cpu": "100m", "memory": "160Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": container_security(),
        "volumeMounts": [{"name": name, "mountPath": path, "readOnly": True} for name, path in mounts],
    }
