"""The replica with the fewest requests, long or short; the first by name of equals."""

from __future__ import annotations

from collections.abc import Sequence

from paceline_router.pick.choice import Ask, fewest_requests
from paceline_router.replica import Replica


def least_requests(replicas: Sequence[Replica], ask: Ask) -> Replica:
    return fewest_requests(replicas, ask)
