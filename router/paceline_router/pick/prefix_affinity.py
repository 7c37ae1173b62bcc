"""The replica that holds most of the prompt's KV, unless load is out of balance: then the fewest requests.

The rule of SGLang's cache-aware router, with its published defaults: affinity from half a prompt on, balance once the
busiest is ahead of the idlest both by 32 requests and by half. Where little is cached, the fewest requests too.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline_router.pick.choice import Ask, fewest_requests, requests
from paceline_router.replica import Replica

LEAST_SHARE = 0.5  # of the prompt
APART_REQUESTS, APART_RATIO = 32, 1.5


def prefix_affinity(replicas: Sequence[Replica], ask: Ask) -> Replica:
    if not ask.computes or not ask.cached:
        return fewest_requests(replicas, ask)
    counts = [requests(replica, ask) for replica in replicas]
    least, most = min(counts), max(counts)
    if most - least > APART_REQUESTS and most > APART_RATIO * least:
        return fewest_requests(replicas, ask)
    best = max(replicas, key=lambda replica: ask.cached.get(replica.name, 0))
    if ask.cached.get(best.name, 0) < LEAST_SHARE * ask.size.prompt_tokens:
        return fewest_requests(replicas, ask)
    return best
