"""Reads measured steps from a benchmark's CSV, in the columns that aiconfigurator's grid has.

Further columns are ignored, unless they say that the rows come from different machines. Invariant: a row that is no
step is an error that names its line.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from paceline_planner.calibrate import CalibrateError
from paceline_planner.fit.grid import PHASES, Point

COLUMNS = ("phase", "n_prefill_tokens", "prefix_tokens", "decode_batch", "context", "latency_ms")
MACHINE_COLUMNS = ("gpu", "backend", "model", "tp")


def read_points(path: Path) -> list[Point]:
    """One point a row. CalibrateError."""
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = csv.DictReader(lines)
            if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
                raise CalibrateError(f"{path} lacks the columns {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
            points: list[Point] = []
            machines = set()
            for row in rows:
                machines.add(tuple(row.get(name) for name in MACHINE_COLUMNS))
                points.append(_point(row, f"{path}:{rows.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise CalibrateError(f"{path}: {e}; give a CSV file with the columns {', '.join(COLUMNS)}") from e
    if len(machines) > 1:
        raise CalibrateError(f"{path} holds steps of {len(machines)} machines; keep the rows of one")
    return points


def _point(row: Mapping[str, str | None], where: str) -> Point:
    try:
        phase = row["phase"] or ""
        tokens, prefix, decodes, context = (int(row[name] or 0) for name in COLUMNS[1:5])
        seconds = float(row["latency_ms"] or "nan") * 1e-3
    except ValueError as e:
        raise CalibrateError(f"{where}: {e}; write whole numbers of tokens, and milliseconds") from e
    if phase not in PHASES:
        raise CalibrateError(f"{where}: phase {phase!r} is none of {', '.join(PHASES)}")
    if min(tokens, prefix, decodes, context) < 0 or not 0.0 < seconds < float("inf"):
        raise CalibrateError(f"{where}: tokens must be 0 or more, and latency_ms more than 0")
    if (tokens > 0) != (phase != "decode") or (decodes > 0) != (phase != "prefill"):
        raise CalibrateError(f"{where}: a {phase} step needs {_NEEDS[phase]}")
    return Point(phase, tokens, prefix, decodes, context, seconds)


_NEEDS = {
    "prefill": "n_prefill_tokens and no decode_batch",
    "decode": "decode_batch and no n_prefill_tokens",
    "mixed": "n_prefill_tokens and decode_batch",
}
