"""`paceline up FILE`: the fleet of one LLMService file as local processes, until Ctrl-C or SIGTERM.

Everything that can be wrong is told before a process is started: the file (every problem at once), the plan, what this
machine lacks, the port; and so is what of the file this machine cannot run. Exit codes: 0 drained, 1 a process, the
machine or the port failed, 2 the file or the flags, 130 stopped before it was ready or forced by a second Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import yaml
from paceline_api.config import PolicyName
from paceline_api.v1alpha1 import LLMService, Runtime
from paceline_api.validate import InvalidFile, load_service, parse_service
from paceline_planner.launching import policy_called
from paceline_planner.plan import Infeasible, Plan, plan

from paceline_cli.layout import Layout, lay_out
from paceline_cli.machine import (
    CannotRun,
    check_keys,
    check_machine,
    choose_devices,
    claim_port,
    fit_cpu,
    fit_model,
    free_ports,
    say,
    say_left_out,
)

RUNTIMES = {"simulated": Runtime.SIMULATED, "vllm": Runtime.VLLM}


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
    parser.add_argument("--router-policy", choices=get_args(PolicyName), help="instead of the file's router.policy")
    parser.add_argument(
        "--api-keys-dir", type=Path, metavar="DIR", help="requests need a key: a file for each, named as its owner"
    )
    parser.add_argument("--url-file", type=Path, metavar="FILE", help="holds the URL while the fleet is ready")
    parser.add_argument("--log", type=Path, metavar="FILE", help="gets every line that router and engines print")
    parser.add_argument("--no-display", action="store_true", help="plain lines on a terminal too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serves until it is stopped; the exit code."""
    try:
        asked = read_service(args.file, args.engine, args.model, args.router_policy)
        check_keys(args.api_keys_dir)
        say_left_out(asked, args.api_keys_dir)
        service, model = fit_model(asked)
        planned = make_plan(service, args.file)
        program = check_machine(service, args.time_scale)
        devices, cpu = [], None
        if program and program.for_cpu:
            planned, cpu = fit_cpu(service, planned, program, model)
        else:
            devices = choose_devices(service, planned, os.environ.get("CUDA_VISIBLE_DEVICES"))
        port = claim_port(args.host, args.port)
        ports = free_ports(2 * sum(pool.replicas for pool in planned.pools))
        layout = lay_out(service, planned, args.host, port, ports, args.time_scale, devices, cpu)
        layout = layout.with_keys(args.api_keys_dir)
        return _serve(layout, planned, args)
    except CannotRun as e:
        for text in e.lines:
            say(text)
        return e.code


def read_service(
    file: str, engine: str | None = None, model: str | None = None, router_policy: PolicyName | None = None
) -> LLMService:
    """The service in the file, with what the flags say in its place; that is checked as the file is."""
    try:
        service = load_service(file, local=True)
    except InvalidFile as e:
        raise CannotRun(2, *str(e).splitlines()) from e
    if engine is None and model is None and router_policy is None:
        return service
    value = service.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if engine and RUNTIMES[engine] is not service.spec.engine.runtime:  # extraArgs are flags of the other runtime
        kept = {k: v for k, v in value["spec"].get("engine", {}).items() if k != "extraArgs"}
        value["spec"]["engine"] = kept | {"runtime": RUNTIMES[engine].value}
    if model:  # revision, token and cache are those of the file's own model
        own = {k: v for k, v in value["spec"]["model"].items() if k in ("servedName", "maxContextTokens")}
        value["spec"]["model"] = own | {"uri": model}
    if router_policy:
        value["spec"]["router"] = value["spec"].get("router", {}) | {"policy": policy_called(router_policy).value}
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
        display.event("plan", topology=planned.topology, gpus=dict(layout.facts)["gpus"], reason=planned.reason)
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
