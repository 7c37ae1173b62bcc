"""What an engine's scheduler writes down of each step (`engine_schedulers`), and how a measurement reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from struct import Struct

ROWS = "PACELINE_BENCHMARK_STEPS"  # names the file
BUDGET = "token_budget"
ROW = Struct("<5d2i")


@dataclass(frozen=True, slots=True)
class EngineStep:
    """Seconds of CLOCK_MONOTONIC. `predicted_s` is nan where nobody predicts."""

    since_s: float  # its scheduling began
    ended_s: float  # its results were taken in
    scheduling_s: float
    updating_s: float
    predicted_s: float
    prefill_tokens: int
    requests: int


def read_steps(path: Path, since: int = 0) -> list[EngineStep]:
    """Those after the first `since`."""
    with path.open("rb") as rows:
        rows.seek(since * ROW.size)
        data = rows.read()
    return [EngineStep(*row) for row in ROW.iter_unpack(data[: len(data) // ROW.size * ROW.size])]
