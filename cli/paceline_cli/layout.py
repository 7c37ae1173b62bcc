"""What `paceline up` runs for a plan: the commands of engines and router, their ports, and the router's configuration.

One process for each simulated pool, one for each vLLM replica, which gets GPUs of its own or a share of the CPU.
Engines listen on loopback, whatever the router does. Pure: the same service, plan, ports and devices give the same
layout.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paceline_api.config import ReplicaConfig, RouterConfig, StaticDiscovery
from paceline_api.v1alpha1 import LLMService, Runtime
from paceline_engine.launch import LaunchSpec, engine_command
from paceline_planner.launching import launch_spec, router_config
from paceline_planner.plan import Plan, PoolPlan

from paceline_cli.on_cpu import CPU
from paceline_cli.processes import Command

LOOPBACK = "127.0.0.1"
ANYWHERE = ("", "0.0.0.0", "::")
REVISION = "local"


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
        key = " -H 'authorization: Bearer KEY'" if self.config.api_keys_dir else ""
        return f"curl {self.url}/v1/chat/completions{key} -H 'content-type: application/json' -d '{data}'"

    def with_keys(self, folder: Path | None) -> Layout:
        """The same with a router that asks for the API keys in `folder`; None: for none."""
        found = folder and folder.resolve()
        return replace(self, config=self.config.model_copy(update={"api_keys_dir": found}))

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
    cpu: CPU | None = None,
) -> Layout:
    """The layout of a plan; `ports` are free ones, two a replica. vLLM runs on the GPUs `devices`, or on `cpu`."""
    simulated = service.spec.engine.runtime is Runtime.SIMULATED
    free, gpus = iter(ports), iter(devices)
    engines: list[EngineProcess] = []
    replicas: list[ReplicaConfig] = []
    for index, pool in enumerate(p for p in plan.pools if p.replicas):
        spec = replace(_launch(service, plan, pool), seed=index, time_scale=time_scale)
        started = [_simulated(spec, pool, free)] if simulated else _vllm(spec, pool, free, gpus, cpu)
        engines += started
        urls = [url for engine in started for url in engine.urls]
        replicas += (_replica(spec, pool, i, url) for i, url in enumerate(urls))
    facts: dict[str, object] = {"topology": plan.topology, "gpus": plan.gpus, "engines": service.spec.engine.runtime}
    if cpu:
        facts |= {"gpus": 0, "threads_per_engine": cpu.threads}
    if time_scale != 1:
        facts["time_scale"] = f"{time_scale:g}"
    return Layout(
        config=router_config(service, StaticDiscovery(replicas=tuple(replicas))),
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


def _vllm(
    spec: LaunchSpec, pool: PoolPlan, free: Iterator[int], gpus: Iterator[str], cpu: CPU | None
) -> list[EngineProcess]:
    """A process for each replica, on the next GPUs, or with its share of the CPU."""
    engines = []
    for i in range(pool.replicas):
        port = next(free)
        spec = replace(spec, ports=(port,), side_channel_port=next(free))
        if cpu:
            command = engine_command(replace(spec, extra_args=(*cpu.flags, *spec.extra_args)))
            own: Mapping[str, str] = cpu.env
        else:
            command = engine_command(spec)
            own = {"CUDA_VISIBLE_DEVICES": ",".join(next(gpus) for _ in range(pool.gpus_per_replica))}
        engines.append(EngineProcess(Command(f"{pool.name}-{i}", command.argv, {**command.env, **own}), (_url(port),)))
    return engines


def _url(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


def _replica(spec: LaunchSpec, pool: PoolPlan, index: int, url: str) -> ReplicaConfig:
    name = f"{spec.service}-{pool.name}-{index}"
    gpus = pool.gpus_per_replica
    return ReplicaConfig(name=name, url=url, role=spec.role, pool=pool.name, revision=spec.revision, gpus=gpus)


def _launch(service: LLMService, plan: Plan, pool: PoolPlan) -> LaunchSpec:
    """All of a pool's launch but its ports."""
    spec = launch_spec(service, plan, pool)
    return replace(spec, revision=REVISION, host=LOOPBACK, side_channel_host=LOOPBACK)
