"""What a replica's present work makes of the next request, and what that request makes of it: expected new misses.

The engine runs prompts by their deadlines, gives up those that are late anyhow, and holds the decodes' pace by cutting
prefill chunks (DESIGN §5). So a prompt waits for those due before it, delays those due after it, and every decode slows
the prompts of its replica: most where it is the first of a tight TPOT. Derived figures are kept until the replica's
work changes; a decision reads them and scans no resident. Invariants: chances are within [0, 1]; added misses are not
negative. Times are model seconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, inf
from typing import NamedTuple

from paceline_router.arriving import Load
from paceline_router.facts import Role
from paceline_router.foresight import PredictionErrors
from paceline_router.latency import step_s
from paceline_router.replica import Replica, Size

MOST_CHUNK = 2048  # tokens of a step without decodes to hold back for
LEAST_CHUNK = 128  # a tile
STALL = 2.5  # of the TPOT limit: how long a step may be that decodes make up for (the engine's share of 3 × TPOT)
LEAST_SHARE = 0.02
LEAST_SLOPE_S = 1e-8  # a token takes some time, whatever a table says
NEUTRAL_CONTEXT = 1024.0  # tokens of a decode where none runs
NEUTRAL_PAIR_S = 1.5e-10  # seconds per token² of attention before the first scrape: an 8B model on an A100
NEAR = 8  # queued requests behind a new one whose delay is looked at
ERROR_FLOOR_S = 0.02  # of a predicted time to the first token, beside its share of it
PACE_ERROR_P90 = 0.1  # of a decode step over its limit
LN_9 = 2.1972246  # a logistic chance is 0.1 at this
LONGEST_PACE_S = 0.1  # at which a decode is taken to run, however loose its limit
DECIDES_FROM = 0.5  # of the load: with less, a router does not look beyond the present
FULL, FULL_P90 = 0.95, 0.3  # busy share at which half of the prompts come too late, and what brings that to a tenth
STEEP = LN_9 / FULL_P90
LATER = 0.03  # weight of misses among requests that are still to come


class Paced(NamedTuple):
    """Decodes of a replica, as the engine weighs them: each by the tightest TPOT over its own."""

    ratio: float  # their step over that limit: above 1 they cannot all hold it
    token_s: float  # what a token of a prompt takes beside them


@dataclass(slots=True)
class Pacing:
    """Of those that decode or will. `slower`: how many are late with one more, and their pace then, by its TPOT."""

    now: Paced
    slower: dict[float, tuple[float, Paced]] = field(default_factory=dict)


class Outlook(NamedTuple):
    """`dues` and `ends`: of the queued prompts that can still be in time, in order; `ends` when each is done."""

    token_s: float  # of a prompt's own and of those ahead of it, as they went so far: the pacing says what lasts
    pair_s: float
    base_s: float  # the least step with a prompt
    theirs_s: float  # when the prompts of other routers are done
    dues: list[float]
    ends: list[float]


def pacing(replica: Replica) -> Pacing:
    """Of a replica's decodes; made anew when others decode there, or will."""
    found = replica.pacing
    if found is None:
        found = replica.pacing = Pacing(_paced(replica, replica.tightest_s, None))
    return found


def outlook(replica: Replica, now: float = -inf) -> Outlook:
    """Of a replica's present queue; made anew after a change, and when a prompt became late by `now`."""
    found = replica.outlook
    if found is None or (found.dues and found.dues[0] <= now):
        found = replica.outlook = _look(replica, now)
    return found


def _look(replica: Replica, now_s: float) -> Outlook:
    facts = replica.facts
    pair_s = NEUTRAL_PAIR_S if facts.table is None else facts.mixed_scale * facts.table.pair_s
    token_s, pair_s = replica.drift * pacing(replica).now.token_s, replica.drift * pair_s
    theirs_s = facts.seen_at_s + replica.others.queued_tokens * token_s  # when others' prompts are done
    view = Outlook(token_s, pair_s, _prompt_steps(replica)[0], theirs_s, [], [])
    at = max(replica.head_since_s, theirs_s)
    replica.late.clear()
    replica.late_tokens = 0
    for entry in replica.queue:
        took = entry.new_tokens * token_s + 0.5 * entry.new_squares * pair_s
        done_s = max(at, entry.since_s) + took
        if max(done_s, now_s) > entry.due_s:
            replica.late[entry.tpot_s] = replica.late.get(entry.tpot_s, 0) + 1
            replica.late_tokens += entry.prompt_tokens
            continue
        at = done_s
        view.dues.append(entry.due_s)
        view.ends.append(at)
    return view


