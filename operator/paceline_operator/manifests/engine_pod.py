"""The pod template of an engine, of both runtimes (DESIGN §3, "Engine pods").

The command is the one of `paceline_engine.launch`; what is here is where it runs: probes, drain, volumes, GPUs. The
image's file system is read-only: HOME, caches and /tmp are one writable volume, downloaded weights the claim of
`model.cache` where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

from paceline_api.catalog import Accelerator
from paceline_api.v1alpha1 import LLMService, ModelSpec, PoolSpec, Runtime
from paceline_engine.launch import MODELS_DIR, engine_command
from paceline_planner.launching import DRAIN_NOTICE_S, launch_spec
from paceline_planner.plan import Plan, PoolPlan

from paceline_operator.kinds import Json
from paceline_operator.manifests.merge import merge_template
from paceline_operator.manifests.meta import HTTP, PORT, SCRAPED, Owner, Shard
from paceline_operator.manifests.probe import http_probe
from paceline_operator.manifests.secret import token_env
from paceline_operator.manifests.security import container_security, pod_security

CONTAINER = "engine"  # what a podTemplate calls it
MARGIN_S = 20  # of the grace period, over notice and drain
PROBE_S = 2
HOME = "/home/paceline"
CACHE = "/cache"
SHM_MIB_PER_GPU = 2048  # NCCL and vLLM's own message queues between the workers of one replica
HOST_MIB_PER_GPU = 16384  # the process and its pinned buffers; page cache of weights is reclaimed
SIMULATED_RESOURCES: Json = {"requests": {"cpu": "100m", "memory": "160Mi"}, "limits": {"memory": "512Mi"}}
POD_IP = "$(POD_IP)"  # the kubelet expands it in arguments and in variables that follow its own
ANY_ADDRESS = ("0.0.0.0/0", "::/0")  # pods' addresses; who may name one is decided by the token


@dataclass(frozen=True, slots=True)
class EnginePod:
    """All that the template of one revision of a pool is rendered from."""

    service: LLMService
    plan: Plan
    pool: PoolPlan
    spec: PoolSpec
    accelerator: Accelerator
    image: str
    pull_policy: str

    @property
    def simulated(self) -> bool:
        return self.service.spec.engine.runtime is Runtime.SIMULATED


def engine_template(owner: Owner, shard: Shard, pod: EnginePod) -> Json:
    """The whole template, the pool's own podTemplate merged in."""
    engine = pod.service.spec.engine
    spec: Json = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security(),
        "terminationGracePeriodSeconds": engine.drain_timeout_seconds + DRAIN_NOTICE_S + MARGIN_S,
        "containers": [_container(owner, shard, pod)],
        "volumes": _volumes(pod),
    }
    if not pod.simulated:
        spec["nodeSelector"] = dict(pod.accelerator.node_selector)
        spec["tolerations"] = [dict(toleration) for toleration in pod.accelerator.tolerations]
    metadata = {"labels": {**owner.pod_labels, **shard.labels}, "annotations": dict(SCRAPED)}
    template: Json = {"metadata": metadata, "spec": spec}
    merged = merge_template(template, pod.spec.pod_template or {})
    merged["metadata"]["labels"] |= template["metadata"]["labels"]  # what Services and budgets select by
    return merged


def _container(owner: Owner, shard: Shard, pod: EnginePod) -> Json:
    engine = pod.service.spec.engine
    launch = launch_spec(pod.service, pod.plan, pod.pool)
    launch = replace(
        launch,
        host="0.0.0.0",
        ports=(PORT,),
        revision=shard.revision,
        side_channel_host=POD_IP,
        kv_hosts=ANY_ADDRESS if launch.disaggregated else (),
        drain_notice_s=DRAIN_NOTICE_S,
    )
    command = engine_command(launch, python="python")
    drain = ["python", "-m", "paceline_engine.drain", f"--notice-s={DRAIN_NOTICE_S}"]
    return {
        "name": CONTAINER,
        "image": pod.image,
        "imagePullPolicy": pod.pull_policy,
        "command": list(command.argv),
        "env": _env(owner, pod, command.env),
        "ports": [{"name": HTTP, "containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": http_probe("/health", PROBE_S, ceil(engine.startup_timeout_seconds / PROBE_S)),
        "readinessProbe": http_probe("/readyz", PROBE_S, 2),
        "livenessProbe": http_probe("/health", 10, 6, timeout_s=10),  # a busy engine is no dead one
        "lifecycle": {"preStop": {"exec": {"command": [*drain, f"--timeout-s={engine.drain_timeout_seconds}"]}}},
        "resources": _resources(pod),
        "securityContext": container_security(),
        "volumeMounts": _mounts(pod),
    }


def _env(owner: Owner, pod: EnginePod, own: Mapping[str, str]) -> list[Json]:
    model = pod.service.spec.model
    values = {
        "HOME": HOME,
        "TMPDIR": "/tmp",
        "XDG_CACHE_HOME": f"{HOME}/.cache",
        "HF_HOME": f"{CACHE}/huggingface" if model.cache else f"{HOME}/.cache/huggingface",
    }
    if model.cache and not pod.simulated:
        values["VLLM_CACHE_ROOT"] = f"{CACHE}/vllm"  # what a replica has compiled, the next one need not
    env: list[Json] = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
        token_env(owner),
        *({"name": name, "value": value} for name, value in {**values, **own}.items()),
    ]
    if model.token_secret:  # of simulated engines too: what is missing shows before there are GPUs
        secret = {"name": model.token_secret.name, "key": model.token_secret.key}
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": secret}})
    return env


def _resources(pod: EnginePod) -> Json:
    if pod.simulated:
        return SIMULATED_RESOURCES
    gpus = pod.pool.gpus_per_replica
    memory = f"{(HOST_MIB_PER_GPU + SHM_MIB_PER_GPU) * gpus // 1024}Gi"
    devices = {pod.accelerator.resource_name: str(gpus)}
    return {"requests": {"cpu": str(2 * gpus), "memory": memory, **devices}, "limits": {"memory": memory, **devices}}


def _claims(model: ModelSpec) -> list[tuple[str, str, str, bool]]:
    """Volume, claim, where it is mounted, and whether only to be read."""
    found = []
    if model.uri.startswith("pvc://"):
        claim = model.uri.removeprefix("pvc://").split("/", 1)[0]
        found.append(("model", claim, f"{MODELS_DIR}/{claim}", True))
    if model.cache:
        found.append(("cache", model.cache.claim_name, CACHE, False))
    return found


def _volumes(pod: EnginePod) -> list[Json]:
    volumes: list[Json] = [{"name": "home", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
    if pod.simulated:
        return volumes
    shm = f"{SHM_MIB_PER_GPU * pod.pool.gpus_per_replica // 1024}Gi"
    volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm}})
    for name, claim, _, read_only in _claims(pod.service.spec.model):
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}})
    return volumes


def _mounts(pod: EnginePod) -> list[Json]:
    mounts: list[Json] = [{"name": "home", "mountPath": HOME}, {"name": "tmp", "mountPath": "/tmp"}]
    if pod.simulated:
        return mounts
    mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    for name, _, path, read_only in _claims(pod.service.spec.model):
        mounts.append({"name": name, "mountPath": path, "readOnly": read_only})
    return mounts
