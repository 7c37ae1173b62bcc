"""A probe of a container over HTTP, on the port that it names; routers and engines share it."""

from __future__ import annotations

from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import HTTP


def http_probe(path: str, period_s: int, failures: int, timeout_s: int = 5, *, tls: bool = False) -> Json:
    """`tls`: over HTTPS, whose certificate the kubelet does not check."""
    return {
        "httpGet": {"path": path, "port": HTTP} | ({"scheme": "HTTPS"} if tls else {}),
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }
