"""What `paceline up` takes of this machine: the vLLM and the model that are here, GPUs or a share of the CPU, ports.

What does not fit is a CannotRun with what to do about it; what fits only in part is cut, and said on stderr. Simulated
engines need nothing but ports. Invariant: nothing is started and no file written here.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import ExitStack, closing
from pathlib import Path

from paceline_api.config import ConfigError
from paceline_api.v1alpha1 import LLMService, Runtime
from paceline_planner.plan import Plan
from paceline_router.api_keys import APIKeys

from paceline_cli.on_cpu import CPU, make_cpu, shrink
from paceline_cli.vllm_here import ModelFolder, NotHere, Program, clip_context, find_program, read_model


class CannotRun(Exception):
    """What to print, a line each, and the exit code."""

    def __init__(self, code: int, *lines: str) -> None:
        self.code = code
        self.lines = lines
        super().__init__("\n".join(lines))


def say(text: str) -> None:
    print(f"paceline up: {text}", file=sys.stderr)


def fit_model(service: LLMService) -> tuple[LLMService, ModelFolder | None]:
    """The service, its context clipped to that of a model on this machine, and what that model is; vLLM only."""
    model = service.spec.model
    if service.spec.engine.runtime is Runtime.SIMULATED or not model.uri.startswith("file://"):
        return service, None
    try:
        found = read_model(model.uri)
    except NotHere as e:
        raise CannotRun(2, str(e)) from e
    fitted = clip_context(service, found)
    if fitted is not service:
        takes = fitted.spec.model.max_context_tokens
        say(f"context: {takes} tokens, all that {found.name} takes; the file asks for {model.max_context_tokens}")
    return fitted, found


def say_left_out(service: LLMService, api_keys_dir: Path | None) -> None:
    """What of the file names Secrets, which only a cluster has."""
    router = service.spec.router
    if router.api_keys and api_keys_dir is None:
        say("router.apiKeys: left out, its Secret is on a cluster; --api-keys-dir DIR takes files instead")
    if router.tls:
        say("router.tls: left out, its Secret is on a cluster; the router serves plain HTTP here")


def check_keys(folder: Path | None) -> None:
    """The router will find a key where it is told to."""
    try:
        if folder is not None:
            APIKeys(folder)
    except ConfigError as e:
        raise CannotRun(2, f"--api-keys-dir: {e}") from e


def check_machine(service: LLMService, time_scale: float) -> Program | None:
    """The vLLM that will run, if one is to: what `up` needs of this machine beyond what a cluster needs of the file."""
    if service.spec.engine.runtime is Runtime.SIMULATED:
        return None
    if time_scale != 1:
        raise CannotRun(2, "--time-scale is for simulated engines; leave it out, or add --engine simulated")
    if service.spec.model.uri.startswith("pvc://"):
        raise CannotRun(
            2, "a pvc:// model is on a cluster's volume; name one with --model hf://ORG/NAME or file:///PATH"
        )
    try:
        return find_program()
    except NotHere as e:
        raise CannotRun(1, str(e)) from e


def fit_cpu(service: LLMService, planned: Plan, program: Program, model: ModelFolder | None) -> tuple[Plan, CPU]:
    """What of the plan runs without a GPU, and what each engine gets of this machine."""
    if model is None:
        uri = service.spec.model.uri
        made = f"; {program.models} has some" if program.models else ""
        raise CannotRun(
            2, f"this vLLM runs on the CPU, {uri} is for GPUs; name a small one with --model file:///DIR{made}"
        )
    fitted = shrink(planned)
    path = f"{program.file.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    context = service.spec.model.max_context_tokens
    cpu = make_cpu(fitted, len(os.sched_getaffinity(0)), context, model.kv_bytes_per_token, path)
    pairs = zip(fitted.pools, planned.pools, strict=True)
    parts = ", ".join(f"{pool.name} {pool.replicas} of {was.replicas}" for pool, was in pairs)
    each = f"each computes with OMP_NUM_THREADS={cpu.threads} and has {cpu.kv_bytes >> 20} MiB for KV"
    say(f"this vLLM runs on the CPU: replicas {parts}; {each}")
    return fitted, cpu


def choose_devices(service: LLMService, planned: Plan, visible: str | None) -> list[str]:
    """GPUs for vLLM: the visible ones, or by number where nothing says which are."""
    if service.spec.engine.runtime is Runtime.SIMULATED or visible is None:
        return [str(i) for i in range(planned.gpus)]
    devices = [name for name in visible.split(",") if name]
    if len(devices) < planned.gpus:
        cause = f"the plan needs {planned.gpus} GPUs and CUDA_VISIBLE_DEVICES names {len(devices)}"
        raise CannotRun(1, f"{cause}; name more, or lower replicas")
    return devices


def claim_port(host: str, port: int) -> int:
    """The port, if the router will be able to listen there; a free one for 0."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind, protocol)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the router does: TIME_WAIT is no one's
            probe.bind(address)
            probe.listen(1)
            return int(probe.getsockname()[1])
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            cause = f"port {port} of {host} is in use; stop what listens there, or take another with --port (0: any)"
        else:
            cause = f"cannot listen on {host}:{port}: {e.strerror}; choose another --host or --port"
        raise CannotRun(1, cause) from e


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
