"""The deadline-driven stall-free policy (DESIGN §5): each step's token budget follows from what running requests owe.

The step limit is the time until the first decode, run at the decode-only pace from then on, would miss its mean TPOT or
stall. Prefill chunks fill that time in the order of their slack. What cannot be saved any more no longer bounds the
others: a lost decode leaves the limit, a lost prefill goes to a background queue with a small share. A step also ends
before the first TTFT deadline among its own prompts. Goes beyond Sarathi-Serve's fixed budget (OSDI'24, Algorithm 3).
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import nsmallest
from math import inf

from paceline_engine.budget import StepLoad, largest_chunk
from paceline_engine.lengths import OutputLengths
from paceline_engine.policies.step import Latest, Reserve, Step, View
from paceline_engine.request import Leg, Request
from paceline_engine.step_time import Regime, StepTimeModel

HORIZON_TOKENS = 32  # how far ahead a decode's pace may be made up for (DESIGN §5)
MAX_PARTIALS = 4  # prefills that may hold KV unfinished
LOST_SHARE = 0.1  # of prefill tokens, for prefills that miss anyway, while others can be saved
REPLAN_STEPS = 16  # decode-only steps between two looks at the deadlines
SIT_OUT_FACTOR = 1.5  # a decode may sit out a step only if its TPOT is this far above the tightest


@dataclass(slots=True)
class _Owed:
    """What the running decodes allow: the limit of the next step, and the decodes that must be in it."""

    limit_s: float
    decodes: list[Request]
    load: StepLoad
    tightest_tpot_s: float
    growth_tokens: int


@dataclass(slots=True)
class StallFree(Latest):
    """`transfer_s` is what follows a prefill before its first token is out (KV hand-over, on a prefill engine)."""

    model: StepTimeModel
    lengths: OutputLengths
    transfer_s: float = 0.0
    delay_s: float = 0.002  # engine to router
    _lost_credit: float = field(default=0.0, init=False)

    def plan(self, view: View, start_s: float) -> Step:
        owed = self._owed(view, start_s)
        if not view.partials and not view.waiting:
            decodes = owed.decodes or view.decodes
            repeat = REPLAN_STEPS if len(decodes) == len(view.decodes) else 1
            return Step(decodes, (), max(view.limits.max_batched_tokens, len(decodes)), repeat=repeat)
        prefills, tokens = self._compose(view, owed, start_s)
        decodes = owed.decodes if owed.decodes or prefills else view.decodes
        return Step(decodes, prefills, max(1, len(decodes) + tokens))

    def victim(self, view: View, start_s: float) -> Request:
        """Lost requests first, then those with most room until their next token is due."""
        if view.partials:
            return max(view.partials, key=lambda r: r.urgency_s)
        return max(view.decodes, key=lambda r: (r.lost, _due_s(r, 1)))

    def _owed(self, view: View, start_s: float) -> _Owed:
        """One pass over the decodes: who must run, and by when the step must end."""
        decodes, lengths, predict = view.decodes, self.lengths, self.model.predict4
        context = 0
        tightest = inf
        for r in decodes:
            context += r.prompt_tokens + r.emitted_tokens
            if r.objective.tpot_s < tightest:
                tightest = r.objective.tpot_s
        joining = view.partials[0] if view.partials else view.waiting[0] if view.waiting else None
        n, joined = len(decodes), context
        if joining is not None:
            n, joined = n + 1, context + joining.total_tokens
        pace_s = predict(0, 0.0, n, joined) if n else 0.0
        ratio = self.model.margin_ratio(Regime.MIXED if joining else Regime.DECODE)
        margin_s = ratio * pace_s + self.delay_s
        limit, growth, run = inf, 0, []
        crowded = joining is not None or pace_s > 0.9 * tightest
        for r in decodes:
            objective, emitted = r.objective, r.emitted_tokens
            left = min(lengths.remaining(objective.class_name, emitted), r.max_tokens - emitted)
            growth += left
            if emitted == 0:  # KV came from elsewhere: its first token is a decode step, bound by its TTFT
                slack = r.ttft_deadline_s - start_s - margin_s
                r.lost = slack < pace_s
            else:
                h = min(HORIZON_TOKENS, left)
                slack = _due_s(r, h) - (h - 1) * pace_s - start_s - margin_s
                r.lost = slack < pace_s and _due_s(r, left) - left * pace_s < start_s
            stall = objective.max_stall_s
            if emitted:
                stall += r.last_token_s - start_s - margin_s
            may_wait = crowded and emitted and not r.lost and objective.tpot_s >= SIT_OUT_FACTOR * tightest
            room = min(slack, stall) - pace_s
            if may_wait and room > max(pace_s, tightest):  # it sits this one out, and must still make the next
                limit = min(limit, room)
                continue
            run.append(r)
            limit = min(limit, stall) if r.lost else min(limit, slack, stall)
        load = StepLoad(len(run), sum(r.total_tokens for r in run) if len(run) < len(decodes) else context)
        return _Owed(limit, run, load, tightest, growth)

    def _compose(self, view: View, owed: _Owed, start_s: float) -> tuple[list[Request], int]:
        """Prefills of this step in order, and the tokens that they may take."""
        savable, lost = self._queues(view, start_s)
        load, limit = owed.load, owed.limit_s
        room = view.limits.max_batched_tokens - load.decodes
        chosen: list[Request] = []
        partials = len(view.partials)
        kv_left = view.kv.available - view.kv.blocks_for(owed.growth_tokens)
        for r, is_lost in self._turns(savable, lost):
            fresh = not r.blocks
            if fresh and (view.running or chosen) and not self._admits(view, owed, r, len(chosen), kv_left):
                break
            ratio = self.model.margin_ratio(Regime.MIXED)
            bound = (
                limit if is_lost else min(limit, max(r.ttft_deadline_s - self.transfer_s - start_s - self.delay_s, 0.0))
            )
            left = r.left_tokens
            chunk = largest_chunk(
                load, self.model, r.computed_tokens, left, bound / (1 + ratio), room, view.limits.tile_tokens
            )
            if chunk < left and not is_lost and bound < limit:  # its own deadline is no reason to cut it short
                chunk = largest_chunk(
                    load, self.model, r.computed_tokens, left, limit / (1 + ratio), room, view.limits.tile_tokens
                )
            if chunk <= 0 or (chunk < left and fresh and partials >= MAX_PARTIALS):
                break
            if chosen and bound < limit and load.seconds(self.model, chunk, r.computed_tokens) > bound:
                break
            chosen.append(r)
            load.add(chunk, r.computed_tokens)
            room -= chunk
            self._lost_credit += -chunk if is_lost else LOST_SHARE * chunk
            if fresh:
                kv_left -= view.kv.blocks_for(r.total_tokens)
            if chunk < left:
                break
            limit = min(limit, bound) if not is_lost else limit
        self._lost_credit = min(max(self._lost_credit, 0.0), float(view.limits.max_batched_tokens))
        return chosen, load.prefill_tokens

    def _queues(self, view: View, start_s: float) -> tuple[list[Request], list[Request]]:
        """Savable prefills by slack, and lost ones, shortest first."""
        savable: list[Request] = []
        lost: list[Request] = []
        for r in (*view.partials, *view.waiting):
            if r.urgency_s != r.urgency_s or r.computed_tokens:
                left = r.left_tokens
                alone_s = self.model.predict4(left, left * (r.computed_tokens + left / 2), 0, 0)
                r.urgency_s = r.ttft_deadline_s - alone_s - self.transfer_s - self.delay_s
            late = r.emitted_tokens == 0 and r.urgency_s < start_s
            (lost if late else savable).append(r)
        if len(savable) > 1:
            savable = nsmallest(64, savable, key=lambda r: (r.preemptions == 0, r.urgency_s))
        if len(lost) > 1:
            lost = nsmallest(16, lost, key=lambda r: (not r.blocks, r.left_tokens))
        return savable, lost

    def _turns(self, savable: list[Request], lost: list[Request]) -> Iterable[tuple[Request, bool]]:
        """Whose turn it is: lost prefills first when their credit covers one, else after all savable ones."""
        early = 1 if lost and savable and self._lost_credit >= lost[0].left_tokens else 0
        yield from ((r, True) for r in lost[:early])
        yield from ((r, False) for r in savable)
        yield from ((r, True) for r in lost[early:])

    def _admits(self, view: View, owed: _Owed, r: Request, joining: int, kv_left: int) -> bool:
        """A new prompt joins only if the decodes can bear it afterwards and what they will grow to still fits."""
        if view.running + joining >= view.limits.max_requests or not view.can_start(r, Reserve.PROMPT, 0):
            return False
        if r.leg is Leg.PREFILL:
            return True
        expected = min(r.max_tokens, self.lengths.remaining(r.objective.class_name, 0))
        if view.kv.blocks_for(r.total_tokens + expected) > kv_left:
            return False
        tightest = min(owed.tightest_tpot_s, r.objective.tpot_s)
        weight = 1.0
        context = float(r.total_tokens)
        for d in (*view.decodes, *view.partials):
            share = 1.0 if d.lost else min(1.0, tightest / d.objective.tpot_s)
            weight += share
            context += share * d.total_tokens
        return self.model.predict4(0, 0.0, max(1, round(weight)), round(context)) <= tightest


def _due_s(r: Request, h: int) -> float:
    """When the h-th token from now is due if the mean TPOT is to hold (DESIGN §5, D(h))."""
    if r.emitted_tokens == 0:
        return r.ttft_deadline_s
    return r.first_token_s + (r.emitted_tokens + h - 1) * r.objective.tpot_s
