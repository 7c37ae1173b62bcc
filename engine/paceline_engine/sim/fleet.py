"""All engines of one process: started together, announced when every one listens, drained together.

SIGTERM and SIGINT drain; a second one ends at once. Invariant: either all engines listen or none is left listening, and
after a drain the process ends with 0.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import orjson

from paceline_engine.alarms import Alarms
from paceline_engine.clock import Clock
from paceline_engine.sim.engine import Engine, Phase
from paceline_engine.sim.options import Options, UsageError, make_replica
from paceline_engine.sim.server import EngineServer

_log = logging.getLogger(__name__)
_FLUSH_WALL_S = 2.0  # for answers that are complete but not yet sent
_GC_THRESHOLDS = (100_000, 50, 50)  # the replicas' own objects are frozen; a full collection would stop 64 of them


async def run(options: Options, clock: Clock, token: str) -> None:
    """Serves until a signal has drained it. UsageError when an address cannot be bound or the file not be written."""
    stop, stop_now = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (stop_now if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with AsyncExitStack() as stack:
        alarms = Alarms(loop)
        stack.callback(alarms.close)
        servers: list[EngineServer] = []
        stack.push_async_callback(_close, servers)
        for index in range(len(options.ports)):
            engine = Engine(f"{options.pool}-{index}", options, make_replica(options, index), clock, alarms, token)
            servers.append(await _listen(engine, options.ports[index], token))
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        if options.announce:
            _announce(options, servers)
        await _load(servers, clock, stop)
        await stop.wait()
        await _drain(servers, stop_now)


async def _listen(engine: Engine, port: int, token: str) -> EngineServer:
    server, host = EngineServer(engine, token), engine.options.host
    try:
        await server.listen(host, port)
    except OSError as e:
        cause = e.strerror or str(e)
        raise UsageError(
            f"cannot listen on {host}:{port}: {cause}; give --ports another port, or 0 to let the kernel choose"
        ) from e
    return server


async def _load(servers: list[EngineServer], clock: Clock, stop: asyncio.Event) -> None:
    """What loading weights takes, cut short by a signal; then every engine is ready."""
    startup_s = servers[0].engine.options.startup_s
    if startup_s > clock.now():
        try:
            async with asyncio.timeout(clock.wall(startup_s - clock.now())):
                await stop.wait()
                return
        except TimeoutError:
            pass
    for server in servers:
        engine = server.engine
        engine.start_s = clock.now()
        if engine.phase is Phase.LOADING:
            engine.phase = Phase.READY
    first = servers[0].engine
    ports = ",".join(str(server.engine.port) for server in servers)
    _log.info("ready role=%s replicas=%d host=%s ports=%s", first.options.role, len(servers), first.options.host, ports)


async def _drain(servers: list[EngineServer], stop_now: asyncio.Event) -> None:
    """Until every engine is empty or has waited long enough, or `stop_now`."""
    drains = asyncio.gather(*(server.engine.drain() for server in servers))
    forced = asyncio.ensure_future(stop_now.wait())
    await asyncio.wait((drains, forced), return_when=asyncio.FIRST_COMPLETED)
    for waiter in (drains, forced):
        waiter.cancel()
    await asyncio.gather(drains, forced, return_exceptions=True)


async def _close(servers: list[EngineServer]) -> None:
    await asyncio.gather(*(server.close(_FLUSH_WALL_S) for server in servers))


def _announce(options: Options, servers: list[EngineServer]) -> None:
    """Writes {replica: URL}, whole or not at all."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    urls = {server.engine.name: f"http://{host}:{server.engine.port}" for server in servers}
    path = Path(options.announce)
    try:
        part = path.with_name(path.name + ".part")
        part.write_bytes(orjson.dumps(urls))
        part.replace(path)
    except OSError as e:
        raise UsageError(f"--announce {path}: {e.strerror}; name a file in a folder that exists") from e
