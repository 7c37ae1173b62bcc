"""`paceline status NAME`, also `kubectl paceline status NAME`: one look at a service in a cluster.

Reads the LLMService, its EnginePools and its pods once and writes nothing. Exit codes: 0 told, whether ready or not; 1
the cluster or the service cannot be read.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from dataclasses import asdict
from decimal import Decimal

import orjson
from paceline_api.v1alpha1 import API_VERSION, EnginePool, LLMService
from paceline_router import kube
from paceline_router.endpoints import SERVICE_LABEL
from paceline_router.kubeconfig import find_access
from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from paceline_cli.service_view import SCHEMA, ClassView, PoolView, ServiceView, view

PIPE_WIDTH = 160  # columns where no terminal says how many


class CannotTell(Exception):
    """The one line to print."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand; its `run` is found at `args.run`."""
    summary = "show what runs for a service in a cluster, held to which objective, and why it is not ready"
    parser = subparsers.add_parser("status", help=summary, description=summary)
    parser.add_argument("name", metavar="NAME", help="of the LLMService")
    parser.add_argument("-n", "--namespace", default="", metavar="NS", help="instead of the context's")
    parser.add_argument("--context", default="", metavar="NAME", help="of the kubeconfig, instead of its current one")
    parser.add_argument("--json", action="store_true", help=f"print it as JSON, schema {SCHEMA}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the service; the exit code."""
    try:
        found = asyncio.run(read(args.name, args.namespace, args.context))
    except CannotTell as e:
        print(f"paceline status: {e}", file=sys.stderr)
        return 1
    if args.json:
        print(orjson.dumps({"schema": SCHEMA, **asdict(found)}, option=orjson.OPT_INDENT_2).decode())
    else:
        show(found, Console(width=None if sys.stdout.isatty() else PIPE_WIDTH))
    return 0


async def read(name: str, namespace: str, context: str) -> ServiceView:
    """CannotTell with what to do about it."""
    try:
        async with kube.Kube.connect(find_access(context=context)) as client:
            return await gather(client, name, namespace or client.namespace)
    except kube.NotFound as e:
        raise CannotTell(_not_found(e, name)) from e
    except (kube.ConfigError, kube.KubeError) as e:
        raise CannotTell(str(e)) from e
    except ValidationError as e:
        field = ".".join(map(str, e.errors()[0]["loc"]))
        cause = f"{e.errors()[0]['msg']} at {field}"
        raise CannotTell(f"the cluster speaks another version of the API ({cause}); use the chart's version") from e


async def gather(client: kube.Kube, name: str, namespace: str) -> ServiceView:
    """The service and everything with its label."""
    selector = {"labelSelector": f"{SERVICE_LABEL}={name}"}
    service = LLMService.model_validate(await client.get(kube.path_of(API_VERSION, "llmservices", namespace, name)))
    pools = await client.list(kube.path_of(API_VERSION, "enginepools", namespace), selector)
    pods = await client.list(kube.path_of("v1", "pods", namespace), selector)
    return view(service, [EnginePool.model_validate(pool) for pool in pools.objects], pods.objects)


def _not_found(error: kube.NotFound, name: str) -> str:
    if name in error.message:
        return f"{error.message}; list those that exist with kubectl get llm -A, and name its namespace with -n"
    return "the cluster does not know LLMService; install the chart: helm install paceline charts/paceline"


def show(found: ServiceView, console: Console) -> None:
    """The view as text and tables."""
    for line in _head(found):
        console.print(line, soft_wrap=True)
    console.print(_objectives(found.classes))
    console.print(_pools(found.pools))
    if found.causes:
        console.print(Text("Problems" if found.ready else "Why not ready", style="bold"))
        for cause in found.causes:
            console.print(Text(f"  {cause}"), soft_wrap=True)
    if found.scaling.notes or found.scaling.decisions:
        console.print(Text("Autoscaler", style="bold"))
    for said in (*found.scaling.notes, *found.scaling.decisions):
        console.print(Text(f"  {said}"), soft_wrap=True)


def _head(found: ServiceView) -> Iterator[Text]:
    state, style = {True: ("Ready", "bold green"), False: ("Not ready", "bold red"), None: ("Unknown", "bold yellow")}[
        found.ready
    ]
    simulated = " (SIMULATED)" if found.simulated else ""
    yield Text.assemble((f"{found.name}{simulated}", "bold"), f" in {found.namespace}: ", (state, style))
    yield Text(f"model     {found.model}")
    yield Text(f"url       {found.url or '-'}")
    predicted = found.predicted_attainment_percent
    expects = f"; expects {predicted} % attained" if predicted else ""
    yield Text(f"topology  {found.topology}{expects}{f' ({found.plan_reason})' if found.plan_reason else ''}")
    yield Text(f"routers   {found.routers_ready} of {found.routers_desired} ready")
    yield Text(f"scaling   {found.scaling.mode}")


def _objectives(classes: tuple[ClassView, ...]) -> Table:
    table = _table("class", "TTFT ms", "TPOT ms", "target %", "attained %", "good/s", "TTFT p90", "TPOT p90")
    for c in classes:
        grows = f" + {c.ttft_ms_per_1k_prompt_tokens}/1k tokens" if c.ttft_ms_per_1k_prompt_tokens else ""
        missed = c.attainment_percent is not None and Decimal(c.attainment_percent) < Decimal(c.target_percent)
        measured = (c.goodput_per_second, c.ttft_p90_ms, c.tpot_p90_ms)
        table.add_row(
            f"{c.name}{' (default)' if c.is_default else ''}",
            f"{c.ttft_ms}{grows}",
            str(c.tpot_ms),
            c.target_percent,
            Text(_or_dash(c.attainment_percent), style="red" if missed else ""),
            *(_or_dash(value) for value in measured),
        )
    return table


def _pools(pools: tuple[PoolView, ...]) -> Table:
    table = _table("pool", "role", "accelerator", "GPUs", "ready", "revision", "image")
    for pool in pools:
        gpus = None if pool.tensor is None or pool.pipeline is None else pool.tensor * pool.pipeline
        ready = "-" if pool.desired is None else f"{pool.ready} of {pool.desired}"
        done = pool.desired is not None and pool.ready is not None and pool.ready >= pool.desired
        table.add_row(
            pool.name,
            pool.role,
            pool.accelerator,
            _or_dash(gpus),
            Text(ready, style="green" if done else "yellow"),
            pool.revision or "-",
            pool.image or "-",
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(first, *others, box=SIMPLE_HEAD, pad_edge=False)
    table.columns[-1].overflow = "fold"
    return table


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)
