"""What the constants of measured_machines.py owe to each measured run: read them from the others, then replay it.

A coarse grid around the constants; the set that meets the other runs of the engine best replays the run left out. A run
of vLLM's earlier version is left out of every choice, as nothing is read from it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from paceline_engine.step_time import HostTerm

from paceline_planner.papers.measured_machines import CONSTANTS, Constants
from paceline_planner.papers.measured_runs import MODEL, Comparison, MeasuredRun, replay

SEQUENCE_S = (0.00034, 0.00037, 0.0004, 0.00043)
PREFILL_RATIOS = (0.83, 0.85, 0.87, 0.89)
KV_RATIOS = (0.79, 0.81, 0.83, 0.85)
FRONT_S = (0.004, 0.005, 0.006)
HANDOVER_S = (0.003, 0.004, 0.005)
HANDOVER_BYTES_PER_S = (80e9, 120e9, 200e9)
POINTS_A_RATIO = 15.0  # how many points of attainment a quantile that is off by all of itself weighs


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A run replayed with the constants that the engine's other runs choose."""

    comparison: Comparison
    constants: Constants


def grid(system: str) -> Iterator[Constants]:
    """The constants to choose from, of one engine."""
    if system == "vllm":
        for sequence_s, prefill, kv in product(SEQUENCE_S, PREFILL_RATIOS, KV_RATIOS):
            host = HostTerm(sequence_s=sequence_s)
            yield Constants(vllm=replace(CONSTANTS.vllm, host=host, prefill_ratio=prefill, kv_ratio=kv))
    else:
        for front_s, handover_s, rate in product(FRONT_S, HANDOVER_S, HANDOVER_BYTES_PER_S):
            of = CONSTANTS.distserve
            one = replace(of, front_s=front_s, handover_s=handover_s, handover_bytes_per_s=rate)
            yield Constants(distserve=one)


def cost(c: Comparison) -> float:
    """Mean distance of attainment in points, and of p50 and p90 by their weight."""
    points = sum(map(abs, c.errors_points)) / len(c.errors_points)
    return points + POINTS_A_RATIO * sum(abs(r - 1.0) for r in c.ratios.values()) / len(c.ratios)


def hold_out(runs: Sequence[MeasuredRun], model: str = MODEL) -> list[HeldOut]:
    """Every run that constants may be read from, each with those of the others of its engine."""
    found = []
    for system in sorted({run.system for run in runs}):
        readable = [run for run in runs if run.system == system and not run.packs]
        tried = {constants: [replay(run, model, constants) for run in readable] for constants in grid(system)}
        for left_out in range(len(readable)):
            best = _best(tried, left_out)
            found.append(HeldOut(tried[best][left_out], best))
    return found


def _best(tried: Mapping[Constants, Sequence[Comparison]], left_out: int) -> Constants:
    return min(tried, key=lambda at: sum(cost(c) for i, c in enumerate(tried[at]) if i != left_out))
