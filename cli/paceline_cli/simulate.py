"""`paceline simulate FILE`: what the fleet of an LLMService file would do under a workload, on a virtual clock.

The report and figure are those of `replay`, marked SIMULATED; the same flags offer the same requests. What-if flags
change the file before it is planned, and are checked as the file is. Exit codes: 0 done, 2 bad input (one line: cause
and what to do).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from paceline_api.v1alpha1 import LLMService
from paceline_api.validate import InvalidFile, load_service, parse_service
from paceline_engine.policies import POLICIES as ENGINE_POLICIES
from paceline_planner import traces, workloads
from paceline_planner.launching import policy_called
from paceline_planner.plan import Infeasible, plan
from paceline_planner.report_table import render_table
from paceline_planner.roofline.shape import Shape, from_config
from paceline_planner.sim.autoscaler import Rhythm
from paceline_planner.sim.members import StartUp
from paceline_planner.sim.rides import FleetSpec
from paceline_planner.sim.what_if import Failure, WhatIf
from paceline_planner.simulate import (
    ENGINE_POLICY,
    Offered,
    SimulateError,
    declared,
    fleet_spec,
    pool_specs,
    simulate,
)
from paceline_planner.step_tables import CATALOGUE, Tables
from paceline_router.pick import POLICIES as ROUTER_POLICIES
from rich.console import Console

from paceline_cli.workload_flags import (
    OutputError,
    add_output_flags,
    add_workload_flags,
    natural,
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
    what_if.add_argument(
        "--model-config", type=Path, metavar="FILE", help="another model, by its config.json; step times by a roofline"
    )
    what_if.add_argument("--accelerator", metavar="NAME", help="all pools on this GPU")
    what_if.add_argument("--replicas", action="append", default=[], metavar="POOL=N", help="a pool of this size")
    what_if.add_argument("--ttft-ms", type=positive, metavar="MS", help="another TTFT limit of the class")
    what_if.add_argument("--tpot-ms", type=positive, metavar="MS", help="another TPOT limit of the class")
    what_if.add_argument("--policy", choices=sorted(ENGINE_POLICIES), default=ENGINE_POLICY, help="of the engines")
    what_if.add_argument("--router-policy", choices=sorted(ROUTER_POLICIES), help="of the routers")
    what_if.add_argument("--routers", type=_count, default=1, metavar="N", help="that share the load (%(default)s)")
    what_if.add_argument(
        "--fail", action="append", default=[], metavar="NAME@S", help="a replica (decode-0@60), or a pool's, die"
    )
    what_if.add_argument("--no-return", action="store_true", help="what has died is not replaced")
    what_if.add_argument(
        "--kv-failures", type=_share, default=0.0, metavar="P", help="this share of KV transfers fail, 0 to 1"
    )
    what_if.add_argument("--autoscale", action="store_true", help="the autoscaler sizes pools, from their first sizes")
    what_if.add_argument(
        "--start-s", type=positive, metavar="S", help="start-up of a replica (30 and the weights at 2 GB/s)"
    )
    add_output_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Simulates and reports; the exit code as above."""
    try:
        outputs = read_outputs(args)
        service = _changed(load_service(args.file, local=True), args)
        tables = Tables(_own_model(args.model_config)) if args.model_config else CATALOGUE
        planned = plan(service, tables=tables)
        if isinstance(planned, Infeasible):
            raise WhatIfError("\n".join(f"{o.path}: {o.message}" for o in planned.obstacles))
        spec = fleet_spec(service, planned, args.policy, tables)
        spec = replace(spec, routers=args.routers, kv_failure_ratio=args.kv_failures)
        report = simulate(spec, _offered(args, service), _what_if(args, service, spec, tables))
        for warning in planned.warnings:
            print(f"paceline simulate: warning: {warning}", file=sys.stderr)
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


def _own_model(path: Path) -> Shape:
    """The model that a config.json describes, named after the file, or its folder."""
    try:
        name = path.parent.resolve().name if path.stem == "config" else path.stem
        return from_config(json.loads(path.read_bytes()), name)
    except OSError as e:
        raise WhatIfError(f"--model-config {path}: {e.strerror}; name the model's config.json") from e
    except (ValueError, TypeError, AttributeError) as e:
        raise WhatIfError(f"--model-config {path}: {e}; give a config.json as Hugging Face has it") from e


def _what_if(args: argparse.Namespace, service: LLMService, spec: FleetSpec, tables: Tables) -> WhatIf:
    model = tables.model(service.spec.model.uri)
    start = StartUp(args.start_s) if args.start_s else StartUp.of_weights(model.weight_bytes if model else 0)
    rhythm = Rhythm(stabilisation_s=service.spec.autoscaling.scale_down_stabilization_seconds)
    pools = pool_specs(service, spec, start)
    if args.autoscale and all(pool.least == pool.most for pool in pools):
        raise WhatIfError("every pool has a fixed size; --autoscale needs one with minReplicas and maxReplicas")
    return WhatIf(
        pools,
        tuple(_failure(text) for text in args.fail),
        comes_back=not args.no_return,
        rhythm=rhythm if args.autoscale else None,
        declared=declared(service),
    )


def _failure(text: str) -> Failure:
    name, _, at = text.partition("@")
    try:
        return Failure(name, positive(at))
    except argparse.ArgumentTypeError as e:
        raise WhatIfError(f"--fail {text!r}: write NAME@SECONDS, such as decode-0@60") from e


def _count(text: str) -> int:
    count = natural(text)
    if not 1 <= count <= 64:
        raise argparse.ArgumentTypeError(f"{text} is no number of routers; give 1 to 64")
    return count


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; give 0 to 1")
    return share


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
    if args.router_policy:
        spec["router"] = spec.get("router", {}) | {"policy": policy_called(args.router_policy).value}
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
