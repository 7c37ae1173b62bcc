"""How an engine is started: facts of a service and a pool → argv and environment, for both runtimes.

`paceline up` and the operator fill the same `LaunchSpec`, so that what is tried locally is what a cluster runs. The
service's token is not part of it: it comes from the environment that the caller gives (a Secret in a cluster). Facts
about vLLM's flags are those of 0.32. Invariant: the same spec gives the same command, and `extra_args` come last, where
they override. Pure.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

from paceline_engine.vllm import rules

MODELS_DIR = "/models"  # where a pod mounts the claim of a pvc:// model

Runtime = Literal["Simulated", "VLLM"]
Role = Literal["prefill", "decode", "mixed"]


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One engine process. `ports` has one port a replica (0: chosen by the kernel); vLLM serves a single replica.

    `default_*` is the default class; a stall limit of 0 is that of its pace. `token_budget` 0 leaves the budget to the
    engine's policy. Engines that pull KV reach this one at `side_channel_host`; `side_channel_port` is that of NIXL's
    handshake (VLLM). `table` names the machine's step-time table. `kv_hosts` are the hosts and networks that an engine
    may pull KV from, `drain_notice_s` is how long one serves on after it was asked to drain. The other fields from
    `announce` on are the simulated runtime's.
    """

    runtime: Runtime
    service: str
    pool: str
    role: Role
    model_uri: str
    served_name: str
    max_context_tokens: int
    default_class: str
    default_ttft_s: float
    default_tpot_s: float
    default_max_stall_s: float = 0.0
    ports: tuple[int, ...] = (8000,)
    host: str = "127.0.0.1"
    namespace: str = ""
    revision: str = ""
    model_revision: str = ""
    tensor: int = 1
    pipeline: int = 1
    token_budget: int = 0
    disaggregated: bool = False
    kv_timeout_ms: int = 5000
    kv_on_failure: Literal["recompute", "fail"] = "recompute"
    kv_lease_s: float = 30.0
    drain_timeout_s: float = 300.0
    extra_args: tuple[str, ...] = ()
    side_channel_host: str = ""
    side_channel_port: int = 5600
    table: str = ""
    announce: str = ""
    kv_hosts: tuple[str, ...] = ()
    drain_notice_s: float = 0.0
    policy: str = "stall-free"
    time_scale: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Command:
    """`env` is what the process needs beside the caller's own environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


def engine_command(spec: LaunchSpec, python: str = sys.executable) -> Command:
    """The command that starts the engines of `spec` with an interpreter that has Paceline."""
    match spec.runtime:
        case "Simulated":
            return Command((python, "-m", "paceline_engine.sim", *_simulated_flags(spec), *spec.extra_args), {})
        case "VLLM":
            return Command((python, "-m", "paceline_engine.vllm", *_vllm_args(spec), *spec.extra_args), _vllm_env(spec))
        case _:
            assert_never(spec.runtime)


def model_path(uri: str) -> str:
    """What vLLM takes for a model URI: a repository of the hub, or a folder."""
    scheme, _, rest = uri.partition("://")
    match scheme:
        case "hf":
            return rest
        case "pvc":
            return f"{MODELS_DIR}/{rest}"
        case "file":
            return f"/{rest.lstrip('/')}"
        case _:
            return uri


def _simulated_flags(spec: LaunchSpec) -> list[str]:
    flags = {
        "model": spec.model_uri,
        "served-name": spec.served_name,
        "table": spec.table,
        "tensor": spec.tensor,
        "role": spec.role,
        "policy": spec.policy,
        "replicas": len(spec.ports),
        "ports": ",".join(map(str, spec.ports)),
        "host": spec.host,
        "advertise-host": spec.side_channel_host,
        "kv-hosts": ",".join(spec.kv_hosts),
        "max-model-len": spec.max_context_tokens,
        "time-scale": f"{spec.time_scale:g}",
        "seed": spec.seed,
        "token-budget": spec.token_budget,
        "kv-timeout-ms": spec.kv_timeout_ms,
        "kv-on-failure": spec.kv_on_failure,
        "lease-s": f"{spec.kv_lease_s:g}",
        "drain-timeout-s": f"{spec.drain_timeout_s:g}",
        "drain-notice-s": f"{spec.drain_notice_s:g}" if spec.drain_notice_s else "",
        "default-class": spec.default_class,
        "default-ttft-ms": f"{spec.default_ttft_s * 1e3:g}",
        "default-tpot-ms": f"{spec.default_tpot_s * 1e3:g}",
        "default-max-stall-ms": f"{spec.default_max_stall_s * 1e3:g}" if spec.default_max_stall_s else "",
        "service": spec.service,
        "namespace": spec.namespace,
        "pool": spec.pool,
        "revision": spec.revision,
        "announce": spec.announce,
    }
    return [f"--{name}={value}" for name, value in flags.items() if value != ""]


def _vllm_args(spec: LaunchSpec) -> list[str]:
    if len(spec.ports) != 1:
        raise ValueError(f"vLLM serves one replica a process, got {len(spec.ports)} ports")
    args = [model_path(spec.model_uri)]
    if spec.model_revision:
        args.append(f"--revision={spec.model_revision}")
    args += [
        f"--served-model-name={spec.served_name}",
        f"--host={spec.host}",
        f"--port={spec.ports[0]}",
        f"--max-model-len={spec.max_context_tokens}",
        f"--tensor-parallel-size={spec.tensor}",
        f"--pipeline-parallel-size={spec.pipeline}",
        f"--shutdown-timeout={spec.drain_timeout_s:.0f}",  # the default, 0, leaves open streams hanging
        "--middleware=paceline_engine.vllm.border.Border",
        "--scheduler-cls=paceline_engine.vllm.scheduler.stall_free",
        f"--additional-config={_json({'paceline': _plugin_settings(spec)})}",
    ]
    if spec.token_budget:
        args.append(f"--max-num-batched-tokens={spec.token_budget}")
    if spec.disaggregated:
        args.append(f"--kv-transfer-config={_kv_transfer_config(spec)}")
    return args


def _kv_transfer_config(spec: LaunchSpec) -> str:
    """vLLM's flag for NIXL, which takes the direction of a hand-over from each request: hence `kv_both`."""
    config = {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": spec.kv_on_failure,
        "kv_connector_extra_config": {"kv_lease_duration": round(spec.kv_lease_s)},
    }
    return _json(config)


