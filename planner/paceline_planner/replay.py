"""One command's worth of measuring: ask the server what it is, offer the workload at each rate, write the report.

Runs follow one another in order of rate, each once the one before has ended. The seed and the request's number decide
lengths and text, so every rate sends the same requests. Invariant: an error that a person can mend is a ReplayError or
WorkloadError of one line, raised before the first request is sent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paceline_engine.clock import Clock

from paceline_planner import workloads
from paceline_planner.fleet import Fleet, reconcile
from paceline_planner.load import OpenLoop, Sender
from paceline_planner.report import Report, Run, RunTally
from paceline_planner.target import ReplayError, Server, Wanted, ask, open_pool, read_fleet, settled_fleet
from paceline_planner.traces import TraceRequest
from paceline_planner.validity import Lateness


@dataclass(frozen=True, slots=True)
class Workload:
    """Either requests with arrivals of their own, or lengths for Poisson arrivals."""

    name: str
    source: Sequence[TraceRequest] | workloads.LengthSource

    def at(self, rate_rps: float | None, duration_s: float | None, seed: int) -> list[TraceRequest]:
        """The requests of one run. WorkloadError when the rate is needed, or cannot be reached."""
        if isinstance(self.source, Sequence):
            trace = list(self.source)
            stretched = trace if rate_rps is None else workloads.at_rate(trace, rate_rps)
            return stretched if duration_s is None else list(workloads.until(stretched, duration_s))
        if rate_rps is None or duration_s is None:
            raise workloads.WorkloadError(f"{self.name} has no arrival times of its own; give --rate and --duration")
        arrivals = workloads.poisson_arrivals(rate_rps, random.Random(f"{seed}/arrivals"))
        drawn = workloads.synthesise(self.source, arrivals, random.Random(f"{seed}/lengths"))
        return list(workloads.until(drawn, duration_s))


@dataclass(frozen=True, slots=True)
class Options:
    """What a person asked for; None leaves it to the server."""

    url: str
    workload: Workload
    rates_rps: Sequence[float | None] = (None,)
    duration_s: float | None = None
    wanted: Wanted = field(default_factory=Wanted)
    seed: int = 0
    clip: bool = False
    chat: bool = False
    api_key: str | None = None
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Progress:
    rate_rps: float
    at_s: float
    planned: int
    sent: int
    finished: int


async def replay(
    options: Options, stop: asyncio.Event, on_progress: Callable[[Progress], None] = lambda progress: None
) -> Report:
    """Runs each rate in turn until done, or until `stop` is set. Raises ReplayError and WorkloadError."""
    pool = open_pool(options.url, options.api_key)
    try:
        server = await ask(pool, options.wanted)
        clock = Clock(server.time_scale)
        rates = sorted(options.rates_rps, key=lambda rate: rate or 0.0)
        plans = [_requests(options, server, rate) for rate in rates]
        runs: list[Run] = []
        for rate, requests in zip(rates, plans, strict=True):
            runs.append(await _run(options, server, clock, rate, requests, stop, on_progress))
            if stop.is_set():
                break
        return Report(runs, workload=options.workload.name, time_scale=clock.scale, seed=options.seed)
    finally:
        pool.close()


async def _run(
    options: Options,
    server: Server,
    clock: Clock,
    rate_rps: float | None,
    requests: list[TraceRequest],
    stop: asyncio.Event,
    on_progress: Callable[[Progress], None],
) -> Run:
    tally = RunTally({server.slo.name: server.slo})
    sender = Sender(
        model=server.model,
        class_name=server.slo.name,
        class_header=options.wanted.class_name is not None,
        chat=options.chat,
        seed=options.seed,
        timeout_s=options.timeout_s,
    )
    window_s = options.duration_s or requests[-1].arrival_s or 1.0
    rate = rate_rps or len(requests) / window_s
    before = await read_fleet(server.pool)
    loop = OpenLoop(server.pool, sender, clock, tally.add)
    async with asyncio.TaskGroup() as group:
        ticker = group.create_task(_tick(loop, rate, len(requests), on_progress))
        offered = await loop.run(requests, stop)
        ticker.cancel()
    after = await settled_fleet(server.pool, before, offered.sent) if server.fleet.slos else None
    engines = after or Fleet(simulated=server.fleet.simulated)
    return tally.run(
        rate,
        min(window_s, offered.lasted_s) if offered.interrupted else window_s,
        gpus=server.gpus,
        lateness=Lateness(offered.client_p99_s, engines.lateness_p99_s, engines.step_p50_s),
        simulated=offered.simulated or engines.simulated,
        interrupted=offered.interrupted,
        reconciliation=reconcile(offered.sent, before, after) if after else None,
    )


async def _tick(loop: OpenLoop, rate_rps: float, planned: int, on_progress: Callable[[Progress], None]) -> None:
    while True:
        on_progress(Progress(rate_rps, max(0.0, loop.now()), planned, loop.sent, loop.finished))
        await asyncio.sleep(0.5)


def _requests(options: Options, server: Server, rate_rps: float | None) -> list[TraceRequest]:
    requests = options.workload.at(rate_rps, options.duration_s, options.seed)
    if options.clip:
        if server.context_tokens is None:
            raise ReplayError(f"{options.url} does not say its max_model_len; leave out --clip")
        requests = [workloads.clipped(request, server.context_tokens) for request in requests]
    if not requests:
        raise ReplayError(
            f"{options.workload.name} has no request in {options.duration_s:g} s; raise --duration or --rate"
        )
    return requests
