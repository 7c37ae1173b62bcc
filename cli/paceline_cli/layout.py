"""What `paceline up` runs for a plan: the commands of engines and router, their ports, and the router's configuration.

One process for each simulated pool, one for each vLLM replica, which gets GPUs of its own. Engines listen on loopback,
whatever the router does. Pure: the same service, plan, ports and devices give the same layout.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from paceline_api.config import (
    ClassConfig,
    KVTransferConfig,
    LimitsConfig,
    ReplicaConfig,
    RoleName,
    RouterConfig,
    StaticDiscovery,
)
from paceline_api.v1alpha1 import LLMService, OnFailure, Role, Runtime, Topology
from paceline_engine.launch import LaunchSpec, engine_command
from paceline_planner.plan import Plan, PoolPlan

from paceline_cli.processes import Command

LOOPBACK = "127.0.0.1"
ANYWHERE = ("", "0.0.0.0", "::")
REVISION = "local"
ROLE_NAMES: Mapping[Role, RoleName] = {Role.PREFILL: "prefill", Role.DECODE: "decode", Role.MIXED: "mixed"}
ON_FAILURE: Mapping[OnFailure, Literal["recompute", "fail"]] = {
    OnFailure.RECOMPUTE: "recompute",
    OnFailure.FAIL: "fail",
}


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """One process and the replicas that it serves."""

    command: Command
    urls: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that runs. Timeouts are wall seconds."""

    config: RouterConfig
    engines: tuple[EngineProcess, ...]
    host: str
    port: int
    time_scale: float
    facts: tuple[tuple[str, object], ...]
    startup_timeout_s: float
    simulated: bool

    @property
    def url(self) -> str:
        """Where a client on this machine finds the router."""
        host = LOOPBACK if self.host in ANYWHERE else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def title(self) -> str:
        return f"{self.config.service}{' (SIMULATED)' if self.simulated else ''}"

    @property
    def drain_timeout_s(self) -> float:
        return self.config.limits.drain_timeout_s / self.time_scale

    @property
    def curl(self) -> str:
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": "Say hello"}],
            "max_tokens": 32,
        }
        data = json.dumps(body)  # a served name holds no quote
        return f"curl {self.url}/v1/chat/completions -H 'content-type: application/json' -d '{data}'"

    def router(self, config: Path) -> Command:
        """The router's command, its configuration in the file `config`."""
        flags = ("--host", self.host, "--port", str(self.port), "--time-scale", f"{self.time_scale:g}")
        return Command("router", (sys.executable, "-m", "paceline_router", "--config", str(config), *flags), {})


def lay_out(
    service: LLMService,
    plan: Plan,
    host: str,
    port: int,
    ports: Sequence[int],
    time_scale: float = 1.0,
    devices: Sequence[str] = (),
) -> Layout:
    """The layout of a plan; `ports` are free ones, two a replica, and `devices` the GPUs that vLLM may use."""
    simulated = service.spec.engine.runtime is Runtime.SIMULATED
    free, gpus = iter(ports), iter(devices)
    engines: list[EngineProcess] = []
    replicas: list[ReplicaConfig] = []
    for index, pool in enumerate(p for p in plan.pools if p.replicas):
        spec = replace(_launch(service, plan, pool), seed=index, time_scale=time_scale)
        started = [_simulated(spec, pool, free)] if simulated else _vllm(spec, pool, free, gpus)
        engines += started
        urls = [url for engine in started for url in engine.urls]
        replicas += (_replica(spec, pool, i, url) for i, url in enumerate(urls))
    facts: dict[str, object] = {"topology": plan.topology, "gpus": plan.gpus, "engines": service.spec.engine.runtime}
    if time_scale != 1:
        facts["time_scale"] = f"{time_scale:g}"
    return Layout(
        config=_router_config(service, tuple(replicas)),
        engines=tuple(engines),
        host=host,
        port=port,
        time_scale=time_scale,
        facts=tuple(facts.items()),
        startup_timeout_s=service.spec.engine.startup_timeout_seconds,
        simulated=simulated,
    )


def _simulated(spec: LaunchSpec, pool: PoolPlan, free: Iterator[int]) -> EngineProcess:
    """All replicas of the pool in one process."""
    ports = tuple(next(free) for _ in range(pool.replicas))
    command = engine_command(replace(spec, ports=ports))
    return EngineProcess(Command(pool.name, command.argv, command.env), tuple(map(_url, ports)))


def _vllm(spec: LaunchSpec, pool: PoolPlan, free: Iterator[int], gpus: Iterator[str]) -> list[EngineProcess]:
    """A process for each replica, on the next GPUs."""
    engines = []
    for i in range(pool.replicas):
        port = next(free)
        command = engine_command(replace(spec, ports=(port,), side_channel_port=next(free)))
        own = ",".join(next(gpus) for _ in range(pool.gpus_per_replica))
        env = {**command.env, "CUDA_VISIBLE_DEVICES": own}
        engines.append(EngineProcess(Command(f"{pool.name}-{i}", command.argv, env), (_url(port),)))
    return engines


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


def _replica(spec: LaunchSpec, pool: PoolPlan, index: int, url: str) -> ReplicaConfig:
    name = f"{spec.service}-{pool.name}-{index}"
    gpus = pool.gpus_per_replica
    return ReplicaConfig(name=name, url=url, role=spec.role, pool=pool.name, revision=spec.revision, gpus=gpus)


def _router_config(service: LLMService, replicas: tuple[ReplicaConfig, ...]) -> RouterConfig:
    engine = service.spec.engine
    transfer = engine.kv_transfer
    return RouterConfig(
        service=service.name,
        namespace=service.metadata.namespace,
        model=service.served_name,
        max_context_tokens=service.spec.model.max_context_tokens,
        default_class=service.default_class_name,
        classes=tuple(ClassConfig.of(slo) for slo in service.slo_classes().values()),
        discovery=StaticDiscovery(replicas=replicas),
        kv_transfer=KVTransferConfig(timeout_s=transfer.timeout_ms / 1e3, on_failure=ON_FAILURE[transfer.on_failure]),
        limits=LimitsConfig(drain_timeout_s=engine.drain_timeout_seconds),
    )


def _launch(service: LLMService, plan: Plan, pool: PoolPlan) -> LaunchSpec:
    """All of a pool's launch but its ports."""
    model, engine = service.spec.model, service.spec.engine
    default = service.slo_classes()[service.default_class_name]
    return LaunchSpec(
        runtime=engine.runtime.value,
        service=service.name,
        namespace=service.metadata.namespace,
        pool=pool.name,
        revision=REVISION,
        role=ROLE_NAMES[pool.role],
        model_uri=model.uri,
        model_revision=model.revision,
        served_name=service.served_name,
        max_context_tokens=model.max_context_tokens,
        default_class=default.name,
        default_ttft_s=default.ttft_s,
        default_tpot_s=default.tpot_s,
        host=LOOPBACK,
        tensor=pool.tensor,
        pipeline=pool.pipeline,
        table=pool.table,
        token_budget=plan.token_budget,
        disaggregated=plan.topology is Topology.DISAGGREGATED,
        kv_timeout_ms=engine.kv_transfer.timeout_ms,
        kv_on_failure=ON_FAILURE[engine.kv_transfer.on_failure],
        kv_lease_s=KVTransferConfig().lease_s,
        drain_timeout_s=engine.drain_timeout_seconds,
        extra_args=engine.extra_args,
        side_channel_host=LOOPBACK,
    )
