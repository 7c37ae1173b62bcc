"""Each replica in its turn, whatever it has to do."""

from __future__ import annotations

from collections.abc import Sequence

from paceline_router.pick.choice import Ask
from paceline_router.replica import Replica


def round_robin(replicas: Sequence[Replica], ask: Ask) -> Replica:
    return replicas[ask.turn % len(replicas)]
