"""The autoscaler's tick: asks Prometheus once for all services, then looks at each, acts and reports.

Nothing is decided here. Invariants: a tick asks each query once, whatever the number of services; a bug in one service
is logged and stops no other; a tick that fails writes no size.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from paceline_api.conditions import Reason
from paceline_engine.step_time import StepTable
from paceline_engine.tables import TableMissing, load_table

from paceline_router.autoscale.signals import Blind
from paceline_router.causes import leaves
from paceline_router.scaling.actuate import Actuator
from paceline_router.scaling.answers import Answers, by_service
from paceline_router.scaling.metrics import AutoscalerMetrics
from paceline_router.scaling.prometheus import Malformed, PrometheusError
from paceline_router.scaling.queries import CLOCK, Row, Signal, queries
from paceline_router.scaling.steward import Law, Moment, Steward
from paceline_router.scaling.store import Store
from paceline_router.scaling.views import Id, ServiceView

_log = logging.getLogger(__name__)

CONCURRENT = 8  # queries, and services, at a time
JUMP_S = 5.0  # wall time that moves this much apart from monotonic time was set
UNCONFIGURED = Blind(
    Reason.METRICS_UNREACHABLE, "no Prometheus is configured; set the chart value prometheus.url to the URL of one"
)


class Asked(Protocol):
    """What the loop needs of the client of Prometheus."""

    async def scalar(self, query: str) -> float: ...
    async def vector(self, query: str, at_s: float) -> tuple[Row, ...]: ...


def read_clock() -> Moment:
    return Moment(time.time(), time.monotonic())


class Loop:
    """All services of one autoscaler; without a Prometheus it says so and leaves every size alone."""

    def __init__(
        self,
        store: Store,
        actuator: Actuator,
        prometheus: Asked | None,
        metrics: AutoscalerMetrics,
        make_law: Callable[[float], Law],
        *,
        scrape_s: float,
        hold_s: float,
        clock: Callable[[], Moment] = read_clock,
    ) -> None:
        self._store = store
        self._actuator = actuator
        self._prometheus = prometheus
        self._metrics = metrics
        self._make_law = make_law
        self._scrape_s, self._hold_s = scrape_s, hold_s
        self._queries = queries(scrape_s)
        self._clock = clock
        self._last = clock()
        self._stewards: dict[str, tuple[Id, Steward]] = {}  # by the service's uid
        self._turns = asyncio.Semaphore(CONCURRENT)
        self._was_blind = ""

    async def run(self, interval_s: float) -> None:
        """Until cancelled; the store is followed by others."""
        await self._store.synced.wait()
        while True:
            start_s = time.monotonic()
            await self.tick()
            await asyncio.sleep(max(0.0, interval_s - (time.monotonic() - start_s)))

    async def tick(self) -> None:
        answers = await self._ask()
        self._say(answers)
        now = self._clock()
        views = self._store.views()
        self._keep_stewards(views)
        self._watch_clock(now)
        async with asyncio.TaskGroup() as group:
            for view in views:
                group.create_task(self._serve(view, answers, now))

    async def _ask(self) -> Answers | Blind:
        """Every query at one moment of Prometheus' clock."""
        if self._prometheus is None:
            return UNCONFIGURED
        try:
            return await self._ask_all(self._prometheus)
        except* PrometheusError as errors:
            error = next(leaves(errors))
            self._metrics.query_failed(error.cause)
            reason = Reason.METRICS_INVALID if isinstance(error, Malformed) else Reason.METRICS_UNREACHABLE
            blind = Blind(reason, str(error))
        return blind

    async def _ask_all(self, prometheus: Asked) -> Answers:
        clock_s = await prometheus.scalar(CLOCK)
        asked_s = self._clock().wall_s
        found: dict[Signal, tuple[Row, ...]] = {}

        async def ask(signal: Signal, query: str) -> None:
            async with self._turns:
                with self._metrics.query_seconds.time():
                    found[signal] = await prometheus.vector(query, clock_s)

        async with asyncio.TaskGroup() as group:
            for signal, query in self._queries.items():
                group.create_task(ask(signal, query))
        return Answers(by_service(found), clock_s, asked_s, self._scrape_s)

    def _say(self, answers: Answers | Blind) -> None:
        """One line when Prometheus goes, and one when it is back."""
        blind = answers.message if isinstance(answers, Blind) else ""
        if bool(blind) != bool(self._was_blind):
            _log.warning("prometheus %s", f"blind cause={blind!r}" if blind else "answers again")
        self._was_blind = blind

    def _keep_stewards(self, views: list[ServiceView]) -> None:
        for view in views:
            if view.uid not in self._stewards:
                self._stewards[view.uid] = view.id, Steward(self._make_law, find_table, self._hold_s)
        uids, ids = {view.uid for view in views}, {view.id for view in views}
        for uid in set(self._stewards) - uids:
            service, _ = self._stewards.pop(uid)
            if service not in ids:
                self._metrics.forget(service)
                _log.info("gone namespace=%s service=%s", *service)

    def _watch_clock(self, now: Moment) -> None:
        jump_s = (now.wall_s - self._last.wall_s) - (now.mono_s - self._last.mono_s)
        self._last = now
        if abs(jump_s) > JUMP_S:
            _log.warning("the clock jumped seconds=%.0f", jump_s)
            for _, steward in self._stewards.values():
                steward.restart(now)

    async def _serve(self, view: ServiceView, answers: Answers | Blind, now: Moment) -> None:
        """A bug shows on one service, and stops no other."""
        _, steward = self._stewards[view.uid]
        try:
            async with self._turns:
                await asyncio.sleep(0)  # the Lease and probes have their turn between services
                turn = steward.look(view, answers, now)
                done = await self._actuator.act(turn)
                part = steward.close(turn, done, now)
                if part is not None and await self._actuator.write_status(view, part):
                    steward.wrote(part, now)
            self._metrics.looked(turn, done)
            self._metrics.ticked(view.id, "blind" if turn.finding.blind else "decided")
        except Exception:
            _log.exception("tick failed namespace=%s service=%s", *view.id)
            self._metrics.ticked(view.id, "failed")


def find_table(table: str, model: str, tensor: int) -> StepTable | None:
    try:
        return load_table(table, model, tensor)
    except TableMissing:
        return None
