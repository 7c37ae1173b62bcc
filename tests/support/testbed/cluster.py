"""A real Kubernetes of several nodes on this machine: up, down, and what tests do with it.

Everything it makes lies under one folder, in network namespaces and cgroups of its name; `down` removes all of it,
whatever state a killed run left. Its state is on disk, so another process can use or end it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from testbed import archive, control_plane, node
from testbed.layout import HOMES, IMAGE, Layout, NodeLayout
from testbed.processes import CommandFailed, inside, kill, naming, pid_of, run, until
from testbed.programs import Programs

GPUS = 8  # of each node, fake: pods that ask for them are scheduled and run
CNI_RESULTS = Path("/var/lib/cni/results")
KUBELET_LINKS = Path("/var/log/containers")
KUBELET_PLUGINS = Path("/var/lib/kubelet/device-plugins")  # fixed in the kubelet, as the links are
# Mounts a resolv.conf that asks the cluster's DNS, for the command alone.
WITH_DNS = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster `layout.name` with `nodes` nodes."""

    layout: Layout
    programs: Programs
    nodes: int = 3

    @property
    def all_nodes(self) -> list[NodeLayout]:
        return [self.layout.node(number) for number in range(1, self.nodes + 1)]

    # Life

    def exists(self) -> bool:
        return self.layout.home.exists()

    def is_up(self) -> bool:
        return pid_of(self.layout.pids / "apiserver") is not None

    def up(self) -> None:
        """Starts it and waits until every node is ready. FileExistsError where a former one was not taken down."""
        layout = self.layout
        for folder in (layout.home, layout.logs, layout.pids):
            folder.mkdir(parents=True)
        control_plane.network(layout)
        for one in self.all_nodes:
            one.home.mkdir()
            node.network(one)
        control_plane.certificates(layout)
        for one in self.all_nodes:
            node.certificates(one)
        image = layout.home / "testbed.tar"
        archive.write(self.programs.path("testbed"), IMAGE, image)
        with ThreadPoolExecutor() as pool:
            runtimes = [pool.submit(node.start_containerd, one, self.programs) for one in self.all_nodes]
            control_plane.up(layout, self.programs)
            for runtime in runtimes:
                runtime.result()
            list(pool.map(lambda one: self._join(one, image), self.all_nodes))
        # Without it the API server refuses every pod of the namespace; a controller makes it some time after the start.
        until("the default service account", self._has_service_account, 60, pause_s=0.3)

    def _has_service_account(self) -> bool:
        return bool(self.kubectl("get", "serviceaccount", "default", "--ignore-not-found", "-o", "name"))

    def _join(self, one: NodeLayout, image: Path) -> None:
        node.load_image(one, self.programs, image)
        node.start_kubelet(one, self.programs)
        node.start_proxy(one, self.programs)
        self._wait_ready(one)

    def _wait_ready(self, one: NodeLayout) -> None:
        """Until the node is ready and has its GPUs: a kubelet that registers writes its own over them."""
        patch = [{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": str(GPUS)}]

        def ready() -> bool:
            try:
                status = json.loads(self.kubectl("get", "node", one.name, "-o", "json"))["status"]
            except CommandFailed:
                return False
            if status["allocatable"].get("nvidia.com/gpu") != str(GPUS):
                arguments = ("--subresource=status", "--type=json", "-p", json.dumps(patch))
                self.kubectl("patch", "node", one.name, *arguments)
                return False
            return any(c["type"] == "Ready" and c["status"] == "True" for c in status["conditions"])

        until(f"node {one.name}", ready, 60, pause_s=0.3)

    def down(self) -> None:
        """Ends and removes all of it, by this cluster's own pid files, cgroups, namespaces and folder."""
        layout = self.layout
        everyone = [layout.node(number) for number in range(1, 10)]
        files = layout.pids.glob("*") if layout.pids.exists() else []
        kill([pid for file in files if (pid := pid_of(file))])
        for one in everyone:
            node.kill_containers(one)
        # Shims are containerd's children and outlive it; they name its socket.
        kill([pid for pid, program in naming(layout.home) if program.startswith("containerd-shim")])
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(f"{layout.home}/")), reverse=True):
            run("umount", "-l", mount)
        for netns in [layout.netns, *(one.netns for one in everyone)]:
            if (Path("/run/netns") / netns).exists():
                run("ip", "netns", "del", netns)
        for one in everyone:
            node.remove_cgroups(one)
            for result in CNI_RESULTS.glob(f"{one.netns}-*"):
                result.unlink()
        for link in KUBELET_LINKS.glob("*.log"):
            if link.is_symlink() and str(link.readlink()).startswith(f"{layout.home}/"):
                link.unlink()
        if layout.home.exists():
            shutil.rmtree(layout.home)
        if HOMES.exists() and not any(HOMES.iterdir()):
            HOMES.rmdir()
            (KUBELET_PLUGINS / "kubelet.sock").unlink(missing_ok=True)
            for folder in (KUBELET_PLUGINS, KUBELET_PLUGINS.parent, KUBELET_LINKS):
                with suppress(OSError):  # absent, or with something that is not ours
                    folder.rmdir()

    # Use

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        """Standard output. CommandFailed."""
        return run(*self.kubectl_command(*arguments), stdin=stdin, timeout_s=timeout_s)

    def kubectl_command(self, *arguments: str) -> list[str]:
        """What runs kubectl, for callers that start it themselves."""
        argv = self.programs.command("kubectl", "--kubeconfig", self.layout.kubeconfig, *arguments)
        return [*inside(self.layout.netns), *argv]

    def helm(self, *arguments: str, timeout_s: float = 300) -> str:
        argv = self.programs.command("helm", "--kubeconfig", self.layout.kubeconfig, *arguments)
        return run(*argv, netns=self.layout.netns, timeout_s=timeout_s)

    def in_cluster(self, *argv: str, timeout_s: float = 120) -> str:
        """Runs argv on this machine, but in the first node's network and with the cluster's DNS."""
        return run(*self.from_inside(*argv), timeout_s=timeout_s)

    def from_inside(self, *argv: str) -> list[str]:
        """The command that runs argv there, for callers that start it themselves."""
        shell = ["unshare", "--mount", "sh", "-c", WITH_DNS, str(self.layout.resolv_conf)]
        return [*inside(self.layout.node(1).netns), *shell, *argv]

    def load_image(self, image: Path) -> None:
        """Imports an OCI archive into every node's store."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda one: node.load_image(one, self.programs, image), self.all_nodes))

    def node_named(self, name: str) -> NodeLayout:
        return next(one for one in self.all_nodes if one.name == name)

    def kill_pod(self, namespace: str, pod: str) -> int:
        """`kill -9` to every process of the pod's containers but the one that holds its namespaces; how many."""
        found = json.loads(self.kubectl("get", "pod", pod, "-n", namespace, "-o", "json"))
        statuses = found["status"].get("containerStatuses", [])
        ids = [id_ for status in statuses if (id_ := status.get("containerID", "").rpartition("/")[2])]
        one = self.node_named(found["spec"]["nodeName"])
        return sum(node.kill_containers(one, part) for part in ids)

    def lose(self, name: str) -> None:
        """Ends a node's kubelet and containers."""
        node.lose(self.node_named(name))

    def bring_back(self, name: str) -> None:
        """Starts a lost node's kubelet and kube-proxy anew, whether or not its Node was deleted, and waits for it."""
        one = self.node_named(name)
        node.stop(one, "kubelet", "kube-proxy")
        node.start_kubelet(one, self.programs)
        node.start_proxy(one, self.programs)
        self._wait_ready(one)

    def writes(self, since: float) -> Iterator[dict[str, Any]]:
        """The API server's audit events since a Unix time: every request but get, list and watch."""
        with self.layout.audit_log.open(encoding="utf-8") as log:
            for line in log:
                event = json.loads(line)
                if datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp() >= since:
                    yield event

    def leftovers(self) -> list[str]:
        """What of it is on this machine: processes, mounts, namespaces, cgroups, folders. Empty after `down`."""
        layout = self.layout
        deadline = time.monotonic() + 2  # a killed process takes a moment to go
        while (
            pids := [f"process {pid} {program}" for pid, program in naming(layout.home)]
        ) and time.monotonic() < deadline:
            time.sleep(0.05)
        mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if f"{layout.home}/" in line]
        names = {layout.netns, *(layout.node(number).netns for number in range(1, 10))}
        spaces = [str(path) for path in Path("/run/netns").glob("*") if path.name in names]
        patterns = (f"testbed-{layout.name}-*", f"*/testbed-{layout.name}-*")  # cgroup v2, v1
        groups = [str(path) for pattern in patterns for path in node.CGROUPS.glob(pattern)]
        results = [str(path) for path in CNI_RESULTS.glob(f"{layout.name}-*")]
        return pids + mounts + spaces + groups + results + ([str(layout.home)] if layout.home.exists() else [])
