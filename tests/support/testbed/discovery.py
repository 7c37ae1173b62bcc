"""Tells Prometheus of the cluster's pods by a file, with the meta labels of its Kubernetes discovery (role pod).

Debian's Prometheus is built without that discovery. A program of its own: lists the pods once a second and replaces the
file when a target came, went or changed. While the API server does not answer, the file stays as it is.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]
PERIOD_S = 1.0


def targets(pods: Sequence[Json]) -> list[Json]:
    """A target for each port that a container of a pod with an address declares."""
    return [target for pod in pods for target in _of_pod(pod)]


def _of_pod(pod: Json) -> Iterator[Json]:
    address = pod["status"].get("podIP")
    if not address:
        return
    labels = {f"label_{label_name(key)}": value for key, value in pod["metadata"].get("labels", {}).items()}
    annotations = pod["metadata"].get("annotations", {})
    labels |= {f"annotation_{label_name(key)}": value for key, value in annotations.items()}
    labels |= {"name": pod["metadata"]["name"], "phase": pod["status"]["phase"], "ip": address}
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", ()):
            own = {"container_name": container["name"], "container_port_name": port.get("name", "")}
            meta = {f"__meta_kubernetes_pod_{key}": value for key, value in {**labels, **own}.items()}
            meta["__meta_kubernetes_namespace"] = pod["metadata"]["namespace"]
            yield {"targets": [f"{address}:{port['containerPort']}"], "labels": meta}


def label_name(key: str) -> str:
    """The key of a Kubernetes label or annotation as Prometheus spells it."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", key)


def main(server: str, pki: Path, out: Path) -> None:
    """`server`: host:port of the API server; `pki`: folder of ca.crt, prometheus.crt and prometheus.key."""
    trust = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    trust.load_cert_chain(pki / "prometheus.crt", pki / "prometheus.key")
    connection = http.client.HTTPSConnection(server, context=trust, timeout=10)
    known = ""
    while True:
        try:
            connection.request("GET", "/api/v1/pods?resourceVersion=0")
            with connection.getresponse() as answer:
                found = json.dumps(targets(json.load(answer)["items"]))
        except (OSError, http.client.HTTPException, ValueError, KeyError) as e:
            print(f"pods not listed: {e!r}", flush=True)
            connection.close()
        else:
            if found != known:
                new = out.with_suffix(".new")
                new.write_text(found)
                new.replace(out)
                known = found
        time.sleep(PERIOD_S)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
