"""`paceline up FILE`: the fleet of one LLMService file as local processes, until Ctrl-C or SIGTERM.

Everything that can be wrong is told before a process is started: the file (every problem at once), the plan, what this
machine lacks, the port. Exit codes: 0 drained, 1 a process, the machine or the port failed, 2 the file or the flags,
130 stopped before it was ready or forced by a second Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import math
import os
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import yaml
from paceline_api.v1alpha1 import LLMService, Runtime
from paceline_api.validate import InvalidFile, load_service, parse_service
from paceline_planner.plan import Infeasible, Plan, plan

from paceline_cli.layout import Layout, lay_out

RUNTIMES = {"simulated": Runtime.SIMULATED, "vllm": Runtime.VLLM}


class CannotRun(Exception):
    """What to print, a line each, and the exit code."""

    def __init__(self, code: int, *lines: str) -> None:
        self.code = code
        self.lines = lines
        super().__init__("\n".join(lines))


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand; its `run` is found at `args.run`."""
    summary = "start the fleet of an LLMService file on this machine and serve it"
    parser = subparsers.add_parser("up", help=summary, description=f"{summary}, until Ctrl-C")
    parser.add_argument("file", metavar="FILE", help="YAML with one LLMService, as a cluster takes it")
    parser.add_argument("--host", default="127.0.0.1", help="address that the router listens on (%(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="of the router (%(default)s); 0: any free one")
    parser.add_argument("--time-scale", type=_scale, default=1.0, metavar="S", help="model time / wall (%(default)s)")
    parser.add_argument("--engine", choices=sorted(RUNTIMES), help="instead of the file's engine.runtime")
    parser.add_argument("--model", metavar="URI", help="instead of the file's: hf://ORG/NAME or file:///PATH")
    parser.add_argument("--url-file", type=Path, metavar="FILE", help="holds the URL while the fleet is ready")
    parser.add_argument("--log", type=Path, metavar="FILE", help="gets every line that router and engines print")
    parser.add_argument("--no-display", action="store_true", help="plain lines on a terminal too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serves until it is stopped; the exit code."""
    try:
        service = read_service(args.file, args.engine, args.model)
        planned = make_plan(service, args.file)
        check_machine(service, args.time_scale)
        devices = choose_devices(service, planned, os.environ.get("CUDA_VISIBLE_DEVICES"))
        port = claim_port(args.host, args.port)
        ports = free_ports(2 * sum(pool.replicas for pool in planned.pools))
        return _serve(lay_out(service, planned, args.host, port, ports, args.time_scale, devices), planned, args)
    except CannotRun as e:
        for text in e.lines:
            print(f"paceline up: {text}", file=sys.stderr)
        return e.code


def read_service(file: str, engine: str | None, model: str | None) -> LLMService:
    """The service in the file, with the runtime and the model of the flags; those are checked as the file is."""
    try:
        service = load_service(file, local=True)
    except InvalidFile as e:
        raise CannotRun(2, *str(e).splitlines()) from e
    if engine is None and model is None:
        return service
    value = service.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if engine:
        value["spec"]["engine"] = value["spec"].get("engine", {}) | {"runtime": RUNTIMES[engine].value}
    if model:  # revision, token and cache are those of the file's own model
        kept = {"servedName", "maxContextTokens"}
        value["spec"]["model"] = {k: v for k, v in value["spec"]["model"].items() if k in kept} | {"uri": model}
    try:
        return parse_service(yaml.safe_dump(value), local=True)
    except InvalidFile as e:
        raise CannotRun(2, *(f"{file} with the flags: {problem}" for problem in e.problems)) from e


def make_plan(service: LLMService, file: str) -> Plan:
    """The plan, if something can be served with it."""
    found = plan(service)
    if isinstance(found, Infeasible):
        raise CannotRun(2, *(f"{file}: {o.path}: {o.message}" for o in found.obstacles))
    if empty := found.roles_without_replicas:
        roles = " and ".join(empty)
        raise CannotRun(2, f"{file}: spec.pools: no replica of role {roles}, so nothing is served; raise replicas to 1")
    return found


def check_machine(service: LLMService, time_scale: float) -> None:
    """What `up` needs of this machine beyond what a cluster needs of the file."""
    if service.spec.engine.runtime is Runtime.SIMULATED:
        return
    if time_scale != 1:
        raise CannotRun(2, "--time-scale is for simulated engines; leave it out, or add --engine simulated")
    if service.spec.model.uri.startswith("pvc://"):
        raise CannotRun(
            2, "a pvc:// model is on a cluster's volume; name one with --model hf://ORG/NAME or file:///PATH"
        )
    if shutil.which("vllm") is None:
        raise CannotRun(1, "vllm is not installed here (no command `vllm`); install it, or add --engine simulated")


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


def _serve(layout: Layout, planned: Plan, args: argparse.Namespace) -> int:
    from paceline_cli.display import make_display
    from paceline_cli.fleet import NotReady, run_fleet
    from paceline_cli.processes import ChildDied

    with ExitStack() as stack:
        on_line = _open_log(args.log, stack)
        if args.url_file:
            _check_writable(args.url_file)
        display = make_display(sys.stdout, layout.title, plain=args.no_display)
        stack.callback(display.close)
        for warning in planned.warnings:
            display.event("warning", cause=warning)
        display.event("plan", topology=planned.topology, gpus=planned.gpus, reason=planned.reason)
        try:
            return asyncio.run(run_fleet(layout, display, on_line, args.url_file))
        except ChildDied as e:
            display.close()
            earlier = [f"  {text}" for text in e.ended.tail[:-1]]
            hint = "change what it names, or see all that is printed with --log FILE"
            raise CannotRun(1, *earlier, f"{e}; {hint}") from e
        except NotReady as e:
            display.close()
            raise CannotRun(1, str(e)) from e


def _open_log(path: Path | None, stack: ExitStack) -> Callable[[str, str], None]:
    """Where the children's lines go."""
    if path is None:
        return lambda name, text: None
    try:
        log = stack.enter_context(path.open("w", encoding="utf-8", buffering=1))
    except OSError as e:
        raise CannotRun(1, f"--log {path} cannot be written: {e.strerror}; name another file") from e
    return lambda name, text: print(f"{name}: {text}", file=log)


def _check_writable(path: Path) -> None:
    """Told now rather than when all is ready; and the URL of an earlier run must not be there until then."""
    try:
        path.touch()
        path.unlink()
    except OSError as e:
        raise CannotRun(1, f"--url-file {path} cannot be written: {e.strerror}; name another file") from e


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give 0 to 65535")
    return int(text)


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 < scale <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no time scale; give a number above 0, at most 1000")
    return scale
