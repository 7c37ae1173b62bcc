"""An open load on one side, and which of its requests were served within their limits.

A request counts from the moment at which it was due, whether or not the client was in time; it is good when its first
token, its mean pace and its longest gap all kept their limits. Invariant: the load ends: nobody waits for an answer
that is late already once all requests have been sent. Wall seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from random import Random

from engine_sides import Side, slo_headers
from gaps import Stream, complete


@dataclass(frozen=True, slots=True)
class Class:
    """A named objective. `stall_s` inf: gaps are not judged, and our engine is told three times the pace."""

    name: str
    ttft_s: float
    tpot_s: float
    stall_s: float = inf

    def headers(self) -> dict[str, str]:
        stall_s = min(self.stall_s, 3 * self.tpot_s)
        return slo_headers(ttft_ms=1e3 * self.ttft_s, tpot_ms=1e3 * self.tpot_s, stall_ms=1e3 * stall_s, name=self.name)


@dataclass(frozen=True, slots=True)
class Job:
    """A request that is due `at_s` after the load began."""

    at_s: float
    prompt: Sequence[int]
    tokens: int
    kind: Class

    @property
    def decided_s(self) -> float:
        """When the last token of a good answer has come at the latest, after the load began."""
        return self.at_s + self.kind.ttft_s + (self.tokens - 1) * self.kind.tpot_s


@dataclass(frozen=True, slots=True)
class Served:
    """What came of a job; all inf where no whole answer came."""

    job: Job
    ttft_s: float = inf
    tpot_s: float = inf
    longest_s: float = inf

    @property
    def good(self) -> bool:
        kind = self.job.kind
        return self.ttft_s <= kind.ttft_s and self.tpot_s <= kind.tpot_s and self.longest_s <= kind.stall_s


def arrivals(rate: float, begin_s: float, end_s: float, rng: Random) -> list[float]:
    """A Poisson process."""
    times: list[float] = []
    at_s = begin_s + rng.expovariate(rate)
    while at_s < end_s:
        times.append(at_s)
        at_s += rng.expovariate(rate)
    return times


async def offer(side: Side, jobs: Sequence[Job]) -> list[Served]:
    """All jobs at their times."""
    last_s = max((job.at_s for job in jobs), default=0.0)
    began_s = time.perf_counter() + 0.05

    async def serve(job: Job) -> Served:
        due_s = began_s + job.at_s
        await asyncio.sleep(due_s - time.perf_counter())
        stream = Stream()
        with suppress(TimeoutError):
            async with asyncio.timeout(began_s + max(job.decided_s, last_s) - time.perf_counter()):
                headers = {**side.headers, **job.kind.headers()}
                body = {"prompt": job.prompt, "max_tokens": job.tokens, "ignore_eos": True, **side.body}
                await complete(side.engine.port, stream, headers, **body)
        return _served(job, stream, due_s)

    return list(await asyncio.gather(*map(serve, jobs)))


async def capacity(side: Side, jobs: Sequence[Job]) -> float:
    """Requests a second that a side completes when all are there at once."""
    began_s = time.perf_counter()
    streams = [Stream() for _ in jobs]
    asked = (
        complete(side.engine.port, s, prompt=job.prompt, max_tokens=job.tokens, ignore_eos=True, **side.body)
        for s, job in zip(streams, jobs, strict=True)
    )
    await asyncio.gather(*asked)
    return len(jobs) / (time.perf_counter() - began_s)


def _served(job: Job, stream: Stream, due_s: float) -> Served:
    times = stream.times_s
    if not stream.complete:
        return Served(job)
    pace_s = (times[-1] - times[0]) / max(job.tokens - 1, 1)
    return Served(job, times[0] - due_s, pace_s, max((b - a for a, b in pairwise(times)), default=0.0))
