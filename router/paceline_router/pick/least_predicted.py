"""The least predicted time to the first token, then TPOT, then name; replicas short of KV room come last.

Predictions are of the whole prompt: the prefix cache does not enter. Beside the choice, the predictions that every
choice carries.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline_router.facts import Role
from paceline_router.latency import handover_s, prefill_s, tpot_s, wait_s
from paceline_router.pick.choice import Ask
from paceline_router.replica import Replica


def least_predicted(replicas: Sequence[Replica], ask: Ask) -> Replica:
    best, best_missing, best_s = replicas[0], float("inf"), float("inf")
    best_tpot_s: float | None = None  # predicted only where it breaks a tie
    for replica in replicas:
        missing = missing_room(replica, ask)
        if missing > best_missing:
            continue
        if missing == best_missing and ask.computes and wait_s(replica, ask.now) > best_s:
            continue  # spares predicting its own prefill
        time_s = predicted_s(replica, ask)
        its_tpot_s: float | None = None
        if missing == best_missing and time_s >= best_s:
            if time_s > best_s:
                continue
            best_tpot_s = predicted_tpot_s(best, ask) if best_tpot_s is None else best_tpot_s
            its_tpot_s = predicted_tpot_s(replica, ask)
            if its_tpot_s >= best_tpot_s:
                continue
        best, best_missing, best_s, best_tpot_s = replica, missing, time_s, its_tpot_s
    return best


def missing_room(replica: Replica, ask: Ask) -> float:
    """KV tokens by which the request exceeds what is unreserved there; 0 where it fits."""
    output = 0 if replica.role is Role.PREFILL else ask.size.output_tokens
    missing = ask.size.prompt_tokens + output - replica.kv_room
    return missing if missing > 0.0 else 0.0


def predicted_s(replica: Replica, ask: Ask) -> float:
    """Seconds to the first token, or of a decode step where the prompt is computed elsewhere."""
    if not ask.computes:
        return predicted_tpot_s(replica, ask)
    tokens = ask.size.prompt_tokens
    computed = wait_s(replica, ask.now) + prefill_s(replica, tokens, tokens * tokens)
    if replica.role is not Role.PREFILL:
        return computed
    revision = replica.revision
    return computed + handover_s(replica, ask.decoders[revision], tokens) + ask.step_s[revision]


def predicted_tpot_s(replica: Replica, ask: Ask) -> float:
    """Seconds of a decode step with it; 0 on a prefill replica."""
    return 0.0 if replica.role is Role.PREFILL else tpot_s(replica, ask.size.prompt_tokens)
