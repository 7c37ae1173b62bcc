"""Puts one router together and runs it until it is told to stop, then drains.

Draining: `/readyz` says 503, everything accepted is served to its end, and new requests too, until none is in flight
or the drain timeout has passed; what is left then ends as timed out. Invariant: `run` returns with no connection
open.
"""

from __future__ import annotations

import asyncio
import logging
from random import Random
from secrets import token_hex

from paceline_api.config import RouterConfig, StaticDiscovery
from paceline_api.outcomes import Outcome
from paceline_engine.clock import Clock
from paceline_engine.http1 import Limits, Server, serve
from prometheus_client import CollectorRegistry, ProcessCollector

from paceline_router.app import App
from paceline_router.dispatcher import Dispatcher
from paceline_router.gauges import StateGauges
from paceline_router.metrics import RouterMetrics
from paceline_router.pick import Picker
from paceline_router.scrape import Scraper
from paceline_router.shell import Shell
from paceline_router.state import Ledger, Replica, Role
from paceline_router.upstream import LegHeaders, Upstreams

_log = logging.getLogger(__name__)

TICK_S = 0.05  # wall: how late a passed limit may be noticed
LAST_ANSWERS_S = 1.0  # wall: for the errors of what a drain cut off to reach their clients


class Router:
    """One router process' parts. `token` is the service's own (DESIGN §4)."""

    def __init__(self, config: RouterConfig, discovery: StaticDiscovery, clock: Clock, token: str | None) -> None:
        classes = config.slo_classes()
        ledger = Ledger(Replica(r.name, Role(r.role), r.pool, r.gpus) for r in discovery.replicas)
        upstreams = Upstreams(discovery.replicas)
        metrics = RouterMetrics(config.service, config.namespace, classes)
        id_prefix = token_hex(6)
        recompute = config.kv_transfer.on_failure == "recompute"
        self._config = config
        self._upstreams = upstreams
        self._scraper = Scraper(ledger, upstreams.pools, clock, config.model, self._abandon)
        self.shell = Shell(
            config,
            clock,
            asyncio.get_running_loop(),
            ledger,
            Picker(config.policy, Random(id_prefix), recompute=recompute),
            upstreams,
            LegHeaders(classes, token),
            metrics,
            id_prefix,
            self._scraper.probe_soon,
        )
        self._dispatcher = Dispatcher(self.shell)
        registry = CollectorRegistry()
        registry.register(metrics)
        registry.register(StateGauges(self.shell, self._scraper))
        ProcessCollector(registry=registry)
        self._app = App(self.shell, self._dispatcher, registry)

    def _abandon(self, replica: str) -> None:
        self.shell.abandon(replica)

    async def listen(self, host: str, port: int) -> Server:
        """Serves on `host`:`port`; OSError when that cannot be bound."""
        limits = Limits(max_body_bytes=self._config.limits.max_body_bytes)
        return await serve(self._app.handle, host, port, limits=limits, error_body=self._dispatcher.malformed)

    async def run(self, server: Server, stop: asyncio.Event) -> None:
        """Until `stop` is set and everything in flight has ended."""
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(self._scraper.run()), group.create_task(self._tick())]
            await stop.wait()
            await self._drain(server)
            for task in background:
                task.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.shell.tracker.tick(self.shell.clock.now())

    async def _drain(self, server: Server) -> None:
        shell = self.shell
        shell.drain()
        timeout_s = shell.clock.wall(self._config.limits.drain_timeout_s)
        _log.info("draining in_flight=%d timeout_s=%.1f", len(shell.jobs), timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await shell.idle.wait()
        except TimeoutError:
            _log.warning("drain timed out in_flight=%d", len(shell.jobs))
            for job in list(shell.jobs):
                job.give_up(Outcome.TIMED_OUT, "the router stopped before the answer was complete")
        await server.drain(LAST_ANSWERS_S)
        self._upstreams.close()
