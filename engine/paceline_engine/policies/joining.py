"""Whether a waiting prompt may join the batch: a place, KV for what all will grow to, and a pace that all can bear.

Decodes go on for long after a prompt has joined, so they are asked before. Lost prompts leave room for others to come,
and requests of a looser class some of the places. Invariant: with a place and KV a prompt is never kept out for good
(`LATER`), so that whoever overrules it (`StallFree`, for one that has waited long) preempts nobody. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf

from paceline_engine.lengths import OutputLengths
from paceline_engine.policies.step import Reserve, View
from paceline_engine.request import Leg, Request
from paceline_engine.step_time import StepTimeModel

LOOSE_SHARE = 0.75  # of the requests that may run, which looser classes leave the tightest to find room beyond
KEPT_FROM_LOST = 0.3  # of KV and of the tightest TPOT: prompts that are late anyway join only below the rest


class Entry(Enum):
    """What is said to one that would join."""

    OPEN = "open"
    FULL = "full"  # no place, or no KV
    LATER = "later"  # the decodes could not keep their pace, or what is left is kept for others


@dataclass(frozen=True, slots=True)
class Beside:
    """The running decodes: their TPOT limits, seconds, and the context of all, tokens."""

    tightest_tpot_s: float = inf
    loosest_tpot_s: float = 0.0
    context: int = 0


@dataclass(frozen=True, slots=True)
class Joining:
    """What is believed of step times and output lengths."""

    model: StepTimeModel
    lengths: OutputLengths

    def entry(self, view: View, beside: Beside, r: Request, joining: int, kv_left: int, *, is_lost: bool) -> Entry:
        """Of `r`, after `joining` others that join with it; `kv_left` blocks are there beyond what decodes grow to."""
        running, places, kept = view.running + joining, view.limits.max_requests, KEPT_FROM_LOST if is_lost else 0.0
        if running >= places or not view.can_start(r, Reserve.PROMPT, 0):
            return Entry.FULL
        if r.objective.tpot_s > beside.tightest_tpot_s and running >= LOOSE_SHARE * places:
            return Entry.LATER
        if r.leg is Leg.PREFILL:
            return Entry.OPEN
        expected = min(r.max_tokens, self.lengths.remaining(r.objective.class_name, 0))
        blocks = view.kv.blocks_for(r.total_tokens + expected)
        if blocks > kv_left:
            return Entry.FULL
        fits = blocks <= kv_left - kept * view.kv.capacity and self._is_bearable(view, beside, r, kept)
        return Entry.OPEN if fits else Entry.LATER

    def _is_bearable(self, view: View, beside: Beside, r: Request, kept: float) -> bool:
        """Whether a decode step with it holds the tightest TPOT, each class weighted by its own pace."""
        tightest = min(beside.tightest_tpot_s, r.objective.tpot_s)
        if self.model.predict4(0, 0.0, 1, r.total_tokens) > tightest:  # what is not kept even alone binds nobody
            tightest = min([d.objective.tpot_s for d in (*view.decodes, r) if self._could_keep(d)], default=inf)
        weight, context, weighed = 1.0, float(r.total_tokens), view.partials
        if tightest < beside.loosest_tpot_s:
            weighed = [*view.decodes, *view.partials]
        else:  # every decode counts in full
            weight, context = weight + len(view.decodes), context + beside.context
        for d in weighed:
            share = 1.0 if d.lost else min(1.0, tightest / d.objective.tpot_s)
            weight += share
            context += share * d.total_tokens
        return self.model.predict4(0, 0.0, max(1, round(weight)), round(context)) <= (1.0 - kept) * tightest

    def _could_keep(self, r: Request) -> bool:
        """Its TPOT, were it alone."""
        return self.model.predict4(0, 0.0, 1, r.total_tokens) <= r.objective.tpot_s
