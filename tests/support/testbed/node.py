"""One node: a network namespace on the cluster's bridge, and in it containerd, kubelet and kube-proxy.

Each has its own image store, cgroup root and pod range. Pods are linked point to point (CNI `ptp`), so that every
packet, also one to a Service's pod on the same node, passes the node's netfilter.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from testbed import pki
from testbed.layout import CONTROL_IP, DNS_DOMAIN, DNS_SERVICE_IP, IMAGE, POD_RANGE, NodeLayout
from testbed.processes import kill, pid_of, run, start, succeeds, until
from testbed.programs import Programs

CGROUPS = Path("/sys/fs/cgroup")
CNI_PLUGINS = Path("/usr/lib/cni")
GPU_LABELS = "nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3"  # fake: what a VLLM pool's node selector asks for


def network(node: NodeLayout) -> None:
    """The node's namespace, on the bridge by a device of its name, and the route to its pods."""
    control = node.cluster.netns
    run("ip", "netns", "add", node.netns)
    link = f"ip link add eth0 netns {node.netns} type veth peer name {node.name} netns {control}"
    run(*link.split())
    for netns, command in (
        (control, f"ip link set {node.name} master nodes up"),
        (control, f"ip route add {node.pods} via {node.ip}"),
        (node.netns, "ip link set lo up"),
        (node.netns, f"ip addr add {node.ip}/24 dev eth0"),
        (node.netns, "ip link set eth0 up"),
        (node.netns, f"ip route add default via {CONTROL_IP}"),
        (node.netns, "sysctl -qw net.ipv4.ip_forward=1"),
    ):
        run(*command.split(), netns=netns)


def certificates(node: NodeLayout) -> None:
    subject = f"/O=system:nodes/CN=system:node:{node.name}"
    pki.certificate(node.cluster.pki, node.name, subject, [f"DNS:{node.name}", f"IP:{node.ip}"])
    pki.kubeconfig(node.cluster.pki, node.name, node.home / "kubeconfig")


def start_containerd(node: NodeLayout, programs: Programs) -> None:
    """Starts it and waits until it answers."""
    for folder in (node.home / "cni", node.containerd):
        folder.mkdir(parents=True, exist_ok=True)
    (node.home / "cni" / "10-pods.conflist").write_text(json.dumps(_cni(node)))
    (node.containerd / "config.toml").write_text(_containerd(node))
    _start(node, programs, "containerd", ["--config", f"{node.containerd}/config.toml"])
    version = programs.command("ctr", "--address", node.socket, "version")
    until(f"containerd of {node.name}", lambda: succeeds(*version), 30)


def start_kubelet(node: NodeLayout, programs: Programs) -> None:
    _make_cgroups(node)
    config = node.home / "kubelet.json"
    config.write_text(json.dumps(_kubelet(node), indent=1))
    paths = ["--kubeconfig", f"{node.home}/kubeconfig", "--root-dir", f"{node.home}/kubelet"]
    paths += ["--cert-dir", f"{node.cluster.pki}", "--config", f"{config}"]
    names = ["--hostname-override", node.name, "--node-ip", node.ip, "--node-labels", GPU_LABELS]
    _start(node, programs, "kubelet", [*paths, *names])


def start_proxy(node: NodeLayout, programs: Programs) -> None:
    flags = ["--kubeconfig", str(node.cluster.home / "proxy.kubeconfig"), "--hostname-override", node.name]
    flags += ["--proxy-mode", "nftables", "--cluster-cidr", POD_RANGE]
    _start(node, programs, "kube-proxy", [*flags, "--conntrack-max-per-core", "0", "--oom-score-adj", "0"])


def load_image(node: NodeLayout, programs: Programs, archive: Path) -> None:
    """Imports an OCI archive into the node's store, unpacked; once for each state of the file."""
    stat = archive.stat()
    loaded, stamp = node.home / "loaded", f"{archive} {stat.st_size} {stat.st_mtime_ns}\n"
    if loaded.exists() and stamp in loaded.read_text():
        return
    ctr = programs.command("ctr", "--address", node.socket, "--namespace", "k8s.io")
    run(*ctr, "images", "import", archive)
    with loaded.open("a") as file:
        file.write(stamp)


def pid_file(node: NodeLayout, program: str) -> Path:
    return node.cluster.pids / f"{node.name}-{program}"


def stop(node: NodeLayout, *programs: str) -> None:
    """SIGKILL to those that still run."""
    kill([pid for program in programs if (pid := pid_of(pid_file(node, program)))])


