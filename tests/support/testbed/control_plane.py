"""etcd, API server, controllers, scheduler and CoreDNS, in the cluster's own network namespace.

That namespace is also the router between the nodes. The flags are those of a real cluster, but for what shortens tests:
a node counts as lost after 20 s and its pods are evicted 10 s later; the API server notes every write in its audit log.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from testbed import pki
from testbed.layout import (
    API_SERVICE_IP,
    CONTROL_IP,
    DNS_DOMAIN,
    DNS_SERVICE_IP,
    POD_RANGE,
    SERVICE_RANGE,
    Layout,
)
from testbed.processes import run, start, succeeds, until
from testbed.programs import Programs

ETCD_URL = "http://127.0.0.1:2379"
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}],
}


def network(layout: Layout) -> None:
    """The namespace, and in it the bridge that joins the nodes."""
    run("ip", "netns", "add", layout.netns)
    for command in (
        "ip link set lo up",
        "ip link add nodes type bridge",
        f"ip addr add {CONTROL_IP}/24 dev nodes",
        "ip link set nodes up",
        "ip route add default dev nodes",  # the API server wants a default route; it leads nowhere
        "sysctl -qw net.ipv4.ip_forward=1",
    ):
        run(*command.split(), netns=layout.netns)


def certificates(layout: Layout) -> None:
    pki.authority(layout.pki)
    hosts = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
    names = [f"DNS:{host}" for host in (*hosts, f"kubernetes.default.svc.{DNS_DOMAIN}")]
    addresses = [f"IP:{ip}" for ip in ("127.0.0.1", CONTROL_IP, API_SERVICE_IP)]
    pki.certificate(layout.pki, "apiserver", "/CN=kube-apiserver", [*names, *addresses])
    for name, subject in {
        "admin": "/O=system:masters/CN=admin",
        "controllers": "/CN=system:kube-controller-manager",
        "scheduler": "/CN=system:kube-scheduler",
        "proxy": "/CN=system:kube-proxy",
        "dns": "/O=system:masters/CN=coredns",
    }.items():
        pki.certificate(layout.pki, name, subject)
        pki.kubeconfig(layout.pki, name, layout.home / f"{name}.kubeconfig")


def up(layout: Layout, programs: Programs) -> None:
    """Starts it and waits until the API server is ready."""
    policy = layout.home / "audit-policy.json"
    policy.write_text(json.dumps(AUDIT_POLICY))
    corefile = layout.home / "Corefile"
    corefile.write_text(_corefile(layout))
    layout.resolv_conf.write_text(f"nameserver {CONTROL_IP}\nsearch svc.{DNS_DOMAIN} {DNS_DOMAIN}\noptions ndots:5\n")
    _start(layout, programs, "etcd", "etcd", _etcd(layout))
    _start(layout, programs, "apiserver", "kube-apiserver", _apiserver(layout, policy))
    kubectl = programs.command("kubectl", "--kubeconfig", layout.kubeconfig)
    until("kube-apiserver", lambda: succeeds(*kubectl, "get", "--raw", "/readyz", netns=layout.netns), 60)
    _start(layout, programs, "controllers", "kube-controller-manager", _controllers(layout))
    _start(layout, programs, "scheduler", "kube-scheduler", _config(layout, "scheduler"))
    _start(layout, programs, "dns", "coredns", ["-conf", corefile])
    run(*kubectl, "apply", "-f", "-", netns=layout.netns, stdin=json.dumps(_manifests()))


def _start(layout: Layout, programs: Programs, name: str, program: str, flags: Sequence[str | Path]) -> None:
    argv = programs.command(program, *flags)
    start(argv, layout.netns, layout.logs / f"{name}.log", layout.pids / name, programs.folder("containerd"))


def _etcd(layout: Layout) -> list[str]:
    peer = "http://127.0.0.1:2380"
    urls = ["--listen-client-urls", ETCD_URL, "--advertise-client-urls", ETCD_URL, "--listen-peer-urls", peer]
    return ["--data-dir", f"{layout.home}/etcd", "--unsafe-no-fsync", *urls]


def _apiserver(layout: Layout, policy: Path) -> list[str]:
    flags = {
        "etcd-servers": ETCD_URL,
        "advertise-address": CONTROL_IP,
        "service-cluster-ip-range": SERVICE_RANGE,
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "client-ca-file": f"{layout.pki}/ca.crt",
        "tls-cert-file": f"{layout.pki}/apiserver.crt",
        "tls-private-key-file": f"{layout.pki}/apiserver.key",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": f"{layout.pki}/sa.pub",
        "service-account-signing-key-file": f"{layout.pki}/sa.key",
        "kubelet-client-certificate": f"{layout.pki}/admin.crt",
        "kubelet-client-key": f"{layout.pki}/admin.key",
        "kubelet-preferred-address-types": "InternalIP",
        "default-not-ready-toleration-seconds": "10",
        "default-unreachable-toleration-seconds": "10",
        "audit-policy-file": str(policy),
        "audit-log-path": str(layout.audit_log),
    }
    return [f"--{name}={value}" for name, value in flags.items()]


def _config(layout: Layout, name: str) -> list[str]:
    return [f"--kubeconfig={layout.home}/{name}.kubeconfig", "--leader-elect=false"]


def _controllers(layout: Layout) -> list[str]:
    flags = {
        "use-service-account-credentials": "true",
        "service-account-private-key-file": f"{layout.pki}/sa.key",
        "root-ca-file": f"{layout.pki}/ca.crt",
        "cluster-signing-cert-file": f"{layout.pki}/ca.crt",
        "cluster-signing-key-file": f"{layout.pki}/ca.key",
        "cluster-cidr": POD_RANGE,
        "allocate-node-cidrs": "false",  # each node's range is its number's (layout.py)
        "node-monitor-grace-period": "20s",
    }
    return [*_config(layout, "controllers"), *(f"--{name}={value}" for name, value in flags.items())]


def _corefile(layout: Layout) -> str:
    return f""".:53 {{
  bind {CONTROL_IP}
  errors
  kubernetes {DNS_DOMAIN} in-addr.arpa {{
    kubeconfig {layout.home}/dns.kubeconfig testbed
  }}
}}
"""


def _manifests() -> dict[str, object]:
    """The Service of DNS, whose endpoint is no pod, and kube-proxy's rights."""
    dns = {"name": "kube-dns", "namespace": "kube-system"}
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    rbac = {"apiGroup": "rbac.authorization.k8s.io"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": dns,
        "spec": {"clusterIP": DNS_SERVICE_IP, "ports": ports},
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**dns, "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [{"addresses": [CONTROL_IP]}],
    }
    proxy = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "kube-proxy"},
        "roleRef": {**rbac, "kind": "ClusterRole", "name": "system:node-proxier"},
        "subjects": [{**rbac, "kind": "User", "name": "system:kube-proxy"}],
    }
    return {"apiVersion": "v1", "kind": "List", "items": [service, endpoints, proxy]}
