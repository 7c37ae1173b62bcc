"""The fewest expected new misses, over the request, those that are there and, by its predicted TTFT, those to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

from paceline_router.facts import Role
from paceline_router.latency import handover_s
from paceline_router.outlook import Foreseen, foresee, slowed, token_s
from paceline_router.pick.choice import Ask
from paceline_router.pick.least_predicted import missing_room
from paceline_router.replica import Replica

WAITING = 0.3  # misses that one whole TTFT limit of predicted TTFT weighs as much as: prompts to come will wait for it
RECENT = 1.0  # the same of prompts sent there a moment ago: their first decodes have no time to spare for the next
SHORT_LIMIT_S, LONG_LIMIT_S = 0.05, 10.0  # a limit counts as no shorter and no longer in that
NO_ROOM = 1.0  # misses: the request waits for KV
ROOM_TOKENS = 10_000  # that are missing weigh as much again
NOBODY: Mapping[str, float] = {}
UNSEEN = Foreseen(0.0, 0.0, 0.0)


def least_misses(replicas: Sequence[Replica], ask: Ask) -> Replica:
    return least_of(replicas, ask)[0]


def least_of(replicas: Sequence[Replica], ask: Ask) -> tuple[Replica, Foreseen]:
    """The replica, and what is foreseen of the request if its prompt is computed there; nothing if it is not asked."""
    now, computes = ask.now, ask.computes
    after = _decoders(ask) if ask.decoders else NOBODY
    limit_s = min(max(ask.size.due_s - now, SHORT_LIMIT_S), LONG_LIMIT_S)
    best, least, of_best, seen = replicas[0], inf, UNSEEN, UNSEEN
    for replica in replicas:
        cost = _second_leg(replica, ask, after)
        if cost >= least:
            continue
        if computes:
            seen = foreseen(replica, ask, cost)
            sent_s = replica.recent.at(now) * token_s(replica)
            cost = seen.misses + (WAITING * seen.ttft_s + RECENT * sent_s) / limit_s
            if cost >= least:
                continue
        best, least, of_best = replica, cost, seen
    return best, of_best


def weigh(first: Replica, ask: Ask) -> Foreseen:
    """What a whole request, its prompt computed at `first`, is expected to come to."""
    return foreseen(first, ask, _second_leg(first, ask, _decoders(ask)))


def _decoders(ask: Ask) -> Mapping[str, float]:
    """Expected misses of the second leg, by revision."""
    return {revision: _second_leg(decoder, ask, NOBODY) for revision, decoder in ask.decoders.items()}


def _second_leg(replica: Replica, ask: Ask, after: Mapping[str, float]) -> float:
    """Expected misses but for those of the prompt: by the decode, there or where it is handed over to, and by KV."""
    prefills = replica.role is Role.PREFILL
    misses = after[replica.revision] if prefills else slowed(replica, ask.size, ask.load, ask.share, ask.own)
    missing = missing_room(replica, ask)
    return misses + NO_ROOM + missing / ROOM_TOKENS if missing else misses


def foreseen(replica: Replica, ask: Ask, misses: float = 0.0) -> Foreseen:
    """Of the prompt alone, computed at `replica`; its misses are added to `misses`."""
    size = ask.size
    after_s = 0.0
    if replica.role is Role.PREFILL:
        revision = replica.revision
        after_s = handover_s(replica, ask.decoders[revision], size.prompt_tokens) + ask.step_s[revision]
    cached = ask.cached.get(replica.name, 0) if ask.cached else 0
    return foresee(replica, size, cached, ask.now, after_s, ask.errors, misses)