def _paced(replica: Replica, limit_s: float, one_more_s: float | None) -> Paced:
    """Those that are late for good decode some day, but not while the prompts of others are computed."""
    facts, others = replica.facts, replica.others
    least_s, slope_s = _prompt_steps(replica)
    count = sum(replica.paces.values()) + replica.others_paced
    if replica.role is Role.PREFILL or (not count and one_more_s is None):
        return Paced(0.0, (least_s + slope_s * (MOST_CHUNK - LEAST_CHUNK)) / MOST_CHUNK)
    weight = _weight(replica.paces, limit_s) + _weight(others.paces, limit_s)
    context = replica.decode_context + replica.incoming_context + replica.prefill_tokens + others.context
    mean = context / count if count else NEUTRAL_CONTEXT
    if one_more_s is not None:
        weight += _weight({one_more_s: 1}, limit_s)
    decodes, at = max(round(weight), 1), round(weight * mean)
    decode_s = step_s(facts, 0, 0.0, decodes, at)
    ratio = decode_s / limit_s
    if replica.late:
        weight = max(weight - _weight(replica.late, limit_s), 0.0)
        if (rest := count - sum(replica.late.values())) > 0:
            mean = max(context - replica.late_tokens, 0) / rest
        decodes, at = max(round(weight), 1), round(weight * mean)
        decode_s = step_s(facts, 0, 0.0, decodes, at)
    short_s = step_s(facts, LEAST_CHUNK, 0.0, decodes, at)
    return Paced(ratio, _token_s(limit_s, decode_s, short_s, slope_s))


def _weight(paces: Mapping[float, int], limit_s: float) -> float:
    """Decodes of these TPOT limits, each by its share of steps of `limit_s`."""
    weight = 0.0
    for tpot_s, n in paces.items():
        weight += n if tpot_s <= limit_s else n * limit_s / tpot_s
    return weight


def _token_s(limit_s: float, decode_s: float, short_s: float, slope_s: float) -> float:
    """Seconds per token of a prompt beside decodes whose mean step may be `limit_s`.

    Prompts are computed in long steps, as long as a stall allows, and decode-only ones make up for them.
    """
    long_s = short_s + slope_s * (MOST_CHUNK - LEAST_CHUNK)
    if long_s <= limit_s:
        return long_s / MOST_CHUNK
    long_s = min(long_s, STALL * limit_s)
    chunk = max(LEAST_CHUNK + (long_s - short_s) / slope_s, LEAST_CHUNK / 4)
    share = max((limit_s - decode_s) / max(long_s - decode_s, limit_s), LEAST_SHARE)  # of the steps that are long
    return limit_s / (share * chunk)


def _prompt_steps(replica: Replica) -> tuple[float, float]:
    """Of steps without decodes: the seconds of the least, and of each token more. Kept as long as the facts are."""
    found = replica.prompt_steps_s
    if found is None:
        least_s = step_s(replica.facts, LEAST_CHUNK, 0.0, 0, 0)
        most_s = step_s(replica.facts, MOST_CHUNK, 0.0, 0, 0)
        found = replica.prompt_steps_s = (least_s, max((most_s - least_s) / (MOST_CHUNK - LEAST_CHUNK), LEAST_SLOPE_S))
    return found


def token_s(replica: Replica) -> float:
    """Seconds of one more token in a step with a prompt."""
    return _prompt_steps(replica)[1]


class Foreseen(NamedTuple):
    """Of one request: expected new misses; seconds to its first token, and what of them is its own prefill."""

    misses: float
    ttft_s: float
    alone_s: float


