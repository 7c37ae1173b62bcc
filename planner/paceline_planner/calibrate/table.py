"""Fits measured steps and makes the table's file of them: one document with one entry, as `paceline_engine.tables` has.

Decides how far the knots go (no further than what was measured: beyond, the last slope goes on) and what is too little
to fit. Invariant: the errors are those of the table as written, rounded constants included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from paceline_api.catalog import ModelShape
from paceline_engine.step_time import StepTable
from paceline_engine.tables import parse

from paceline_planner.calibrate import CalibrateError
from paceline_planner.fit.grid import DECODE_KNOTS, TOKEN_KNOTS, Fit, Point, errors, fit
from paceline_planner.fit.tables import NO_HOST, constants, render

DIGITS = 4
REACHED = 1.5  # a knot beyond the measurements counts when they reach this far past the knot before it


@dataclass(frozen=True, slots=True)
class Machine:
    """Whose table it is. `gpu` names table and accelerator; `source` says how and when it was measured."""

    gpu: str
    model: ModelShape
    tensor: int
    kv_tokens: int
    source: str


@dataclass(frozen=True, slots=True)
class Compared:
    """A measured step beside the table's."""

    point: Point
    fitted_s: float

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.fitted_s / self.point.seconds - 1.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """The result: `content` is the file's."""

    table: StepTable
    compared: tuple[Compared, ...]
    content: bytes


def calibrate(points: Sequence[Point], machine: Machine) -> Calibration:
    """CalibrateError when the points cannot tell the costs apart."""
    _check(points)
    document: dict[str, Any] = {"table": machine.gpu, "gpu": machine.gpu, "source": machine.source, "host": NO_HOST}
    entry: dict[str, Any] = {"model": machine.model.name, "tensor": machine.tensor, "kv_tokens": machine.kv_tokens}
    entry |= {"kv_bytes_per_token": machine.model.kv_bytes_per_token, "note": ""}
    entry |= constants(_fit(points), DIGITS) | {"error": {}}
    table = parse(document, entry)
    compared = tuple(Compared(p, table.seconds(p.shape)) for p in points)
    entry["error"] = errors(table, points, max(p.context for p in points))
    document["entries"] = [entry]
    return Calibration(parse(document, entry), compared, render(document))


def _check(points: Sequence[Point]) -> None:
    prefills = {p.prefill_tokens for p in points if p.phase == "prefill"}
    decodes = [p for p in points if p.phase == "decode"]
    if len(prefills) < 2:
        raise CalibrateError(f"{len(prefills)} lengths of lone prompts were measured; at least 2 are needed")
    sizes, totals = {p.decodes for p in decodes}, {p.decodes * p.context for p in decodes}
    if len(sizes) < 2 or len(totals) <= len(sizes):
        raise CalibrateError("decodes need at least 2 batch sizes, and one of them at 2 contexts; measure more of them")


def _fit(points: Sequence[Point]) -> Fit:
    """The fit, its knots cut where the measurements end."""
    longest = max(p.context for p in points if p.phase == "decode")
    found = fit(points, longest)
    tokens = max(p.prefill_tokens + p.decodes for p in points if p.phase != "decode")
    last_linear = _last_knot(TOKEN_KNOTS, tokens)
    last_decode = _last_knot(DECODE_KNOTS, max(p.decodes for p in points if p.phase == "decode"))
    linear = tuple(knot for knot in found.linear if knot[0] <= last_linear)
    return Fit(linear, found.pair_s, found.mixed_s, tuple(knot for knot in found.decode if knot[0] <= last_decode))


def _last_knot(knots: Sequence[int], most: int) -> int:
    """The last knot that measurements up to `most` determine; at least the second."""
    reached = [high for low, high in pairwise(knots) if most >= min(REACHED * low, high)]
    return max(reached, default=knots[1])
