"""Asks every engine, about once a model second, whether it is ready and what it says of itself.

Readiness comes from `/readyz` (`/health` where there is none), facts from `/metrics`. A replica that failed a request
is probed again soon. Replicas are added and removed while it runs. Invariant: a replica is ready only after a good
probe later than its last failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from paceline_api.headers import SIMULATED
from paceline_engine.clock import Clock
from paceline_engine.http1 import ClientError, ClientPool, Response, fetch

from paceline_router.exposition import LATENESS, STEP, Scraped, fleet_quantile, read
from paceline_router.replica import Replica
from paceline_router.state import Ledger

_log = logging.getLogger(__name__)

INTERVAL_S = 1.0  # model time
SHORTEST_INTERVAL_S = 0.25  # wall: what a fast time scale may not go below
SOON_S = 0.2  # wall: from a failure to the next probe
TIMEOUT_S = 5.0  # wall
LOST_AFTER = 3  # probes in a row without any answer: a host that is gone sends no reset to those who wait on it
_SIMULATED = SIMULATED.encode()


class Scraper:
    """Probes each replica that it was given until cancelled; also what the engines say over the whole fleet."""

    def __init__(
        self,
        ledger: Ledger,
        pools: Mapping[str, ClientPool],
        clock: Clock,
        model: str,
        on_lost: Callable[[str], None],
    ) -> None:
        self._ledger = ledger
        self._pools = pools
        self._clock = clock
        self._model = model
        self._on_lost = on_lost
        self._interval_s = max(clock.wall(INTERVAL_S), SHORTEST_INTERVAL_S)
        self._replicas: dict[str, Replica] = {}
        self._hurry: dict[str, asyncio.Event] = {}
        self._group: asyncio.TaskGroup | None = None  # while it runs
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.probed: set[str] = set()  # names that a probe was tried on
        self._scraped: dict[str, Scraped] = {}
        self._simulated: set[str] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            for replica in self._replicas.values():
                self._tasks[replica.name] = group.create_task(self._watch(replica))
            await asyncio.get_running_loop().create_future()

    def add(self, replica: Replica) -> None:
        """A replica of the ledger, which has a connection pool; probed at once."""
        self._replicas[replica.name] = replica
        self._hurry[replica.name] = asyncio.Event()
        if self._group is not None:
            self._tasks[replica.name] = self._group.create_task(self._watch(replica))

    def remove(self, name: str) -> None:
        """Ends its probes, and forgets what it said."""
        del self._replicas[name], self._hurry[name]
        if name in self._tasks:
            self._tasks.pop(name).cancel()
        self._scraped.pop(name, None)
        self._simulated.discard(name)
        self.probed.discard(name)

    def probe_soon(self, name: str) -> None:
        """A request found the replica unwell."""
        self._hurry[name].set()

    @property
    def simulated(self) -> bool:
        """Whether any engine answers as a simulated one."""
        return bool(self._simulated)

    @property
    def lateness_p99_s(self) -> float | None:
        """Over the steps of all engines, wall seconds."""
        return fleet_quantile(self._scraped.values(), LATENESS, 0.99, {})

    @property
    def step_p50_s(self) -> float | None:
        """The median over the steps of all engines, wall seconds."""
        median = fleet_quantile(self._scraped.values(), STEP, 0.5, {"kind": "measured"})
        return None if median is None else self._clock.wall(median)

    async def _watch(self, replica: Replica) -> None:
        hurry = self._hurry[replica.name]
        unanswered = 0
        while True:
            hurry.clear()
            answer = await self._probe(replica)
            self.probed.add(replica.name)
            unanswered = unanswered + 1 if answer is None else 0
            if unanswered == LOST_AFTER:
                _log.warning("replica=%s answers no probe", replica.name)
                self._on_lost(replica.name)
            well = answer is True
            if not hurry.is_set() and self._ledger.set_ready(replica.name, well):
                _log.info("replica=%s ready=%s", replica.name, str(well).lower())
            try:
                async with asyncio.timeout(self._interval_s if well else min(self._interval_s, SOON_S)):
                    await hurry.wait()
                await asyncio.sleep(SOON_S)
            except TimeoutError:
                continue

    async def _probe(self, replica: Replica) -> bool | None:
        """Whether the replica is well, None without an answer. Its facts come first: it is never ready without them.

        One that drains is not ready, and works on.
        """
        is_well: bool | None = None
        try:
            ready = await self._get(replica, b"/readyz")
            if ready.status == 404:
                ready = await self._get(replica, b"/health")
            is_well = False if ready.status != 200 else None
            metrics = await self._get(replica, b"/metrics")
        except (ClientError, TimeoutError):
            return is_well
        if metrics.status == 200:
            text = metrics.body.decode("utf-8", "replace")
            scraped = read(text, self._clock.now(), self._model, replica.gpus)
            self._scraped[replica.name] = scraped
            self._ledger.learn(replica.name, scraped.facts)
            self._ledger.tell(replica.name, scraped.told)
        if ready.header(_SIMULATED) == b"1" or metrics.header(_SIMULATED) == b"1":
            self._simulated.add(replica.name)
        return ready.status == 200

    async def _get(self, replica: Replica, path: bytes) -> Response:
        return await fetch(self._pools[replica.name], b"GET", path, timeout_s=TIMEOUT_S)
