"""`python -m paceline_operator`: the operator, until SIGTERM or SIGINT.

It waits for its Lease before it acts, and stops when it loses it. Invariant: whatever keeps it from running is one line
on stderr that says what to do, and exit code 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paceline_engine.http1 import serve
from paceline_router.kube import ConfigError, Kube
from paceline_router.leading import Work, lead, run
from paceline_router.lease import LeaseLost
from paceline_router.probes import Probes
from prometheus_client import CollectorRegistry

from paceline_operator.loop import Loop
from paceline_operator.metrics import OperatorMetrics
from paceline_operator.settings import MANAGER, Settings, SettingsError, read_accelerators
from paceline_operator.store import WATCHED, follow


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    return run("paceline_operator", lambda: _run(args), ConfigError, SettingsError, LeaseLost, OSError)


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


async def _run(args: argparse.Namespace) -> None:
    settings = Settings(args.control_image, args.engine_image, args.image_pull_policy, args.router_cluster_role)
    if args.accelerators:
        settings = replace(settings, accelerators=read_accelerators(args.accelerators))
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    async with Kube.connect() as kube:
        server = await serve(Probes(registry).handle, args.host, args.port)
        loop = Loop(kube, settings, metrics)

        def acts() -> list[Work]:
            return [*(follow(kube, loop.store, kind, args.namespace) for kind in WATCHED), loop.run()]

        try:
            await lead(kube, MANAGER, acts, metrics.leader)
        finally:
            await server.close()


if __name__ == "__main__":
    sys.exit(main())
