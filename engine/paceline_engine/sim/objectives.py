"""What is left of a request's objective, as the headers from a router say; for both runtimes.

They count only from a caller with the service's token; anyone else's are dropped. Invariant: nothing in them raises;
what is no limit becomes a `Refused` that names the header. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from paceline_api import headers

from paceline_engine.request import Objective
from paceline_engine.sim.api import Refused, shown

_MAX_MS = 1e9


def read_objective(
    header: Callable[[bytes], bytes | None], default: Objective, *, trusted: bool
) -> Objective | Refused:
    """What is left of the request's objective; the default's value for each header that is not there."""
    if not trusted:
        return default
    name = header(headers.SLO_CLASS.encode())
    if name is not None and not (name.isascii() and 0 < len(name) <= 63):
        return Refused(f"{headers.SLO_CLASS} must be a name of 1 to 63 characters", headers.SLO_CLASS)
    limits: list[float] = []
    for header_name, fallback_s, lowest_ms in (
        (headers.TTFT_REMAINING_MS, default.ttft_s, -_MAX_MS),
        (headers.TPOT_MS, default.tpot_s, 1e-3),
        (headers.MAX_STALL_MS, default.max_stall_s, 1e-3),
    ):
        value = header(header_name.encode())
        milliseconds = fallback_s * 1e3 if value is None else _number(value)
        if milliseconds is None or not lowest_ms <= milliseconds <= _MAX_MS:
            return Refused(f"{header_name} must be a number of milliseconds, got {shown(value)}", header_name)
        limits.append(milliseconds / 1e3)
    return Objective(default.class_name if name is None else name.decode(), *limits)


def _number(value: bytes) -> float | None:
    try:
        return float(value) if len(value) <= 32 else None
    except ValueError:
        return None
