"""Which objective a request gets: its class from the header or the default, tightened by the request's own limits.

Invariant: an admitted objective is never looser than its class, and every limit in it is a positive, finite time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from paceline_api.headers import CLIENT_TPOT_MS, CLIENT_TTFT_MS, SLO_CLASS
from paceline_api.slo import SLOClass

from paceline_router.request import Rejected

LONGEST_LIMIT_MS = 86_400_000  # a day: beyond it a value is a mistake of units
LONGEST_TENANT = 64  # bytes; what is longer is cut
_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class Admitted:
    """The objective of one request. `own` is its tightened form, None when it brought no limit below its class's."""

    slo: SLOClass
    own: SLOClass | None = None

    @property
    def effective(self) -> SLOClass:
        """What the engines are asked to hold."""
        return self.own or self.slo


def admit(
    class_name: str | None,
    ttft_ms: str | None,
    tpot_ms: str | None,
    classes: Mapping[str, SLOClass],
    default_class: str,
) -> Admitted | Rejected:
    """The values of `x-slo-class`, `x-llm-d-slo-ttft-ms` and `x-llm-d-slo-tpot-ms`, None where a header is absent."""
    slo = classes.get(default_class if class_name is None else class_name)
    if slo is None:
        message = f"there is no SLO class {(class_name or '')[:64]!r}; this service has {', '.join(classes)}"
        return Rejected(message, SLO_CLASS)
    if ttft_ms is None and tpot_ms is None:
        return Admitted(slo)
    ttft_s = _limit_s(CLIENT_TTFT_MS, ttft_ms)
    tpot_s = _limit_s(CLIENT_TPOT_MS, tpot_ms)
    if isinstance(ttft_s, Rejected):
        return ttft_s
    if isinstance(tpot_s, Rejected):
        return tpot_s
    own = slo.tightened(ttft_s, tpot_s)
    return Admitted(slo, own if own.ttft_s < slo.ttft_s or own.tpot_s < slo.tpot_s else None)


def tenant(owner: str, *named: bytes | None) -> str:
    """Whose request it is: the owner of the API key that it came with, whatever its headers say.

    Without an owner (no keys are asked for) what the first header that says so calls it; the last of `named`, an
    Authorization, is not kept, only told from others.
    """
    if owner:
        return owner
    *names, key = named
    name = next((name[:LONGEST_TENANT].decode("latin-1") for name in names if name), "")
    return name or (f"key {hash(key):x}" if key else "")


def _limit_s(header: str, value: str | None) -> float | Rejected | None:
    if value is None:
        return None
    limit_ms = float(value) if _DECIMAL.fullmatch(value) else 0.0
    if not 0 < limit_ms <= LONGEST_LIMIT_MS:
        message = f"{header} must be milliseconds above 0 and at most {LONGEST_LIMIT_MS}, got {value[:32]!r}"
        return Rejected(message, header)
    return limit_ms / 1000
