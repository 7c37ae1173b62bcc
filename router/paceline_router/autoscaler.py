"""`python -m paceline_router.autoscaler`: sizes the pools of all LLMServices, until SIGTERM or SIGINT.

It waits for its Lease before it asks or writes anything, and stops when it loses it. Invariant: whatever keeps it from
running is one line on stderr that says what to do, and exit code 1; a Prometheus that is away does not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from paceline_engine.http1 import serve
from prometheus_client import CollectorRegistry

from paceline_router.autoscale.decide import Pacer
from paceline_router.kube import ConfigError, Kube
from paceline_router.leading import Work, lead, run
from paceline_router.lease import LeaseLost
from paceline_router.probes import Probes
from paceline_router.scaling.actuate import MANAGER, Actuator
from paceline_router.scaling.loop import Loop
from paceline_router.scaling.metrics import AutoscalerMetrics
from paceline_router.scaling.prometheus import Prometheus
from paceline_router.scaling.queries import window_s
from paceline_router.scaling.store import READERS, Store, follow


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    return run("paceline_router.autoscaler", lambda: _run(args), ConfigError, LeaseLost, OSError, ValueError)


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m paceline_router.autoscaler", description="Sizes pools by their load.")
    p.add_argument("--prometheus-url", default="", metavar="URL", help="without one nothing is resized")
    p.add_argument("--prometheus-token-file", type=Path, metavar="FILE", help="bearer token; read again as it changes")
    p.add_argument("--prometheus-ca-file", type=Path, metavar="FILE", help="CA of Prometheus' certificate")
    p.add_argument("--scrape-interval-s", type=_seconds, default=15.0, metavar="S", help="of routers and engines")
    p.add_argument("--interval-s", type=_seconds, default=15.0, metavar="S", help="between two looks")
    p.add_argument(
        "--manual-hold-s", type=float, default=900.0, metavar="S", help="for how long a size set by others is kept"
    )
    p.add_argument("--namespace", default="", help="look at this one only (default: all)")
    p.add_argument("--host", default="0.0.0.0")
    p.add_argument("--port", type=int, default=8080)
    return p


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600 seconds")
    return value


async def _run(args: argparse.Namespace) -> None:
    longest_s = window_s(args.scrape_interval_s) / 2  # a late look still sees every arrival
    if args.interval_s > longest_s:
        raise ValueError(
            f"--interval-s {args.interval_s:g} is above half of the window of rates, {longest_s:g} s; lower it"
        )
    registry = CollectorRegistry()
    metrics = AutoscalerMetrics(registry)
    async with AsyncExitStack() as stack:
        prometheus = None
        if args.prometheus_url:
            client = Prometheus.connect(args.prometheus_url, args.prometheus_token_file, args.prometheus_ca_file)
            prometheus = await stack.enter_async_context(client)
        kube = await stack.enter_async_context(Kube.connect())
        server = await serve(Probes(registry).handle, args.host, args.port)
        stack.push_async_callback(server.close)
        store = Store()
        hold_s, scrape_s = args.manual_hold_s, args.scrape_interval_s
        loop = Loop(store, Actuator(kube), prometheus, metrics, Pacer, scrape_s=scrape_s, hold_s=hold_s)

        def acts() -> list[Work]:
            watches = [follow(kube, store, place, args.namespace) for place in READERS]
            return [*watches, loop.run(args.interval_s)]

        await lead(kube, MANAGER, acts, metrics.leader)


if __name__ == "__main__":
    sys.exit(main())
