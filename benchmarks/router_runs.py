"""One run of the load client against one side, with the CPU time that router, engines and client took meanwhile."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from router_orders import Order
from router_sides import HERE, OTHER_CORE, Side, cpu_s, started

BOUND = 0.9  # of their core: engines and client beyond it are what was measured
FULL = 0.8  # of its core: a router in a closed loop that gets less shares the machine with something else


@dataclass(frozen=True, slots=True)
class Round:
    """Of a closed loop against one side."""

    rps: float
    failed: int
    p50_ms: float
    p99_ms: float
    router_us: float  # CPU a request
    router_share: float  # of its core, by the router
    others_share: float  # of the other core, by engines and client

    def as_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Ran:
    """What the client found, wall seconds, and CPU seconds of router and of engines and client."""

    found: dict[str, Any]
    took_s: float
    router_s: float
    others_s: float


def ran(side: Side, engines_pid: int, order: Order, meanwhile: Callable[[float], None] | None = None) -> Ran:
    """`meanwhile` is called a few times a second with the seconds since the beginning, while streams run."""
    argv: list[str | Path] = [sys.executable, HERE / "router_load.py", json.dumps(asdict(order))]
    with started(argv, OTHER_CORE, Path("/dev/null")) as client:
        assert client.stdout is not None
        _expect(client.stdout.readline(), "begun")
        began_s, before = time.monotonic(), (cpu_s(side.pid), cpu_s(engines_pid) + cpu_s(client.pid))
        if meanwhile is not None:
            while (since_s := time.monotonic() - began_s) < order.seconds:
                meanwhile(since_s)
                time.sleep(0.25)
        _expect(client.stdout.readline(), "ended")
        took_s, after = time.monotonic() - began_s, (cpu_s(side.pid), cpu_s(engines_pid) + cpu_s(client.pid))
        found = json.loads(client.stdout.readline())
    return Ran(found, took_s, after[0] - before[0], after[1] - before[1])


def closed(side: Side, engines_pid: int, seconds: float, prompt_chars: int, *, seed: int) -> Round:
    """Requests that are not streamed, over 64 connections."""
    run = ran(side, engines_pid, Order(side.port, seconds, prompt_chars=prompt_chars, seed=seed))
    found, done = run.found, max(run.found["done"], 1)
    return Round(
        found["done"] / found["took_s"],
        found["failed"],
        found["p50_ms"],
        found["p99_ms"],
        run.router_s / done * 1e6,
        run.router_s / run.took_s,
        run.others_s / run.took_s,
    )


def _expect(line: str, word: str) -> None:
    if line.strip() != word:
        raise RuntimeError(f"the load client said {line!r} instead of {word}")
