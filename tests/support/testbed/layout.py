"""Where everything of one test cluster lies: its folder, network namespaces, cgroups and addresses.

The cluster's network namespaces reach each other and nothing else, so two clusters of different names hold the same
addresses side by side. They come from 198.18.0.0/15, the range kept for tests (RFC 2544). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HOMES = Path("/var/lib/paceline-testbed")
CONTROL_IP = "198.18.0.1"  # control plane, DNS, and the router between the nodes
POD_RANGE = "198.18.16.0/20"
SERVICE_RANGE = "198.18.32.0/20"
API_SERVICE_IP = "198.18.32.1"
DNS_SERVICE_IP = "198.18.32.10"
DNS_DOMAIN = "cluster.local"
API_URL = f"https://{CONTROL_IP}:6443"
IMAGE = "localhost/testbed:1"  # pause container and smoke tests


@dataclass(frozen=True, slots=True)
class Layout:
    """One cluster, by its name."""

    name: str = "paceline"

    @property
    def home(self) -> Path:
        return HOMES / self.name

    @property
    def pki(self) -> Path:
        return self.home / "pki"

    @property
    def logs(self) -> Path:
        return self.home / "log"

    @property
    def pids(self) -> Path:
        return self.home / "pid"

    @property
    def kubeconfig(self) -> Path:
        return self.home / "admin.kubeconfig"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.jsonl"

    @property
    def resolv_conf(self) -> Path:
        """For programs that run on this machine but inside the cluster's network."""
        return self.home / "resolv.conf"

    @property
    def netns(self) -> str:
        return self.name

    def node(self, number: int) -> NodeLayout:
        return NodeLayout(self, number)


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """Node `number`, 1 to 9."""

    cluster: Layout
    number: int

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def home(self) -> Path:
        return self.cluster.home / self.name

    @property
    def netns(self) -> str:
        return f"{self.cluster.name}-{self.number}"

    @property
    def ip(self) -> str:
        return f"198.18.0.{10 + self.number}"

    @property
    def pods(self) -> str:
        return f"198.18.{16 + self.number}.0/24"

    @property
    def cgroup(self) -> str:
        """Its own root: kubelets under one root reap each other's pods."""
        return f"testbed-{self.netns}"

    @property
    def containerd(self) -> Path:
        return self.home / "containerd"

    @property
    def socket(self) -> Path:
        return self.containerd / "containerd.sock"
