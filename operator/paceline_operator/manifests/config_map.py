"""The routers' configuration as a ConfigMap, which they read again while they run: editing a class restarts nothing."""

from __future__ import annotations

from paceline_api.config import KubernetesDiscovery
from paceline_api.v1alpha1 import LLMService
from paceline_planner.launching import router_config

from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import ROUTER_LABELS, Owner

CONFIG_FILE = "router.json"


def router_config_map(owner: Owner, service: LLMService) -> Json:
    config = router_config(service, KubernetesDiscovery(namespace=owner.namespace, service=owner.name))
    return owner.manifest("ConfigMap", owner.router, ROUTER_LABELS, data={CONFIG_FILE: config.to_json()})
