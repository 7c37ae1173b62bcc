"""A process of which several may run and one acts: the holder of its Lease, until SIGTERM or SIGINT.

Invariant: whatever keeps it from running is one line on stderr that says what to do, and exit code 1; at the end the
Lease is given back, so that the next one need not wait.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import uvloop
from prometheus_client import Gauge

from paceline_router.causes import leaves
from paceline_router.kube import Kube
from paceline_router.lease import Lease

LAST_WRITES_S = 5.0

Work = Coroutine[Any, Any, None]


def run(program: str, work: Callable[[], Work], *causes: type[Exception]) -> int:
    """The exit code of a process that does `work`; `causes` are what its user can mend."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request otherwise
    code = 0
    try:
        uvloop.run(work())
    except* causes as group:
        for error in leaves(group):
            print(f"{program}: {error}", file=sys.stderr)
        code = 1
    return code


async def lead(kube: Kube, name: str, acts: Callable[[], Iterable[Work]], leader: Gauge) -> None:
    """Do all of `acts` while the Lease `name` is ours, until a signal. LeaseLost when it is another's."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    namespace = os.environ.get("POD_NAMESPACE") or kube.namespace
    lease = Lease(kube, namespace, name, os.environ.get("POD_NAME") or socket.gethostname())
    try:
        async with asyncio.TaskGroup() as group:
            acting = group.create_task(_act(lease, acts, leader))
            await stop.wait()
            acting.cancel()
    finally:
        async with asyncio.timeout(LAST_WRITES_S):
            await lease.release()


async def _act(lease: Lease, acts: Callable[[], Iterable[Work]], leader: Gauge) -> None:
    await lease.acquire()
    leader.set(1)
    async with asyncio.TaskGroup() as group:
        group.create_task(lease.keep())
        for act in acts():
            group.create_task(act)
