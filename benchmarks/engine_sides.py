"""The two engines that all measurements of real vLLM run on, and the sides of a comparison that they stand for.

Both serve the 5 M model of `make vllm` and stay up together (1.5 GB each), one of them idle. vLLM's own side has the
budget that each request names, so a sweep over fixed budgets is a sweep over requests.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine_steps import BUDGET, ROW, ROWS, EngineStep, read_steps
from gaps import Stream, complete, prompt
from vllm_engine import serving

TOKEN = "benchmark"
BORDER = "--middleware=paceline_engine.vllm.border.Border"
NO_CACHE = "--no-enable-prefix-caching"
FIRST = (16, 64, 256, 1000, 4000)  # prompts: what the machine is like


@dataclass(frozen=True, slots=True)
class Engine:
    """One that serves; `rows` is where it writes its steps."""

    port: int
    rows: Path

    def count(self) -> int:
        """Steps so far."""
        return self.rows.stat().st_size // ROW.size

    def steps(self, since: int = 0) -> list[EngineStep]:
        return read_steps(self.rows, since)


@dataclass(frozen=True, slots=True)
class Side:
    """Which engine is asked, with what headers, and what goes into each body."""

    name: str
    engine: Engine
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Engines:
    """`ours` with our scheduler and border, `own` with vLLM's."""

    ours: Engine
    own: Engine

    def fixed(self, budgets: Sequence[int]) -> list[Side]:
        """vLLM's default and these budgets."""
        default = Side("vLLM's default", self.own, body=_budget(0))
        return [default, *(Side(f"fixed {n}", self.own, body=_budget(n)) for n in budgets)]


def _budget(tokens: int) -> dict[str, Any]:
    return {"vllm_xargs": {BUDGET: tokens}}


def slo_headers(*, tpot_ms: float, stall_ms: float, ttft_ms: float | None = None, name: str = "") -> dict[str, str]:
    """What tells our engine of an objective; vLLM's own does not look at them."""
    headers = {"x-paceline-token": TOKEN, "x-slo-tpot-ms": f"{tpot_ms:g}", "x-slo-max-stall-ms": f"{stall_ms:g}"}
    if ttft_ms is not None:
        headers["x-slo-ttft-remaining-ms"] = f"{ttft_ms:g}"
    return headers | ({"x-slo-class": name} if name else {})


@contextmanager
def engines(*flags: str) -> Iterator[Engines]:
    """Both, started side by side and acquainted with the machine."""
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paceline-bench-")))

        def start(name: str, *own: str) -> Engine:
            env = {"PYTHONPATH": str(Path(__file__).parent), "PACELINE_TOKEN": TOKEN, ROWS: str(folder / name)}
            scheduler = f"--scheduler-cls=engine_schedulers.{name}"
            port = stack.enter_context(serving("qwen2-5m", *own, *flags, scheduler=scheduler, env=env))
            return Engine(port, folder / name)

        starting = pool.submit(start, "Ours", BORDER), pool.submit(start, "Fixed")
        both = Engines(*(one.result() for one in starting))
        for engine in (both.ours, both.own):
            for tokens in FIRST:
                ids = prompt(tokens, tokens)
                asyncio.run(complete(engine.port, Stream(), prompt=ids, max_tokens=8, ignore_eos=True))
        yield both
