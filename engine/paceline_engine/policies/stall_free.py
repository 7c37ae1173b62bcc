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
CROWDED_SHARE = 0.9  # of the tightest TPOT: a decode step that long is worth thinning out
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
        decodes, lengths = view.decodes, self.lengths
        if not decodes:
            return _Owed(inf, [], StepLoad(), inf, 0)
        context = sum([r.prompt_tokens + r.emitted_tokens for r in decodes])
        tightest = min([r.objective.tpot_s for r in decodes])
        joining = view.partials[0] if view.partials else view.waiting[0] if view.waiting else None
        extra = (1, joining.total_tokens) if joining else (0, 0)
        pace_s = self.model.predict4(0, 0.0, len(decodes) + extra[0], context + extra[1])
        regime = Regime.MIXED if joining else Regime.DECODE
        from_s = start_s + self.model.margin_ratio(regime) * pace_s + self.delay_s
        crowded = joining is not None or pace_s > CROWDED_SHARE * tightest
        limit, growth, run = inf, 0, []
        for r in decodes:
            left = min(lengths.remaining(r.objective.class_name, r.emitted_tokens), r.max_tokens - r.emitted_tokens)
            growth += left
            slack, stall = _slack_and_stall(r, left, pace_s, from_s)
            r.lost = slack < pace_s and _due_s(r, left) - left * pace_s < start_s
            may_wait = crowded and r.emitted_tokens and not r.lost and r.objective.tpot_s >= SIT_OUT_FACTOR * tightest
            room = min(slack, stall) - pace_s
            if may_wait and room > max(pace_s, tightest):  # it sits this one out, and must still make the next
                limit = min(limit, room)
                continue
            run.append(r)
            limit = min(limit, stall) if r.lost else min(limit, slack, stall)
        load = StepLoad(len(run), context if len(run) == len(decodes) else sum(r.total_tokens for r in run))
        return _Owed(limit, run, load, tightest, growth)

    def _compose(self, view: View, owed: _Owed, start_s: float) -> tuple[list[Request], int]:
        """Prefills of this step in order, and the tokens that they may take."""
        savable, lost = self._queues(view, start_s)
        load, limit = owed.load, owed.limit_s
        chosen: list[Request] = []
        kv_left = view.kv.available - view.kv.blocks_for(owed.growth_tokens)
        for r, is_lost in self._turns(savable, lost):
            fresh = not r.blocks
            if fresh and (view.running or chosen) and not self._admits(view, owed, r, len(chosen), kv_left):
                break
            due_s = inf if is_lost else max(r.ttft_deadline_s - self.transfer_s - self.delay_s - start_s, 0.0)
            chunk = self._chunk(load, r, limit, due_s, view)
            if chunk <= 0 or (chunk < r.left_tokens and fresh and len(view.partials) >= MAX_PARTIALS):
                break
            if chosen and due_s < limit and load.seconds(self.model, chunk, r.computed_tokens) > due_s:
                break
            chosen.append(r)
            load.add(chunk, r.computed_tokens)
            self._lost_credit += -chunk if is_lost else LOST_SHARE * chunk
            kv_left -= view.kv.blocks_for(r.total_tokens) if fresh else 0
            limit = min(limit, due_s)
            if chunk < r.left_tokens:
                break
        self._lost_credit = min(max(self._lost_credit, 0.0), float(view.limits.max_batched_tokens))
        return chosen, load.prefill_tokens

    def _chunk(self, load: StepLoad, r: Request, limit_s: float, due_s: float, view: View) -> int:
        """Tokens of `r` for this step; its own deadline may shorten the step, but is no reason to cut the prompt."""
        limits = view.limits
        room = limits.max_batched_tokens - load.decodes - load.prefill_tokens
        certain = 1 + self.model.margin_ratio(Regime.MIXED)
        for bound_s in (min(limit_s, due_s), limit_s):
            chunk = largest_chunk(
                load, self.model, r.computed_tokens, r.left_tokens, bound_s / certain, room, limits.tile_tokens
            )
            if chunk == r.left_tokens:
                break
        return chunk

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


def _slack_and_stall(r: Request, left: int, pace_s: float, from_s: float) -> tuple[float, float]:
    """Seconds from `from_s` that the step may take: until the mean TPOT breaks, and until the stream stalls.

    A request whose KV came from elsewhere has emitted nothing: its first token is a decode step, bound by its TTFT.
    """
    if r.emitted_tokens == 0:
        return r.ttft_deadline_s - from_s, r.objective.max_stall_s
    h = min(HORIZON_TOKENS, left)
    return _due_s(r, h) - (h - 1) * pace_s - from_s, r.last_token_s + r.objective.max_stall_s - from_s


def _due_s(r: Request, h: int) -> float:
    """When the h-th token from now is due if the mean TPOT is to hold (DESIGN §5, D(h))."""
    if r.emitted_tokens == 0:
        return r.ttft_deadline_s
    return r.first_token_s + (r.emitted_tokens + h - 1) * r.objective.tpot_s
