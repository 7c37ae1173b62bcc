"""An LLMService of real vLLM on the test cluster, whose nodes have no GPU: its file, its volume, its questions.

The control image brings Python and Paceline; the environment of `make vllm` is mounted into the pods where it was made,
read-only, with the interpreter that it stands on. The weights lie on a PersistentVolume. Invariant: nothing that a pod
needs is written by it, and no file is changed where it was made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import greedy_client
from fleet_on_cluster import Json, Steps, example
from greedy_client import Asked, Job
from paceline_cli.on_cpu import CPU
from prometheus_client.parser import text_string_to_metric_families
from testbed.cluster import Cluster
from vllm_engine import Environment

MODEL, SERVED = "qwen2-5m", "tiny"
VOLUME = "weights"  # the claim's name; the volume's too
CONTEXT_TOKENS = 8192
KV_BYTES = 64 << 20  # 32,768 tokens of the 5 M model
IMAGE_PATH = "/opt/paceline/bin"  # `python` stays the image's, which has Paceline
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
CACHE_PATH = "/var/cache/vllm"
LIBNUMA = "/usr/lib/x86_64-linux-gnu/libnuma.so.1"  # vLLM's CPU build is linked to it, and the image has none
DRAIN_S = 60
START_S = 240  # of an engine, with another that starts beside it


def readable_copy(model: Path, folder: Path) -> Path:
    """`folder` with the model in it, for any user: the cache may lie where its owner alone may look."""
    copy = folder / model.name
    shutil.copytree(model, copy)
    for path in (folder, copy):
        path.chmod(0o755)
    for path in copy.iterdir():
        path.chmod(0o644)
    return folder


def shared_cache(folder: Path) -> Path:
    """`folder` with what this machine's vLLM found out of its models, for any user; 15 s of each start without it."""
    known = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "vllm", "modelinfos")
    if known.is_dir():
        shutil.copytree(known, folder / known.name)
    for path in (folder, *folder.glob("*")):
        path.chmod(0o777)
    for path in folder.glob("*/*"):
        path.chmod(0o644)
    return folder


def volume(folder: Path, namespace: str) -> list[Json]:
    """A static PersistentVolume over a folder of every node, and the claim that is bound to it."""
    size = {"storage": "1Gi"}
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    spec = {
        "capacity": size,
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": str(folder), "type": "Directory"},
        "claimRef": {"namespace": namespace, "name": VOLUME},
    }
    claim = {"volumeName": VOLUME, "resources": {"requests": size}}
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": VOLUME}, "spec": common | spec},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": VOLUME}, "spec": common | claim},
    ]


def make_vllm_service(name: str, image: str, environment: Environment, cache: Path, nodes: tuple[str, str]) -> Json:
    """One prefill and one decode engine, each on a node of its own. `cache`: a folder that they share."""
    cpu = CPU(threads=1, kv_bytes=KV_BYTES, path=f"{IMAGE_PATH}:{environment.folder / 'bin'}:{SYSTEM_PATH}")
    pool = {"replicas": 1, "accelerator": "h100-sxm", "parallelism": {"tensor": 1}}
    service = example(
        "chat",
        model={"uri": f"pvc://{VOLUME}/{MODEL}", "servedName": SERVED, "maxContextTokens": CONTEXT_TOKENS},
        slo={"classes": [{"name": "any", "ttftMs": 60000, "tpotMs": 2000}]},
        pools=[
            {"name": role.lower(), "role": role, **pool, "podTemplate": pod_template(environment, cpu, cache, node)}
            for role, node in zip(("Prefill", "Decode"), nodes, strict=True)
        ],
        engine={
            "runtime": "VLLM",
            "image": image,
            "extraArgs": [
                *cpu.flags,
                "--no-enable-prefix-caching",
            ],  # each prompt is handed over whole
            "startupTimeoutSeconds": START_S,
            "drainTimeoutSeconds": DRAIN_S,
        },
        autoscaling={"mode": "Disabled"},
    )
    del service["spec"]["workload"]
    service["metadata"]["name"] = name
    return service


def pod_template(environment: Environment, cpu: CPU, cache: Path, node: str) -> Json:
    """The environment at its own path, as its scripts name it; NIXL goes over the pod's own network."""
    interpreter = (environment.folder / "bin" / "python").resolve().parents[1]
    libnuma = next(environment.folder.glob("lib/python3*/site-packages/nixl_cu12.libs/libnuma*"))
    mounted = {"vllm": (environment.folder, str(environment.folder)), "libnuma": (libnuma, LIBNUMA)}
    if interpreter != Path("/usr"):  # else the image's own is there
        mounted["python"] = (interpreter, str(interpreter))
    env = {**cpu.env, "UCX_NET_DEVICES": "eth0", "VLLM_CACHE_ROOT": CACHE_PATH}
    engine = {
        "name": "engine",
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}},  # what a GPU's engine asks for is not here
        "volumeMounts": [
            {"name": "root", "mountPath": "/root"},
            {"name": "known", "mountPath": CACHE_PATH},
            *({"name": name, "mountPath": path, "readOnly": True} for name, (_, path) in mounted.items()),
        ],
    }
    volumes = [
        {"name": "root", "emptyDir": {}},  # the image's own lets nobody pass to what is mounted in it
        {"name": "known", "hostPath": {"path": str(cache)}},
        *({"name": name, "hostPath": {"path": str(source)}} for name, (source, _) in mounted.items()),
    ]
    spec = {"nodeSelector": {"kubernetes.io/hostname": node}, "containers": [engine], "volumes": volumes}
    return {"spec": spec}


def metric(steps: Steps, pod: str, name: str, label: str) -> dict[str, float]:
    """Sums of one pod's metric by the values of a label. CommandFailed where it does not answer."""
    page = steps.kubectl("get", "--raw", f"/api/v1/namespaces/{steps.namespace}/pods/{pod}:8000/proxy/metrics")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name:
                value = sample.labels[label]
                found[value] = found.get(value, 0.0) + sample.value
    return found


def ask_once(cluster: Cluster, url: str, job: Job) -> list[Asked]:
    """In the order of the questions."""
    said = cluster.in_cluster(*_program(url, job), timeout_s=180)
    return sorted((Asked(**asked) for asked in json.loads(said)), key=lambda asked: asked.question)


@contextmanager
def asking(cluster: Cluster, url: str, job: Job) -> Iterator[Callable[[], list[Asked]]]:
    """Questions over and over beside what the block does; calling the result ends them, and says how each ended."""
    command = cluster.from_inside(*_program(url, job))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:

        def end() -> list[Asked]:
            said, _ = client.communicate(timeout=2 * greedy_client.TIMEOUT_S)
            assert client.returncode == 0
            return [Asked(**asked) for asked in json.loads(said)]

        try:
            yield end
        finally:
            client.kill()


def _program(url: str, job: Job) -> tuple[str, ...]:
    return sys.executable, str(Path(greedy_client.__file__)), url, json.dumps(asdict(job))
