"""The one clock of a process: model time = wall time × scale (DESIGN §8), made in `__main__` and passed down.

Durations and deadlines everywhere are model seconds; only sleeping and wall-clock lateness convert back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Clock:
    """A monotonic clock that runs `scale` times as fast as the wall."""

    scale: float = 1.0
    _origin: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1000:
            raise ValueError(f"time scale must be in (0, 1000], got {self.scale}")

    def now(self) -> float:
        """Model seconds since this clock was made."""
        return (time.monotonic() - self._origin) * self.scale

    def at(self, monotonic_s: float) -> float:
        """The model time of a moment read from `time.monotonic()` (uvloop rounds `loop.time()` to 1 ms)."""
        return (monotonic_s - self._origin) * self.scale

    def wall(self, model_s: float) -> float:
        """Wall seconds that `model_s` model seconds take."""
        return model_s / self.scale
