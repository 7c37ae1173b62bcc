"""Which replicas err again and again: they answer, and answer with errors alone, which looks like little load.

After MOST_ERRORS in a row one is suspected for a time, and then again after a single one, twice as long each time,
until it has completed something. Whether it is left out goes by who can stand in (silence.py), so that a request which
no engine can take harms nobody. Invariant: a replica that completed something since is not suspected anew for what
came before. Times are model seconds. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paceline_router.replica import Replica

MOST_ERRORS = 5  # in a row (Envoy's default for consecutive 5xx)
SUSPECTED_S = 10.0
MOST_DOUBLINGS = 5


@dataclass(slots=True)
class _Record:
    """`seen`: errors that have been acted on."""

    seen: int = 0
    times: int = 0
    until_s: float = 0.0


class Outliers:
    """Of all replicas; `suspects` err."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self.suspects: set[str] = set()

    def look(self, replicas: Mapping[str, Replica], now: float) -> list[str]:
        """Who has become suspect by `now`."""
        for name in self._records.keys() - replicas.keys():
            del self._records[name]
        found = [name for name, replica in replicas.items() if self._errs(name, replica.errors, now)]
        self.suspects = {name for name, record in self._records.items() if now < record.until_s}
        return found

    def _errs(self, name: str, errors: int, now: float) -> bool:
        if not errors:
            self._records.pop(name, None)
            return False
        record = self._records.setdefault(name, _Record())
        if errors < record.seen:  # it has completed something meanwhile
            record = self._records[name] = _Record()
        if now < record.until_s:
            record.seen = errors  # of what it had before
            return False
        if errors - record.seen < (1 if record.times else MOST_ERRORS):
            return False
        record.until_s = now + SUSPECTED_S * 2 ** min(record.times, MOST_DOUBLINGS)
        record.seen, record.times = errors, record.times + 1
        return True
