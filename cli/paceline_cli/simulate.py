"""`paceline simulate FILE`: what the fleet of an LLMService file would do under a workload, on a virtual clock.

The report and figure are those of `replay`, marked SIMULATED; the same flags offer the same requests. What-if flags
change the file before it is planned, and are checked as the file is. Exit codes: 0 done, 2 bad input (one line: cause
and what to do).
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import yaml
from paceline_api.v1alpha1 import LLMService
from paceline_api.validate import InvalidFile, load_service, parse_service
from paceline_engine.policies import POLICIES as ENGINE_POLICIES
from paceline_planner import traces, workloads
from paceline_planner.plan import Infeasible, plan
from paceline_planner.report_table import render_table
from paceline_planner.simulate import Offered, Policies, SimulateError, fleet_spec, simulate
from paceline_router.pick import POLICIES as ROUTER_POLICIES
from rich.console import Console

from paceline_cli.workload_flags import (
    OutputError,
    add_output_flags,
    add_workload_flags,
    positive,
    read_outputs,
    read_pace,
    read_workload,
    write_outputs,
)

Json = dict[str, Any]


class WhatIfError(ValueError):
    """A flag that does not fit the file, with what to change; one line a problem."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand; its `run` is found at `args.run`."""
    summary = "serve a workload with an LLMService file's fleet on a virtual clock and report goodput"
    parser = subparsers.add_parser("simulate", help=summary, description=summary)
    parser.add_argument("file", metavar="FILE", help="YAML with one LLMService, as a cluster takes it")
    add_workload_flags(parser)
    what_if = parser.add_argument_group("what if")
    what_if.add_argument("--load-factor", type=positive, default=1.0, metavar="F", help="arrivals F times as fast")
    what_if.add_argument("--accelerator", metavar="NAME", help="all pools on this GPU")
    what_if.add_argument("--replicas", action="append", default=[], metavar="POOL=N", help="a pool of this size")
    what_if.add_argument("--ttft-ms", type=positive, metavar="MS", help="another TTFT limit of the class")
    what_if.add_argument("--tpot-ms", type=positive, metavar="MS", help="another TPOT limit of the class")
    what_if.add_argument("--policy", choices=sorted(ENGINE_POLICIES), default=Policies().engine, help="of the engines")
    what_if.add_argument("--router-policy", choices=sorted(ROUTER_POLICIES), default=Policies().router)
    add_output_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Simulates and reports; the exit code as above."""
    try:
        outputs = read_outputs(args)
        service = _changed(load_service(args.file, local=True), args)
        planned = plan(service)
        if isinstance(planned, Infeasible):
            raise WhatIfError("\n".join(f"{o.path}: {o.message}" for o in planned.obstacles))
        spec = fleet_spec(service, planned, Policies(args.policy, args.router_policy))
        report = simulate(spec, _offered(args, service))
        Console().print(render_table(report))
        write_outputs(report, outputs)
    except (InvalidFile, WhatIfError, SimulateError, OutputError, workloads.WorkloadError, traces.TraceError) as e:
        for line in str(e).splitlines():
            print(f"paceline simulate: {line}", file=sys.stderr)
        return 2
    return 0


def _offered(args: argparse.Namespace, service: LLMService) -> Offered:
    workload = read_workload(args)
    rates, duration_s = read_pace(args, workload)
    return Offered(workload, _class(args, service), rates, duration_s, args.load_factor, args.seed, args.clip)


def _class(args: argparse.Namespace, service: LLMService) -> str:
    names = list(service.slo_classes())
    name: str = args.class_name or service.default_class_name
    if name not in names:
        raise WhatIfError(f"there is no SLO class {name!r}; this service has {', '.join(names)}")
    return name


def _changed(service: LLMService, args: argparse.Namespace) -> LLMService:
    """The service with the what-if flags in it, checked as a file is."""
    value: Json = service.model_dump(mode="json", by_alias=True, exclude_unset=True)
    spec = value["spec"]
    slo = next(c for c in spec["slo"]["classes"] if c["name"] == _class(args, service))
    limits = {"ttftMs": args.ttft_ms, "tpotMs": args.tpot_ms}
    slo |= {name: round(limit) for name, limit in limits.items() if limit}
    pools = {pool["name"]: pool for pool in spec["pools"]}
    if args.accelerator:
        for pool in pools.values():
            pool["accelerator"] = args.accelerator
    for wish in args.replicas:
        name, _, count = wish.partition("=")
        if name not in pools or not count.isdecimal():
            raise WhatIfError(f"--replicas {wish!r}: write POOL=N with a pool of {', '.join(pools)}")
        pools[name].pop("minReplicas", None)
        pools[name].pop("maxReplicas", None)
        pools[name]["replicas"] = int(count)
    if value == service.model_dump(mode="json", by_alias=True, exclude_unset=True):
        return service
    spec.pop("maxGPUs", None)  # a what-if asks what it would take
    try:
        return parse_service(yaml.safe_dump(value), local=True)
    except InvalidFile as e:
        raise WhatIfError("\n".join(f"{args.file} with the flags: {problem}" for problem in e.problems)) from e
