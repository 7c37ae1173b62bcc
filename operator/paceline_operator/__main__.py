"""`python -m paceline_operator`: the operator, until SIGTERM or SIGINT.

It waits for its Lease before it acts, and stops when it loses it. Invariant: whatever keeps it from running is one line
on stderr that says what to do, and exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import uvloop
from paceline_engine.http1 import serve
from paceline_router.causes import leaves
from paceline_router.kube import ConfigError, Kube
from paceline_router.lease import Lease, LeaseLost
from paceline_router.probes import Probes
from prometheus_client import CollectorRegistry

from paceline_operator.loop import Loop
from paceline_operator.metrics import OperatorMetrics
from paceline_operator.settings import MANAGER, Settings, SettingsError, read_accelerators
from paceline_operator.store import WATCHED, follow

LAST_WRITES_S = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request otherwise
    code = 0
    try:
        settings = Settings(args.control_image, args.engine_image, args.image_pull_policy, args.router_cluster_role)
        if args.accelerators:
            settings = replace(settings, accelerators=read_accelerators(args.accelerators))
        uvloop.run(_run(settings, args))
    except* (ConfigError, SettingsError, LeaseLost, OSError) as group:
        for error in leaves(group):
            print(f"paceline_operator: {error}", file=sys.stderr)
        code = 1
    return code


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m paceline_operator", description="Runs LLMServices on Kubernetes.")
    p.add_argument("--control-image", required=True, help="of routers and simulated engines")
    p.add_argument("--engine-image", default="", help="of vLLM engines whose service names none")
    p.add_argument("--image-pull-policy", default="IfNotPresent", choices=("Always", "IfNotPresent", "Never"))
    p.add_argument("--accelerators", type=Path, metavar="FILE", help="YAML of the chart value (default: built in)")
    p.add_argument("--router-cluster-role", default="paceline-router", help="ClusterRole that routers are bound to")
    p.add_argument("--namespace", default="", help="look at this one only (default: all)")
    p.add_argument("--host", default="0.0.0.0")
    p.add_argument("--port", type=int, default=8080)
    return p


async def _run(settings: Settings, args: argparse.Namespace) -> None:
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    async with Kube.connect() as kube:
        server = await serve(Probes(registry).handle, args.host, args.port)
        namespace = os.environ.get("POD_NAMESPACE") or kube.namespace
        lease = Lease(kube, namespace, MANAGER, os.environ.get("POD_NAME") or socket.gethostname())
        stop = asyncio.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, stop.set)
        loop = Loop(kube, settings, metrics)
        try:
            async with asyncio.TaskGroup() as group:
                acting = group.create_task(_act(kube, loop, lease, metrics, args.namespace))
                await stop.wait()
                acting.cancel()
        finally:
            async with asyncio.timeout(LAST_WRITES_S):
                await lease.release()
            await server.close()


async def _act(kube: Kube, loop: Loop, lease: Lease, metrics: OperatorMetrics, namespace: str) -> None:
    await lease.acquire()
    metrics.leader.set(1)
    async with asyncio.TaskGroup() as group:
        group.create_task(lease.keep())
        for kind in WATCHED:
            group.create_task(follow(kube, loop.store, kind, namespace))
        group.create_task(loop.run())


if __name__ == "__main__":
    sys.exit(main())
