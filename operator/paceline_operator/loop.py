"""One task per LLMService: gather from the store, decide, apply; again whenever something of the service changes.

Nothing is decided here. Failures are tried again with back-off; a comparison every RESYNC_S heals what no watch told.
Invariant: a service has at most one task, and none once it is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter, time

from paceline_api.v1alpha1 import LLMService
from paceline_router.judged import rfc3339
from paceline_router.kube import Conflict, Kube, KubeError, path_of
from pydantic import ValidationError

from paceline_operator.apply import Applier
from paceline_operator.desire import desire
from paceline_operator.events import name_taken
from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import Owner
from paceline_operator.metrics import OperatorMetrics
from paceline_operator.observe import observe
from paceline_operator.settings import Settings
from paceline_operator.status import Refused, Taken, pool_status, service_status
from paceline_operator.store import Id, Store
from paceline_operator.troubles import lacks_secret

_log = logging.getLogger(__name__)

RESYNC_S = 300.0
SETTLE_S = 0.05  # events come in bursts: one look at all of them
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 60.0
CONCURRENT = 8  # reconciliations at a time


class Loop:
    """All services of one operator."""

    def __init__(self, kube: Kube, settings: Settings, metrics: OperatorMetrics) -> None:
        self._kube = kube
        self._settings = settings
        self._metrics = metrics
        self.store = Store(self._wake)
        self._applier = Applier(kube, metrics.wrote)
        self._tasks: dict[Id, asyncio.Task[None]] = {}
        self._wakes: dict[Id, asyncio.Event] = {}
        self._told: set[tuple[str, Taken]] = set()  # uid of a service, and what its Event said
        self._turns = asyncio.Semaphore(CONCURRENT)
        self._start: Callable[[Id], None] | None = None

    async def run(self) -> None:
        """Until cancelled; the store is followed by others."""
        await self.store.synced.wait()
        async with asyncio.TaskGroup() as group:

            def start(service: Id) -> None:
                if service not in self._tasks:
                    self._wakes[service] = asyncio.Event()
                    self._tasks[service] = group.create_task(self._keep(service))

            self._start = start
            for service in self.store.ids():
                start(service)
            await asyncio.Event().wait()

    def _wake(self, service: Id) -> None:
        if self._start and self.store.service(service):
            self._start(service)
        if event := self._wakes.get(service):
            event.set()

    async def _keep(self, service: Id) -> None:
        wake, failures = self._wakes[service], 0
        while self.store.service(service):
            wake.clear()
            async with self._turns:
                failures = 0 if await self._try(service) else failures + 1
            wait_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0**failures) if failures else RESYNC_S
            try:
                async with asyncio.timeout(wait_s):
                    await wake.wait()
                    await asyncio.sleep(SETTLE_S)
            except TimeoutError:
                pass
        del self._tasks[service], self._wakes[service]
        self._metrics.forget(service)
        _log.info("gone namespace=%s service=%s", *service)

    async def _try(self, service: Id) -> bool:
        """Whether it went well."""
        start_s = perf_counter()
        try:
            await self._reconcile(service)
        except KubeError as e:
            _log.warning("reconcile failed namespace=%s service=%s error=%s", *service, e)
            self._metrics.reconciled("error", perf_counter() - start_s)
            return False
        except Exception:  # a bug shows on one service, and stops no other
            _log.exception("reconcile broke namespace=%s service=%s", *service)
            self._metrics.reconciled("bug", perf_counter() - start_s)
            return False
        self._metrics.reconciled("ok", perf_counter() - start_s)
        return True

    async def _reconcile(self, service: Id) -> None:
        live = self.store.service(service)
        if live is None or live["metadata"].get("deletionTimestamp"):
            return
        parsed = _parse(live)
        if parsed is None:
            return
        owner = Owner(parsed.name, parsed.metadata.namespace, parsed.metadata.uid)
        seen = observe(owner, self.store.children(service), self.store.pods(service))
        desired = desire(owner, parsed, seen, self._settings)
        if desired.plan and (not seen.get("Deployment", owner.router) or lacks_secret(seen.pods, owner.token_secret)):
            await self._applier.create_token(owner)
        missing = await self._applier.bring(owner, desired, seen)
        for one in missing:
            if isinstance(one, Taken):
                await self._tell(owner, one)
        seen = observe(owner, self.store.children(service), self.store.pods(service))
        status = service_status(owner, parsed, desired, seen, missing, live.get("status") or {}, _now())
        for pool in seen.of("EnginePool"):
            await self._applier.write_pool_status(owner, pool, pool_status(owner, desired, seen, pool))
        await self._applier.write_status(owner, live, status)
        self._metrics.observed(service, status)
        if refused := next((one for one in missing if isinstance(one, Refused)), None):
            raise KubeError(str(refused))  # it is tried again: a quota may be raised, a webhook come to another view

    async def _tell(self, owner: Owner, taken: Taken) -> None:
        if (owner.uid, taken) in self._told:
            return
        with suppress(Conflict):  # said before a restart
            await self._kube.create(path_of("v1", "events", owner.namespace), name_taken(owner, taken, _now()))
        self._told.add((owner.uid, taken))
        _log.warning("name taken kind=%s namespace=%s name=%s", taken.kind, owner.namespace, taken.name)


def _parse(live: Json) -> LLMService | None:
    try:
        return LLMService.model_validate({name: value for name, value in live.items() if name != "status"})
    except ValidationError as e:  # a CRD of another release admitted it
        metadata = live["metadata"]
        _log.error("not understood namespace=%s service=%s error=%s", metadata["namespace"], metadata["name"], e)
        return None


def _now() -> str:
    return rfc3339(time())