def lose(node: NodeLayout) -> None:
    """Ends the kubelet and all the node's containers, as a power cut would; the network and containerd stay."""
    stop(node, "kubelet")
    kill_containers(node)


def kill_containers(node: NodeLayout, part: str = "") -> int:
    """SIGKILL to every process of the node's containers whose cgroup's path holds `part`; how many there were."""
    killed: set[int] = set()

    def none_left() -> bool:
        pids = set(_members(node, part))
        kill(pids)
        killed.update(pids)
        return not pids

    until(f"end of the containers of {node.name}", none_left, 20)
    return len(killed)


def remove_cgroups(node: NodeLayout) -> None:
    def gone() -> bool:
        for root in _cgroup_roots(node):
            for folder, _, _ in os.walk(root, topdown=False):
                with suppress(OSError):  # busy for a moment after its last process ended
                    os.rmdir(folder)
        return not _cgroup_roots(node)

    until(f"removal of the cgroups of {node.name}", gone, 10)


def _start(node: NodeLayout, programs: Programs, name: str, flags: list[str]) -> None:
    log = node.cluster.logs / f"{node.name}-{name}.log"
    start(programs.command(name, *flags), node.netns, log, pid_file(node, name), programs.folder("containerd"))


def _cgroup_roots(node: NodeLayout) -> list[Path]:
    """The node's root in each hierarchy: one with cgroup v2, one a controller with v1."""
    if (CGROUPS / "cgroup.controllers").exists():
        candidates = [CGROUPS / node.cgroup]
    else:
        candidates = [hierarchy / node.cgroup for hierarchy in _hierarchies()]
    return [path for path in candidates if path.is_dir()]


def _hierarchies() -> list[Path]:
    return [path for path in sorted(CGROUPS.iterdir()) if path.is_dir() and not path.is_symlink()]


def _make_cgroups(node: NodeLayout) -> None:
    if (CGROUPS / "cgroup.controllers").exists():
        for controller in (CGROUPS / "cgroup.controllers").read_text().split():
            (CGROUPS / "cgroup.subtree_control").write_text(f"+{controller}")
        (CGROUPS / node.cgroup).mkdir(exist_ok=True)
        return
    for hierarchy in _hierarchies():
        (hierarchy / node.cgroup).mkdir(exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):  # v1: empty in a new group, which then takes no process
        value = (CGROUPS / "cpuset" / name).read_text()
        (CGROUPS / "cpuset" / node.cgroup / name).write_text(value)


def _members(node: NodeLayout, part: str) -> Iterator[int]:
    for root in _cgroup_roots(node):
        for folder, _, _ in os.walk(root):  # which passes over groups that go meanwhile
            if part in folder:
                with suppress(OSError):
                    yield from (int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split())


def _cni(node: NodeLayout) -> dict[str, object]:
    ranges = {"ranges": [[{"subnet": node.pods}]], "routes": [{"dst": "0.0.0.0/0"}]}
    ipam = {"type": "host-local", **ranges, "dataDir": f"{node.home}/ipam"}
    return {"cniVersion": "0.4.0", "name": node.netns, "plugins": [{"type": "ptp", "ipam": ipam}]}


def _containerd(node: NodeLayout) -> str:
    runtime = '[plugins."io.containerd.cri.v1.runtime"'
    return f"""version = 3
root = "{node.containerd}/root"
state = "{node.containerd}/state"
[grpc]
  address = "{node.socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{node.containerd}/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{IMAGE}"
{runtime}]
  restrict_oom_score_adj = true  # without CAP_SYS_RESOURCE runc fails: "can't get final child's PID from pipe: EOF"
  netns_mounts_under_state_dir = true
{runtime}.cni]
  bin_dirs = ["{CNI_PLUGINS}"]
  conf_dir = "{node.home}/cni"
{runtime}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
{runtime}.containerd.runtimes.runc.options]
  BinaryName = "{shutil.which("runc")}"
  SystemdCgroup = false
"""


def _kubelet(node: NodeLayout) -> dict[str, object]:
    key = f"{node.cluster.pki}/{node.name}"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{node.socket}",
        "authentication": {
            "anonymous": {"enabled": False},
            "x509": {"clientCAFile": f"{node.cluster.pki}/ca.crt"},
        },
        "tlsCertFile": f"{key}.crt",
        "tlsPrivateKeyFile": f"{key}.key",
        "clusterDNS": [DNS_SERVICE_IP],
        "clusterDomain": DNS_DOMAIN,
        "resolvConf": "",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,  # images are never pulled, so none may be collected
        "podLogsDir": f"{node.home}/pod-logs",
        "volumePluginDir": f"{node.home}/volume-plugins",
    }
