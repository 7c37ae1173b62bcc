"""Services: the routers' address, and a headless one for each revision of a pool, from which routers learn replicas."""

from __future__ import annotations

from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import HTTP, PORT, ROUTER_LABELS, Owner, Shard

_PORTS = [{"name": HTTP, "port": PORT, "protocol": "TCP", "targetPort": HTTP}]


def router_service(owner: Owner, *, tls: bool = False) -> Json:
    """`tls`: gateways are told to speak it."""
    ports = [port | ({"appProtocol": "https"} if tls else {}) for port in _PORTS]
    spec = {"type": "ClusterIP", "selector": {**owner.labels, **ROUTER_LABELS}, "ports": ports}
    return owner.manifest("Service", owner.name, ROUTER_LABELS, spec=spec)


def shard_service(owner: Owner, shard: Shard) -> Json:
    """Headless, of one IP family, without unready addresses."""
    spec = {
        "type": "ClusterIP",
        "clusterIP": "None",
        "ipFamilyPolicy": "SingleStack",
        "publishNotReadyAddresses": False,
        "selector": {**owner.labels, **shard.labels},
        "ports": _PORTS,
    }
    return owner.manifest("Service", shard.name(owner), shard.service_labels, spec=spec)
