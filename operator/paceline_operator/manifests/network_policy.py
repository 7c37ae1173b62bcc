"""The NetworkPolicy of a service's engines: its routers and Prometheus on their port, each other on all ports.

Engines believe the token's bearer (DESIGN §4) and pull KV from each other on ports of the kernel's choice.
"""

from __future__ import annotations

from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import COMPONENT_LABEL, NAME_LABEL, PORT, ROUTER_LABELS, Owner

_ENGINE = {COMPONENT_LABEL: "engine"}
_PROMETHEUS = {NAME_LABEL: "prometheus"}  # the label that the Prometheus operator and its chart set


def engine_policy(owner: Owner) -> Json:
    routers = {"podSelector": {"matchLabels": {**owner.labels, **ROUTER_LABELS}}}
    prometheus = {"namespaceSelector": {}, "podSelector": {"matchLabels": _PROMETHEUS}}
    engines = {"podSelector": {"matchLabels": {**owner.labels, **_ENGINE}}}
    spec = {
        "podSelector": {"matchLabels": {**owner.labels, **_ENGINE}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [routers, prometheus], "ports": [{"protocol": "TCP", "port": PORT}]},
            {"from": [engines]},
        ],
    }
    return owner.manifest("NetworkPolicy", f"{owner.name}-engine", _ENGINE, spec=spec)