def foresee(
    replica: Replica,
    size: Size,
    cached: int,
    now: float,
    after_s: float,
    errors: PredictionErrors,
    misses: float = 0.0,
) -> Foreseen:
    """Its prompt is computed at `replica`, `cached` tokens of it being there; its first token follows `after_s` later.

    Its own miss and those of the prompts due after it are added to `misses`; what its decode does is `slowed`.
    """
    view = outlook(replica, now)
    dues, ends = view.dues, view.ends
    if cached >= size.prompt_tokens:
        cached = size.prompt_tokens - 1
    squares = size.prompt_tokens**2 - cached**2
    alone_s = max((size.prompt_tokens - cached) * view.token_s + 0.5 * squares * view.pair_s, view.base_s)
    place = bisect_right(dues, size.due_s)
    late_s = 2 * (now - ends[0]) if ends and now > ends[0] else 0.0  # the head is overdue: as long again, as in latency
    if place:
        ahead_s = max(ends[place - 1] + late_s - now, 0.0)
    else:  # others' prompts, or half of the step in progress
        ahead_s = max(view.theirs_s - now, 0.5 * view.base_s if ends or replica.decodes else 0.0)
    p90 = errors.p90(now - replica.facts.seen_at_s)
    ttft_s = ahead_s + alone_s + after_s
    misses += chance((size.due_s - now - ttft_s) / (ERROR_FLOOR_S + p90 * ttft_s))
    for i in range(place, min(place + NEAR, len(dues))):
        end_s = ends[i] + late_s
        error_s = ERROR_FLOOR_S + p90 * max(end_s - now, 0.0)
        misses += chance((dues[i] - end_s - alone_s) / error_s) - chance((dues[i] - end_s) / error_s)
    return Foreseen(misses, ttft_s, alone_s + after_s)


def slowed(replica: Replica, size: Size, load: Load, share: float, own: float) -> float:
    """Expected new misses from its decode at `replica`: its own and others' TPOT, and later prompts that it slows.

    The replica gets `share` of the load. What comes later counts as far as this router decides it (`own`): routers that
    know little of each other would all keep to the same replicas.
    """
    paced = replica.pacing or pacing(replica)
    before, found = paced.now, paced.slower.get(size.tpot_s)
    if found is None:
        after = _paced(replica, min(replica.tightest_s, size.tpot_s), size.tpot_s)
        found = paced.slower[size.tpot_s] = _late_decodes(replica, before, after), after
    misses, after = found
    if replica.role is Role.MIXED and own > DECIDES_FROM:
        residence_s = size.pace_tokens * min(size.tpot_s, LONGEST_PACE_S)
        weight = LATER * (own - DECIDES_FROM) / (1.0 - DECIDES_FROM)
        misses += weight * residence_s * _late_prompts(before, after, load, share)
    return misses


def _late_decodes(replica: Replica, before: Paced, after: Paced) -> float:
    """Its own TPOT, and that of those who are there."""
    there = sum(replica.paces.values()) + replica.others_paced
    own = chance((1.0 - after.ratio) / PACE_ERROR_P90)
    if not there:
        return own
    return own + there * max(own - chance((1.0 - before.ratio) / PACE_ERROR_P90), 0.0)


def _late_prompts(before: Paced, after: Paced, load: Load, share: float) -> float:
    """More of them per second."""
    tokens_per_s = share * load.tokens_per_s
    if after.token_s <= before.token_s:
        return 0.0
    more = _crowded(tokens_per_s * after.token_s) - _crowded(tokens_per_s * before.token_s)
    return share * load.requests_rps * more


def _crowded(used: float) -> float:
    """The chance that a prompt comes too late at a replica that prompts keep busy for this share of its time."""
    return 1.0 / (1.0 + exp(STEEP * (FULL - used)))


def chance(slack: float) -> float:
    """That something is late: one half at no slack, 0.1 at a slack of 1."""
    x = LN_9 * slack
    return 0.0 if x > 40.0 else 1.0 if x < -40.0 else 1.0 / (1.0 + exp(x))
