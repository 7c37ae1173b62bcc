"""Puts one router together and runs it until it is told to stop, then drains.

Draining: `/readyz` says 503 and every answer sends its client to a new connection, for the notice at least, in which
endpoints find out, and then until nothing is in flight or the drain timeout has passed; what comes meanwhile is served,
what is left then ends as timed out. Invariant: `run` returns with no connection open.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from functools import partial
from random import Random
from secrets import token_hex
from urllib.parse import urlsplit

from paceline_api.config import KubernetesDiscovery, ReplicaConfig, RouterConfig, StaticDiscovery
from paceline_api.outcomes import Outcome
from paceline_engine.clock import Clock
from paceline_engine.http1 import Limits, Server, serve
from prometheus_client import CollectorRegistry, ProcessCollector

from paceline_router.api_keys import APIKeys
from paceline_router.app import App
from paceline_router.certificate import Certificate
from paceline_router.console.serve import Console
from paceline_router.dispatcher import Dispatcher
from paceline_router.door import Door
from paceline_router.endpoints import Member
from paceline_router.facts import Role
from paceline_router.gauges import StateGauges
from paceline_router.members import Membership
from paceline_router.metrics import Ejection, RouterMetrics
from paceline_router.pick import Picker
from paceline_router.scrape import Scraper
from paceline_router.shell import Shell, rules
from paceline_router.state import Ledger
from paceline_router.upstream import LegHeaders, Upstreams
from paceline_router.vigil import Vigil
from paceline_router.way import Guide

_log = logging.getLogger(__name__)

TICK_S = 0.05  # wall: how late a passed limit may be noticed
OPENS_AFTER_S = 5.0  # wall: how long requests wait at most for a new router to know its replicas
LAST_ANSWERS_S = 1.0  # wall: for the errors of what a drain cut off to reach their clients


class Router:
    """One router process' parts. `token` is the service's own (DESIGN §4). ConfigError: no key or certificate.

    The replicas of a static `discovery` are there from the start, and it is ready while they can serve. Those of
    Kubernetes come to `membership`; it is ready once it knows them, because a router that says 503 for a fleet that
    cannot serve is of more use to clients than one that is not there.
    """

    def __init__(
        self, config: RouterConfig, discovery: StaticDiscovery | KubernetesDiscovery, clock: Clock, token: str | None
    ) -> None:
        classes = config.slo_classes()
        ledger = Ledger()
        upstreams = Upstreams()
        metrics = RouterMetrics(config.service, config.namespace, classes)
        id_prefix = token_hex(6)
        recompute = config.kv_transfer.on_failure == "recompute"
        self._config = config
        self._upstreams = upstreams
        self._scraper = Scraper(ledger, upstreams.pools, clock, config.model, self._abandon)
        self.membership = Membership(ledger, upstreams, self._scraper)
        picker = Picker(config.policy, Random(id_prefix), recompute=recompute, local_prefill=config.local_prefill)
        is_static = isinstance(discovery, StaticDiscovery)
        self.shell = Shell(
            config,
            clock,
            asyncio.get_running_loop(),
            Guide(ledger, picker, recompute, config.kv_transfer.lease_s, self._unready),
            Door(clock, asyncio.get_running_loop(), rules(config) if config.waiting_room else None, shut=not is_static),
            upstreams,
            LegHeaders(classes, token),
            metrics,
            id_prefix,
            partial(_cannot_serve, picker, ledger) if is_static else partial(_is_unknown, self.membership),
        )
        self._opens_s = time.monotonic() + OPENS_AFTER_S
        self._vigil = Vigil(self.shell, self._scraper.probe_soon)
        if isinstance(discovery, StaticDiscovery):
            self.membership.apply(map(_member, discovery.replicas))
        self._dispatcher = Dispatcher(self.shell)
        self.console = Console(self.shell, self._scraper)
        self.registry = registry = CollectorRegistry()
        registry.register(metrics)
        registry.register(StateGauges(self.shell, self._scraper))
        ProcessCollector(registry=registry)
        self._keys = APIKeys(config.api_keys_dir) if config.api_keys_dir else None
        self._certificate = Certificate(config.tls) if config.tls else None
        self._app = App(self.shell, self._dispatcher, self.console, registry, self._keys)

    def _abandon(self, replica: str) -> None:
        self._count(replica, Ejection.UNANSWERED)
        self.shell.abandon(replica)

    def _unready(self, replica: str) -> None:
        self._count(replica, Ejection.FAILED)
        self._scraper.probe_soon(replica)

    def _count(self, replica: str, cause: Ejection) -> None:
        self.shell.metrics.ejections.add(self.shell.ledger.replicas[replica].role, cause)

    async def listen(self, host: str, port: int) -> Server:
        """Serves on `host`:`port`; OSError when that cannot be bound."""
        limits = Limits(max_body_bytes=self._config.limits.max_body_bytes)
        tls = self._certificate.context if self._certificate else None
        malformed, judge = self._dispatcher.malformed, self._app.judge
        return await serve(self._app.handle, host, port, limits=limits, error_body=malformed, tls=tls, judge=judge)

    async def run(
        self, server: Server, stop: asyncio.Event, *followers: Coroutine[None, None, None], notice_s: float = 0.0
    ) -> None:
        """Until `stop` is set, `notice_s` (wall) have passed and everything in flight has ended.

        `followers` run meanwhile: they tell `membership` and `shell` what changes outside.
        """
        own = (self._scraper.run(), self.console.run(), self._tick())
        files = (file.watch() for file in (self._keys, self._certificate) if file is not None)
        async with asyncio.TaskGroup() as group:
            background = [group.create_task(each) for each in (*own, *files, *followers)]
            await stop.wait()
            await self._drain(server, notice_s)
            for task in background:
                task.cancel()
        self._upstreams.close()  # when no probe is under way any more
        self.shell.alarms.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self.shell.clock.now()
            self.shell.tracker.tick(now)
            self.shell.expire(now)
            self._vigil.look(now)
            self.membership.reconcile()
            self._let_in()

    def _let_in(self) -> None:
        """Whoever comes before the replicas are known waits for that: one that starts anew is still sent requests."""
        door = self.shell.door
        if not door.is_open and (self.membership.is_settled or time.monotonic() >= self._opens_s):
            door.open()

    async def _drain(self, server: Server, notice_s: float) -> None:
        shell = self.shell
        shell.drain()
        timeout_s = shell.clock.wall(self._config.limits.drain_timeout_s)
        _log.info("draining in_flight=%d notice_s=%.1f timeout_s=%.1f", len(shell.jobs), notice_s, timeout_s)
        server.announce_close()
        await asyncio.sleep(notice_s)
        try:
            async with asyncio.timeout(timeout_s):
                await shell.wait_idle()
        except TimeoutError:
            _log.warning("drain timed out in_flight=%d", len(shell.jobs))
            for job in list(shell.jobs):
                job.give_up(Outcome.TIMED_OUT, "the router stopped before the answer was complete")
        await server.drain(LAST_ANSWERS_S)


def _member(replica: ReplicaConfig) -> Member:
    parts = urlsplit(replica.url)
    return Member(
        replica.name,
        replica.name,
        parts.hostname or "",
        parts.port or 80,
        Role(replica.role),
        replica.pool,
        replica.revision,
        replica.gpus,
    )


def _cannot_serve(picker: Picker, ledger: Ledger) -> str:
    return "" if picker.can_serve(ledger) else "no ready replica of a needed role"


def _is_unknown(membership: Membership) -> str:
    return "" if membership.is_settled else "the replicas of the service are not known yet"
