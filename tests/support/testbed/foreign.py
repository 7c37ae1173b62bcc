"""Any other cluster, named by KUBECONFIG: the same use as our own, but for what only its owner can do.

A node cannot be lost, a container not be killed from outside and the audit log not be read there: those raise
NotOurs, whose message is the reason for a skip. Images are where the cluster finds them already.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from testbed.processes import run

CLIENT = "paceline-e2e-client"


class NotOurs(Exception):
    """Only the project's own test cluster can do this."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """kubectl and helm are those on PATH; `client_image` runs the commands that are to come from inside."""

    kubeconfig: str
    client_image: str

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        return run("kubectl", *arguments, env=self._env, stdin=stdin, timeout_s=timeout_s)

    def helm(self, *arguments: str, timeout_s: float = 300) -> str:
        return run("helm", *arguments, env=self._env, timeout_s=timeout_s)

    def in_cluster(self, *argv: str, timeout_s: float = 120) -> str:
        """Runs argv in a pod of the client image, which is made at the first use."""
        if CLIENT not in self.kubectl("get", "pods", "-n", "default", "-o", "name"):
            self.kubectl("apply", "-f", "-", stdin=json.dumps(self._client()))
            self.kubectl("wait", "-n", "default", f"pod/{CLIENT}", "--for=condition=Ready", "--timeout=60s")
        return self.kubectl("exec", "-n", "default", CLIENT, "--", *argv, timeout_s=timeout_s)

    def load_image(self, image: Path) -> None:
        """Nothing: `make e2e-kind`, or the cluster's owner, has brought it."""

    def kill_pod(self, namespace: str, pod: str) -> NoReturn:
        raise NotOurs(f"{namespace}/{pod}: kill -9 from outside a container needs the project's own test cluster")

    def lose(self, name: str) -> NoReturn:
        raise NotOurs(f"{name}: losing a node needs the project's own test cluster")

    def bring_back(self, name: str) -> NoReturn:
        raise NotOurs(f"{name}: losing a node needs the project's own test cluster")

    def writes(self, since: float) -> Iterator[dict[str, Any]]:
        raise NotOurs("reading the API server's audit log needs the project's own test cluster")

    @property
    def _env(self) -> dict[str, str]:
        return {"KUBECONFIG": self.kubeconfig}

    def _client(self) -> dict[str, object]:
        command = ["python", "-c", "import time; time.sleep(86400)"]
        container = {
            "name": "client",
            "image": self.client_image,
            "imagePullPolicy": "IfNotPresent",
            "command": command,
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": CLIENT, "namespace": "default"},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
        }
