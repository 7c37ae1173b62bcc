"""Fetches the KV of decode legs from the prefill replicas that keep it, and keeps those leases alive meanwhile.

A pull is two calls to the other engine, `/paceline/kv/pull` (renews the lease and says how long it is) and
`/paceline/kv/release`, with the machine's hand-over time between them. Invariant: KV counts as arrived only if its
lease was still running when the transfer ended, so what another request has overwritten is never read, whatever a clock
or a network did; everything else ends as a counted failure within the timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import orjson
from paceline_api import headers

from paceline_engine.clock import Clock
from paceline_engine.http1 import ClientError, ClientPool, Response, fetch
from paceline_engine.pd import RemoteKV
from paceline_engine.sim.machine import Machine

PULL, RENEW, RELEASE = "/paceline/kv/pull", "/paceline/kv/renew", "/paceline/kv/release"
HEARTBEATS_PER_LEASE = 3


class KVLost(Exception):
    """The KV cannot be had; `cause` is a label of paceline_kv_transfer_failures_total."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class KVPuller:
    """The hand-overs of one decode replica. `timeout_s` is model time, from the start of the pull."""

    def __init__(self, clock: Clock, machine: Machine, token: str, timeout_s: float) -> None:
        self._clock = clock
        self._machine = machine
        self._timeout_s = timeout_s
        self._headers = ((headers.TOKEN.encode(), token.encode()), (b"content-type", b"application/json"))
        self._pools: dict[tuple[str, int], ClientPool] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, remote: RemoteKV, tokens: int, done: Callable[[KVLost | None], None]) -> None:
        """Fetches `tokens` tokens of KV, then calls `done`, once."""
        self._spawn(self._run(remote, tokens, done))

    def renew(self, remotes: Sequence[RemoteKV]) -> None:
        """Tells the engines that keep KV for requests still waiting here that it is wanted, as vLLM's heartbeats do."""
        for remote in remotes:
            self._spawn(self._tell(RENEW, remote))

    async def close(self) -> None:
        """Ends what is under way, without calling back."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for pool in self._pools.values():
            pool.close()

    def _spawn(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, remote: RemoteKV, tokens: int, done: Callable[[KVLost | None], None]) -> None:
        try:
            async with asyncio.timeout(self._clock.wall(self._timeout_s)):
                await self._pull(remote, tokens)
        except TimeoutError:
            lost = KVLost("timeout", f"no KV from {_place(remote)} within {self._timeout_s:g} s")
            done(lost)
        except KVLost as e:
            done(e)
        else:
            done(None)
            await self._tell(RELEASE, remote)

    async def _pull(self, remote: RemoteKV, tokens: int) -> None:
        if remote.remote_num_tokens != tokens:
            message = f"{_place(remote)} keeps {remote.remote_num_tokens} tokens, the prompt has {tokens}"
            raise KVLost("mismatch", message)
        start_s = self._clock.now()
        try:
            answer = await self._call(PULL, remote)
        except ClientError as e:
            raise KVLost("unreachable", f"{_place(remote)} cannot be reached: {e}") from e
        if answer.status != 200:
            raise KVLost("gone", f"{_place(remote)} no longer keeps {remote.remote_request_id} (HTTP {answer.status})")
        lease_end_s = start_s + float(orjson.loads(answer.body)["lease_s"])
        arrival_s = start_s + self._machine.transfer_s(tokens)
        await asyncio.sleep(self._clock.wall(max(arrival_s - self._clock.now(), 0.0)))
        if self._clock.now() >= lease_end_s:
            raise KVLost("late", f"the lease at {_place(remote)} ended during the transfer")

    async def _tell(self, path: str, remote: RemoteKV) -> None:
        """Without a receipt: a lost word costs no more than KV kept until its lease ends, or a prefill done again."""
        try:
            async with asyncio.timeout(self._clock.wall(self._timeout_s)):
                await self._call(path, remote)
        except (ClientError, TimeoutError):
            return

    async def _call(self, path: str, remote: RemoteKV) -> Response:
        place = (remote.remote_host, remote.remote_port)
        pool = self._pools.get(place)
        if pool is None:
            pool = self._pools[place] = ClientPool(*place)
        body = orjson.dumps({"engine_id": remote.remote_engine_id, "request_id": remote.remote_request_id})
        timeout_s = self._clock.wall(self._timeout_s)
        return await fetch(pool, b"POST", path.encode(), self._headers, body, timeout_s=timeout_s)


def _place(remote: RemoteKV) -> str:
    return f"{remote.remote_host}:{remote.remote_port}"
