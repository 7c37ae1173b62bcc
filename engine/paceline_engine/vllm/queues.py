"""vLLM's two queues as a plan wants them, for the time of one `schedule`; afterwards all are back in their order.

Invariant: after each `with` every request is in exactly one of the queues, as without us; whom vLLM preempted meanwhile
is the first of the waiting, as it would be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from vllm.v1.request import Request

from paceline_engine.vllm.pacer import Plan


@contextmanager
def arranged(scheduler: Any, plan: Plan, free: list[Request], budget_tokens: int) -> Iterator[None]:
    """What vLLM sees of `scheduler`: whom the plan runs and admits, of the waiting `free` besides, and the budget."""
    running, waiting, most_tokens = scheduler.running, list(scheduler.waiting), scheduler.max_num_scheduled_tokens
    scheduler.running = _ordered(running, plan)
    shown = set(map(id, scheduler.running))
    hidden = [r for r in running if id(r) not in shown]
    first = set(map(id, free))
    scheduler.waiting.clear()
    scheduler.waiting.extend(chain((r for r in waiting if id(r) in first), plan.admit))
    shown = set(map(id, scheduler.waiting))
    left = [r for r in waiting if id(r) not in shown]
    scheduler.max_num_active_reqs -= len(hidden)
    scheduler.max_num_scheduled_tokens = budget_tokens
    try:
        yield
    finally:
        scheduler.max_num_scheduled_tokens = most_tokens
        scheduler.max_num_active_reqs += len(hidden)
        scheduler.running = _as_before(running, [*scheduler.running, *hidden], new_first=False)
        queue = _as_before(waiting, [*scheduler.waiting, *left], new_first=True)  # new here: preempted
        scheduler.waiting.clear()
        scheduler.waiting.extend(queue)


@contextmanager
def running_only(scheduler: Any) -> Iterator[None]:
    """Nobody waits, as far as vLLM sees."""
    waiting = list(scheduler.waiting)
    scheduler.waiting.clear()
    try:
        yield
    finally:
        scheduler.waiting.extend(waiting)  # behind those preempted meanwhile


def _ordered(running: list[Request], plan: Plan) -> list[Request]:
    """The plan's requests in its order, then those on their way; vLLM preempts from the end, where the victim goes."""
    held, apart = set(map(id, running)), set(map(id, chain(plan.run, plan.sit_out)))
    order = [r for r in plan.run if id(r) in held] + [r for r in running if id(r) not in apart]
    if plan.victim is not None and id(plan.victim) in held:
        order = [r for r in order if r is not plan.victim] + [plan.victim]
    return order


def _as_before(before: list[Request], now: list[Request], *, new_first: bool) -> list[Request]:
    """`now` in the order of `before`; what is new comes first or last."""
    place = {id(r): i for i, r in enumerate(before)}
    new = -1 if new_first else len(before)
    return sorted(now, key=lambda r: place.get(id(r), new))
