"""Security contexts of the `restricted` Pod Security Standard, for the numeric user that both images have."""

from __future__ import annotations

from paceline_operator.kinds import Json

USER = 65532


def pod_security() -> Json:
    """`fsGroup` makes volumes writable for the user."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Json:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
