"""The prefill side of a hand-over: KV that waits under a lease, offered, renewed, released, or freed when time is up.

What a decode engine is told names this very engine, by an id that no restart repeats, so that it never reads the KV of
another life. Invariant: KV is parked only while its lease runs; the timer that frees it is set anew by each renewal.
Times are model seconds, but for the expiry that vLLM's parameters state as Unix time.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

from paceline_engine.clock import Clock
from paceline_engine.pd import RemoteKV
from paceline_engine.sim.replica import Replica

_log = logging.getLogger(__name__)
_TIMER_SLACK_S = 0.002  # wall: uvloop's timers count whole milliseconds


class Leases:
    """The parked KV of one replica. `on_freed` is called whenever there is less of it."""

    def __init__(self, name: str, replica: Replica, clock: Clock, on_freed: Callable[[], None]) -> None:
        self.engine_id = secrets.token_hex(8)
        self._name = name
        self._replica = replica
        self._clock = clock
        self._on_freed = on_freed
        self._loop = asyncio.get_running_loop()

    def offer(self, request_id: str, host: str, port: int) -> RemoteKV:
        """Where a decode engine finds the KV of a finished prefill leg, and until when."""
        parked = self._replica.parked[request_id]
        left_wall_s = self._expire_after(parked.expires_s)
        return RemoteKV(
            remote_engine_id=self.engine_id,
            remote_request_id=request_id,
            remote_host=host,
            remote_port=port,
            remote_num_tokens=parked.tokens,
            remote_blocks_expiry_time=time.time() + left_wall_s,
            remote_block_ids=tuple(parked.blocks),
            tp_size=self._replica.machine.spec.table.tensor,
        )

    def renew(self, engine_id: str, request_id: str) -> float | None:
        """Another engine wants this KV: seconds of the renewed lease, None when the KV is not here."""
        if engine_id != self.engine_id:
            return None
        parked = self._replica.renew(request_id, self._clock.now())
        if parked is None:
            return None
        self._expire_after(parked.expires_s)
        return parked.expires_s - self._clock.now()

    def release(self, engine_id: str, request_id: str) -> bool:
        """Another engine has read this KV."""
        released = engine_id == self.engine_id and self._replica.release(request_id)
        if released:
            self._on_freed()
        return released

    def _expire_after(self, expires_s: float) -> float:
        """Looks again when a lease may have ended; the wall seconds until then."""
        left_wall_s = max(self._clock.wall(expires_s - self._clock.now()), 0.0)
        self._loop.call_later(left_wall_s + _TIMER_SLACK_S, self._expire)
        return left_wall_s

    def _expire(self) -> None:
        over = self._replica.expire(self._clock.now())
        for request_id in over:
            _log.warning("lease ended engine=%s request=%s", self._name, request_id)
        if over:
            self._on_freed()
