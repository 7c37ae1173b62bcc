"""`python -m paceline_router --config FILE`: one router of one service, until SIGTERM or SIGINT.

Invariant: whatever keeps it from running is one line on stderr that says what to do, and exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import signal
import sys
from collections.abc import Sequence

import uvloop
from paceline_api.config import ConfigError, RouterConfig, StaticDiscovery
from paceline_api.headers import TOKEN_ENV
from paceline_engine.clock import Clock

from paceline_router.server import Router


class CannotRun(Exception):
    """The one line to print."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m paceline_router", description="Routes requests of one LLMService.")
    parser.add_argument("--config", required=True, metavar="FILE", help="router configuration, JSON")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: kernel-chosen")
    parser.add_argument("--time-scale", type=float, default=1.0, metavar="S", help="model time = wall time × S")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        config = RouterConfig.read(args.config)
        clock = Clock(args.time_scale)
        uvloop.run(_serve(config, clock, args.host, args.port, os.environ.get(TOKEN_ENV)))
    except (ConfigError, CannotRun, ValueError) as e:
        print(f"paceline_router: {e}", file=sys.stderr)
        return 1
    return 0


async def _serve(config: RouterConfig, clock: Clock, host: str, port: int, token: str | None) -> None:
    discovery = config.discovery
    if not isinstance(discovery, StaticDiscovery):
        raise CannotRun(f"discovery.kind {discovery.kind} is unknown to this version; list the replicas (kind static)")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    router = Router(config, discovery, clock, token)
    try:
        server = await router.listen(host, port)
    except OSError as e:
        raise CannotRun(_cannot_listen(host, port, e)) from e
    print(f"ready url=http://{host}:{server.port} service={config.service}", flush=True)
    await router.run(server, stop)


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; stop what listens there or choose another with --port"
    return f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host and --port"


if __name__ == "__main__":
    sys.exit(main())
