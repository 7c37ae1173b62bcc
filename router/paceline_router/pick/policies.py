"""The policies by the names that configuration knows them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from paceline_router.outlook import Foreseen
from paceline_router.pick.chance import at_random, power_of_two
from paceline_router.pick.choice import Ask, Policy
from paceline_router.pick.least_misses import least_misses, least_of
from paceline_router.pick.least_predicted import least_predicted
from paceline_router.pick.least_requests import least_requests
from paceline_router.pick.lmetric import lmetric
from paceline_router.pick.prefix_affinity import prefix_affinity
from paceline_router.pick.round_robin import round_robin
from paceline_router.replica import Replica

POLICIES: Mapping[str, Policy] = {
    "least-misses": least_misses,
    "least-predicted-ttft": least_predicted,
    "lmetric": lmetric,
    "prefix-affinity": prefix_affinity,
    "least-requests": least_requests,
    "power-of-two": power_of_two,
    "round-robin": round_robin,
    "random": at_random,
}
PREFIX_READING = frozenset({"least-misses", "lmetric", "prefix-affinity"})  # look at what prefix caches hold
Foreseeing = Callable[[Sequence[Replica], Ask], tuple[Replica, Foreseen]]
FORESEEING: Mapping[str, Foreseeing] = {  # predict by outlook.py; decode replicas may compute prompts at any time
    "least-misses": least_of,
}
