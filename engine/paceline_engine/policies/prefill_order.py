"""Which waiting prompts can still have their first token in time, in what order, and which to give up for the others.

In order of their latest start, as long as all fit; where they do not, the longest of those before the first late one
is put off, again and again: that leaves the fewest late (Moore and Hodgson 1968, on one machine). What was put off or
is late anyway comes after the rest, shortest first. Nothing is dropped: each plan looks anew. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush, nsmallest

from paceline_engine.request import Request
from paceline_engine.step_time import StepTimeModel

MOST_SAVABLE, MOST_LOST = 64, 16  # looked at for one step


def split(
    requests: Iterable[Request], model: StepTimeModel, after_s: float, now: float
) -> tuple[list[Request], list[Request]]:
    """Prefills that could be in time if they began at `now`, by latest start, and late ones.

    `after_s` follows a prefill until its first token is at the router. The latest start is kept on the request; it
    moves only with what has been computed of it.
    """
    savable: list[Request] = []
    lost: list[Request] = []
    for r in requests:
        if r.urgency_s != r.urgency_s or r.computed_tokens:
            left = r.left_tokens
            alone_s = model.predict4(left, left * (r.computed_tokens + left / 2), 0, 0)
            r.urgency_s = r.ttft_deadline_s - alone_s - after_s
        (lost if r.urgency_s < now and r.emitted_tokens == 0 else savable).append(r)
    if len(savable) > 1:
        savable = nsmallest(MOST_SAVABLE, savable, key=lambda r: (r.preemptions == 0, r.urgency_s))
    return savable, lost


def put_off(
    savable: Sequence[Request], model: StepTimeModel, tokens_per_s: float, after_s: float, now: float
) -> tuple[list[Request], list[Request]]:
    """Of `savable`, in order: those that are in time if done one after another, and those given up for them.

    Preempted requests (they have emitted) bind no deadline, but take their time.
    """
    at = now
    kept: list[tuple[float, int]] = []  # the longest first
    given_up: set[int] = set()
    for i, r in enumerate(savable):
        left = r.left_tokens
        seconds = left / tokens_per_s + model.attention_s(left * (r.computed_tokens + left / 2))
        at += seconds
        if r.emitted_tokens:
            continue
        heappush(kept, (-seconds, i))
        if at > r.ttft_deadline_s - after_s:
            longest_s, which = heappop(kept)
            at += longest_s
            given_up.add(which)
    if not given_up:
        return list(savable), []
    return [r for i, r in enumerate(savable) if i not in given_up], [savable[i] for i in sorted(given_up)]


def shortest_first(lost: Sequence[Request]) -> list[Request]:
    """The next few of them; who holds KV already comes first."""
    return nsmallest(MOST_LOST, lost, key=lambda r: (not r.blocks, r.left_tokens)) if len(lost) > 1 else list(lost)
