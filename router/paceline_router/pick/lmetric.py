"""The least product of new prefill tokens and batch size, without weights: LMETRIC (arXiv 2603.15202, OSDI'26).

New prefill tokens are those queued at the replica and the request's own, without what the prefix cache holds; the batch
is what runs and waits there, this request included. A decode leg brings no new tokens: its batch alone decides.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline_router.pick.choice import Ask
from paceline_router.replica import Replica


def lmetric(replicas: Sequence[Replica], ask: Ask) -> Replica:
    if not ask.computes:
        return min(replicas, key=_batch)
    tokens, cached = ask.size.prompt_tokens, ask.cached
    if not cached:
        return min(replicas, key=lambda r: (r.new_tokens + tokens) * _batch(r))
    return min(replicas, key=lambda r: (r.new_tokens + max(tokens - cached.get(r.name, 0), 1)) * _batch(r))


def _batch(replica: Replica) -> int:
    return replica.decodes + replica.incoming + replica.prefill_queue + 1
