"""What the law is told of a fleet that Prometheus watches: lengths as histograms, and what its engines have fitted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean, median

from paceline_engine.step_time import StepTable
from paceline_router.autoscale.signals import EngineSignals, Lengths
from paceline_router.facts import Facts
from paceline_router.metrics import TOKEN_BOUNDS


def histogram(tokens: Sequence[int]) -> Lengths:
    """What `paceline_prompt_tokens` would hold of them."""
    ascending = sorted(tokens)
    shares = [bisect_right(ascending, bound) / len(ascending) for bound in TOKEN_BOUNDS]
    steps = (shares[0], *(b - a for a, b in pairwise(shares)))
    return Lengths(fmean(tokens), tuple(zip(TOKEN_BOUNDS, steps, strict=True)))


def engine_signals(table: StepTable, engines: Iterable[Facts]) -> EngineSignals:
    """The medians that production's queries take over a pool's engines."""
    facts = list(engines)
    return EngineSignals(
        table,
        median(f.mixed_scale for f in facts),
        median(f.mixed_offset_s for f in facts),
        median(f.decode_scale for f in facts),
        median(f.decode_offset_s for f in facts),
    )
