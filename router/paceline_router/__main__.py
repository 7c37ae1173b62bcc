"""`python -m paceline_router --config FILE`: one router of one service, until SIGTERM or SIGINT.

Invariant: whatever keeps it from running is one line on stderr that says what to do, and exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import uvloop
from paceline_api.config import ConfigError, KubernetesDiscovery, RouterConfig, TLSConfig
from paceline_api.headers import TOKEN_ENV
from paceline_engine.clock import Clock

from paceline_router.reload import ConfigFile
from paceline_router.server import Router

# A request leaves no cycles behind, and looking at those in flight over and over costs a fifth of the CPU.
_GC_THRESHOLDS = (10_000, 20, 50)

Follower = Callable[[], Coroutine[None, None, None]]


class CannotRun(Exception):
    """The one line to print."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m paceline_router", description="Routes requests of one LLMService.")
    parser.add_argument("--config", required=True, metavar="FILE", help="router configuration, JSON")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: kernel-chosen")
    parser.add_argument(
        "--drain-notice-s",
        type=float,
        default=0.0,
        metavar="S",
        help="wall seconds between the signal to stop and the end of accepting: what endpoints need to notice",
    )
    parser.add_argument("--api-keys-dir", type=Path, metavar="DIR", help="requests need one of the keys in it")
    parser.add_argument("--tls-dir", type=Path, metavar="DIR", help="serve HTTPS with its tls.crt and tls.key")
    parser.add_argument("--time-scale", type=float, default=1.0, metavar="S", help="model time = wall time × S")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each call to the API server
    try:
        config = _with_files(RouterConfig.read(args.config), args.api_keys_dir, args.tls_dir)
        clock = Clock(args.time_scale)
        uvloop.run(_serve(config, clock, args))
    except (ConfigError, CannotRun, ValueError) as e:
        print(f"paceline_router: {e}", file=sys.stderr)
        return 1
    return 0


def _with_files(config: RouterConfig, api_keys_dir: Path | None, tls_dir: Path | None) -> RouterConfig:
    """With what this process alone has: the file is the same for all routers of a service, whatever they mount."""
    tls = tls_dir and TLSConfig(certificate=tls_dir / "tls.crt", key=tls_dir / "tls.key")
    return config.model_copy(update={"api_keys_dir": api_keys_dir or config.api_keys_dir, "tls": tls or config.tls})


async def _serve(config: RouterConfig, clock: Clock, args: argparse.Namespace) -> None:
    host, port = args.host, args.port
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    router = Router(config, config.discovery, clock, os.environ.get(TOKEN_ENV))
    scheme = "https" if config.tls else "http"
    async with AsyncExitStack() as stack:
        _trace(config, router, stack)
        follow = await _discovery(config, router, stack)
        try:
            server = await router.listen(host, port)
        except OSError as e:
            raise CannotRun(_cannot_listen(host, port, e)) from e
        print(f"ready url={scheme}://{host}:{server.port} service={config.service}", flush=True)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        followers = [ConfigFile(Path(args.config), router.shell).watch(), *(f() for f in follow)]
        await router.run(server, stop, *followers, notice_s=args.drain_notice_s)


async def _discovery(config: RouterConfig, router: Router, stack: AsyncExitStack) -> list[Follower]:
    """Imports the Kubernetes client only where there is a Kubernetes: a router of `paceline up` starts without it."""
    if not isinstance(config.discovery, KubernetesDiscovery):
        return []
    from paceline_router import kube
    from paceline_router.discovery import follow
    from paceline_router.service_watch import follow_pools, follow_service

    try:
        client = await stack.enter_async_context(kube.Kube.connect())
    except kube.ConfigError as e:
        raise CannotRun(str(e)) from e
    return [
        partial(follow, client, config.discovery, router.membership),
        partial(follow_pools, client, config.discovery, router.membership),
        partial(follow_service, client, config.discovery, router.console.tell),
    ]


def _trace(config: RouterConfig, router: Router, stack: AsyncExitStack) -> None:
    """Imports OpenTelemetry only where traces are asked for."""
    if config.tracing is None:
        return
    try:
        from paceline_router.tracing import connect
    except ImportError as e:
        missing = f"tracing needs {e.name}, which is not installed"
        raise CannotRun(f"{missing}; install paceline[otel], or take tracing out of the configuration") from e
    tracing = connect(config, config.tracing)
    stack.push_async_callback(tracing.close)
    router.registry.register(tracing.counts)
    router.shell.tracer = tracing


def _cannot_listen(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use; stop what listens there or choose another with --port"
    return f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host and --port"


if __name__ == "__main__":
    sys.exit(main())
