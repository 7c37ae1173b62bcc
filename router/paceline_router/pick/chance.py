"""Any replica, by chance: alone, or the one with fewer requests of two so drawn.

Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (IEEE TPDS 2001).
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline_router.pick.choice import Ask, fewest_requests
from paceline_router.replica import Replica


def at_random(replicas: Sequence[Replica], ask: Ask) -> Replica:
    return replicas[ask.rng.randrange(len(replicas))]


def power_of_two(replicas: Sequence[Replica], ask: Ask) -> Replica:
    if len(replicas) == 1:
        return replicas[0]
    return fewest_requests(ask.rng.sample(replicas, 2), ask)
