"""One simulated engine: its replica at work, the requests that it answers, its KV hand-overs, and its end.

Takes what `api` has read from a request, answers through `Reply`, and counts. Invariant: each leg received ends in
exactly one `LegResult`, and nothing of a leg (KV, timer, answer) outlives its end but KV parked under a lease.
Times are model seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from enum import Enum
from functools import partial

from paceline_engine.alarms import Alarms
from paceline_engine.clock import Clock
from paceline_engine.http1 import Exchange
from paceline_engine.request import Leg, Objective, Request
from paceline_engine.sim.api import Ask, Refused
from paceline_engine.sim.batching import Batch
from paceline_engine.sim.leases import Leases
from paceline_engine.sim.metrics import EngineMetrics, LegResult
from paceline_engine.sim.options import Options
from paceline_engine.sim.pull import HEARTBEATS_PER_LEASE, KVLost, KVPuller
from paceline_engine.sim.replica import Emitted, Replica, TooLong
from paceline_engine.sim.reply import Reply
from paceline_engine.sim.responses import answer_to
from paceline_engine.sim.worker import Worker

_log = logging.getLogger(__name__)


class Phase(Enum):
    """Where an engine is in its life."""

    LOADING = "loading"
    READY = "ready"
    NOTICE = "notice"  # /readyz says 503, requests are still served until everyone has noticed
    DRAINING = "draining"  # new requests are refused


class Engine:
    """`port` is where this engine listens: what it tells others to fetch KV from."""

    def __init__(self, name: str, options: Options, replica: Replica, clock: Clock, alarms: Alarms, token: str) -> None:
        self.name = name
        self.options = options
        self.replica = replica
        self.clock = clock
        self.metrics = EngineMetrics()
        self.phase = Phase.LOADING
        self.port = 0
        self.start_s = 0.0
        self.leases = Leases(name, replica, clock, self._freed)
        self.loop = asyncio.get_running_loop()
        self._worker = Worker(replica, clock, self, alarms)
        self._puller = KVPuller(clock, replica.machine, token, options.kv_timeout_s)
        self._replies: dict[str, Reply] = {}
        self._taken = 0
        self._heartbeat: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    # --- requests

    def take(self, exchange: Exchange, ask: Ask, objective: Objective) -> Refused | None:
        """Serves a request, or says why not; the caller then answers."""
        self._taken += 1
        request = Request(
            f"{self.leases.engine_id}-{self._taken}",
            ask.prompt.tokens,
            ask.max_tokens,
            self.clock.at(exchange.received_at),
            objective,
            ask.prompt.block_hashes,
            ask.leg,
        )
        reply = Reply(exchange, ask, request, answer_to(ask, request.id, int(time.time()), self.served_name))
        self._replies[request.id] = reply
        try:
            self._worker.submit(request, ask.answer_tokens)
        except TooLong as e:
            del self._replies[request.id]
            return Refused(str(e), code="context_length_exceeded")
        self._idle.clear()
        exchange.on_gone = partial(self._abort, request.id)
        reply.on_overflow = partial(self._cut, request.id)
        if ask.leg is Leg.DECODE and self._heartbeat is None:
            self._beat()
        return None

    @property
    def served_name(self) -> str:
        return self.options.served_name

    @property
    def in_progress(self) -> int:
        """Legs that have not ended."""
        return len(self._replies)

    @property
    def running(self) -> int:
        view = self.replica.view
        return len(view.decodes) + len(view.partials) + len(self.replica.pulling)

    @property
    def waiting(self) -> int:
        return len(self.replica.view.waiting) + len(self.replica.remote)

    def count(self, result: LegResult) -> None:
        """Counts a request that was answered without a step."""
        self.metrics.legs[result] += 1

    def _abort(self, request_id: str) -> None:
        """The caller is gone."""
        if self._replies.pop(request_id, None) is not None:
            self._worker.abort(request_id)
            self.metrics.success["abort"] += 1
            self._end(LegResult.ABORTED)

    def _cut(self, request_id: str) -> None:
        """The caller reads too slowly: nothing more is kept for it."""
        reply = self._replies.get(request_id)
        if reply is not None:
            _log.warning("aborted engine=%s request=%s cause=slow_reader", self.name, request_id)
            self._abort(request_id)
            reply.cut()

    def _end(self, result: LegResult) -> None:
        self.metrics.legs[result] += 1
        self._check_idle()

    def _check_idle(self) -> None:
        if not self._replies and not self.replica.parked:
            self._idle.set()

    # --- steps (StepSink)

    def on_begin(self, batch: Batch, now: float) -> None:
        for request, _chunk in batch.chunks:
            reply = self._replies.get(request.id)
            if reply is not None and not reply.scheduled:
                reply.scheduled = True
                self.metrics.queue.observe(max(now - request.arrival_s, 0.0))

    def on_finish(self, batch: Batch, emitted: Emitted, now: float, late_wall_s: float) -> None:
        replica, metrics = self.replica, self.metrics
        metrics.on_step(batch.prefill_tokens, len(batch.decodes), replica.step_s, replica.predicted_s, late_wall_s)
        for request in emitted.tokens:
            reply = self._replies.get(request.id)
            if reply is None:  # aborted during the step
                continue
            n = request.emitted_tokens
            if n == 1:
                metrics.ttft.observe(now - request.arrival_s)
            else:
                metrics.itl.observe(now - reply.last_token_s)
            reply.last_token_s = now
            if n < request.max_tokens:
                reply.token(n - 1)
            else:
                self._finish(reply, now)

    def on_room(self) -> None:
        """Starts the hand-overs for which there is KV room now."""
        while self.replica.remote:
            request = self.replica.next_transfer()
            if request is None:
                return
            reply = self._replies[request.id]
            self.metrics.queue.observe(self.clock.now() - request.arrival_s)
            reply.scheduled = True
            self._puller.start(reply.remote, request.prompt_tokens, partial(self._pulled, request.id))

    def _finish(self, reply: Reply, now: float) -> None:
        request, metrics = reply.request, self.metrics
        n = request.emitted_tokens
        reason = "stop" if reply.ask.ends_by_itself else "length"
        metrics.success[reason] += 1
        metrics.e2e.observe(now - request.arrival_s)
        if n > 1:
            metrics.tpot.observe((now - request.first_token_s) / (n - 1))
        del self._replies[request.id]
        self._worker.forget(request.id)
        params = None
        if request.leg is Leg.PREFILL:
            self._idle.clear()
            params = self.leases.offer(request.id, self.options.advertise_host, self.port).params()
        reply.last(n, reason, params)
        self._end(LegResult.FINISHED)

    # --- KV hand-over

    def _freed(self) -> None:
        self._worker.wake()
        self._check_idle()

    def _pulled(self, request_id: str, lost: KVLost | None) -> None:
        if lost is None:
            self.replica.kv_arrived(request_id)
        else:
            recompute = self.options.kv_recompute
            self.metrics.kv_failures[lost.cause] += 1
            _log.warning(
                "kv transfer failed engine=%s cause=%s recompute=%s: %s", self.name, lost.cause, recompute, lost
            )
            self.replica.kv_failed(request_id, recompute=recompute)
            if not recompute:
                self._fail(request_id, 500, f"KV transfer failed: {lost}", "upstream_failed")
        self._worker.wake()

    def _beat(self) -> None:
        """Renews, while there are any, the leases of KV that decode legs here wait for."""
        waiting = [self._replies[r.id].remote for r in self.replica.remote]
        self._puller.renew(waiting)
        every_s = self.clock.wall(self.options.replica.lease_s) / HEARTBEATS_PER_LEASE
        self._heartbeat = self.loop.call_later(every_s, self._beat) if self._replies else None

    def _fail(self, request_id: str, status: int, message: str, code: str) -> None:
        reply = self._replies.pop(request_id, None)
        if reply is None:
            return
        self._worker.abort(request_id)
        reply.fail(status, message, code)
        self._end(LegResult.FAILED)

    # --- the end

    async def drain(self) -> None:
        """Lets everyone notice, then refuses what is new, then waits for answers and unread KV as long as allowed."""
        if self.phase in (Phase.LOADING, Phase.READY):
            self.phase = Phase.NOTICE
            _log.info(
                "draining engine=%s requests=%d parked=%d", self.name, len(self._replies), len(self.replica.parked)
            )
            await asyncio.sleep(self.clock.wall(self.options.drain_notice_s))
            self.phase = Phase.DRAINING
        try:
            async with asyncio.timeout(self.clock.wall(self.options.drain_timeout_s)):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("drain timeout engine=%s requests=%d", self.name, len(self._replies))

    async def close(self) -> None:
        """Ends what still runs, each with an error that says why."""
        self.phase = Phase.DRAINING
        for request_id in list(self._replies):
            self._fail(request_id, 503, "the engine shut down before the answer was complete", "upstream_failed")
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self._worker.stop()
        await self._puller.close()
