"""What a service's routers may do: the chart's ClusterRole, in the service's namespace only."""

from __future__ import annotations

from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import ROUTER_LABELS, Owner


def router_account(owner: Owner) -> Json:
    return owner.manifest("ServiceAccount", owner.router, ROUTER_LABELS, automountServiceAccountToken=False)


def router_binding(owner: Owner, cluster_role: str) -> Json:
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": cluster_role}
    subject = {"kind": "ServiceAccount", "name": owner.router, "namespace": owner.namespace}
    return owner.manifest("RoleBinding", owner.router, ROUTER_LABELS, roleRef=reference, subjects=[subject])
