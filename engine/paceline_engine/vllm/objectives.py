"""A request's objective on its way through vLLM: the keys of `vllm_xargs` that carry it to the scheduler.

What cannot be an objective is left out, never raised: the engine must outlive any request. A request that names no
limit has the default class's, or none. Times in keys are milliseconds and count from the engine's receipt. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from paceline_api.slo import STALL_PER_TPOT

from paceline_engine.request import Objective

CLASS, TTFT_MS, TPOT_MS, MAX_STALL_MS = "slo_class", "slo_ttft_ms", "slo_tpot_ms", "slo_max_stall_ms"
LONGEST_MS = 1e9
# What a limit is where others are given and neither the request nor a default class names it: no reason to hurry.
LAX_TTFT_S, LAX_TPOT_S = 60.0, 1.0
# For requests without an objective beside others that have one: they run when nobody else is in need.
BEST_EFFORT = Objective("", LAX_TTFT_S, LAX_TPOT_S, STALL_PER_TPOT * LAX_TPOT_S)


def read_objective(extra: Mapping[str, object] | None, default: Objective | None) -> Objective | None:
    """The objective in a request's extra arguments; `default` where they name none."""
    if not extra:
        return default
    ttft, tpot, stall = (_seconds(extra.get(key)) for key in (TTFT_MS, TPOT_MS, MAX_STALL_MS))
    if tpot is not None and tpot <= 0:
        tpot = None
    if stall is not None and stall <= 0:
        stall = None
    if ttft is None and tpot is None and stall is None:
        return default
    fallback = default or BEST_EFFORT
    pace = fallback.tpot_s if tpot is None else tpot
    if stall is None:
        stall = fallback.max_stall_s if tpot is None else STALL_PER_TPOT * tpot
    name = extra.get(CLASS)
    class_name = name if isinstance(name, str) and 0 < len(name) <= 63 else fallback.class_name
    return Objective(class_name, fallback.ttft_s if ttft is None else ttft, pace, stall)


def _seconds(value: object) -> float | None:
    """Milliseconds as a number or its text; None for what is neither or out of range. TTFT may be negative: late."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        ms = float(value)
    except (ValueError, OverflowError):
        return None
    return ms / 1e3 if isfinite(ms) and abs(ms) <= LONGEST_MS else None