def _plugin_settings(spec: LaunchSpec) -> dict[str, str | float]:
    """What `paceline_engine.vllm.settings` reads."""
    settings: dict[str, str | float] = {
        "service": spec.service,
        "namespace": spec.namespace,
        "pool": spec.pool,
        "role": spec.role,
        "revision": spec.revision,
        "default_class": spec.default_class,
        "default_ttft_ms": round(spec.default_ttft_s * 1e3, 3),
        "default_tpot_ms": round(spec.default_tpot_s * 1e3, 3),
        "default_max_stall_ms": round(spec.default_max_stall_s * 1e3, 3) or "",
        "table": spec.table,
        "table_model": spec.model_uri if spec.table else "",
        "tensor": spec.tensor,
    }
    return {key: value for key, value in settings.items() if value != ""}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _vllm_env(spec: LaunchSpec) -> dict[str, str]:
    env = {"VLLM_NO_USAGE_STATS": "1"}
    env[rules.DRAIN_TIMEOUT_S] = f"{spec.drain_timeout_s:g}"
    if spec.drain_notice_s:
        env[rules.DRAIN_NOTICE_S] = f"{spec.drain_notice_s:g}"
    if spec.kv_hosts:
        env[rules.KV_HOSTS] = ",".join(spec.kv_hosts)
    if spec.disaggregated:
        env[rules.KV_LEASE_S] = f"{spec.kv_lease_s:g}"
        env[rules.KV_ON_FAILURE] = spec.kv_on_failure
        env["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(spec.side_channel_port)
        if spec.side_channel_host:
            env["VLLM_NIXL_SIDE_CHANNEL_HOST"] = spec.side_channel_host
    return env
