"""vLLM v0's prefill-first policy (vLLM 0.2–0.3, the baseline of both papers).

Whenever a waiting prompt fits, the step is whole prompts only and every decode stalls behind it; decodes run when no
prompt can start. Until 0.2.1 the prompts of a step lie end to end; since 0.2.2 they are padded to the longest of them,
and those that would need more than 256 tokens of padding wait for the next step. Source: Sarathi-Serve §2.5 and
Algorithm 1; vLLM 0.2 `core/scheduler.py`, its issue 2121 for the padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline_engine.policies.step import FOREVER, Latest, Reserve, Step, View
from paceline_engine.request import Request

MAX_PADDINGS = 256  # vLLM 0.2.2's default, tokens


@dataclass(frozen=True, slots=True)
class VLLMv0(Latest):
    """`padded`: as since 0.2.2."""

    padded: bool = False

    def plan(self, view: View, start_s: float) -> Step:
        limits = view.limits
        if view.waiting and view.can_start(view.waiting[0], Reserve.PROMPT, 0):
            budget = max(limits.max_batched_tokens, view.waiting[0].left_tokens)
            prompts = alike(view.waiting, budget) if self.padded else view.waiting
            return Step((), prompts, budget, whole_prompts=True, reserve=Reserve.PROMPT, padded=self.padded)
        return Step(view.decodes, (), limits.max_batched_tokens, repeat=1 if view.waiting else FOREVER)


def alike(waiting: Sequence[Request], budget: int) -> Sequence[Request]:
    """The first prompts that fit one padded batch: at most MAX_PADDINGS tokens of padding, `budget` tokens with it."""
    longest = total = 0
    for count, request in enumerate(waiting):
        longest, total = max(longest, request.total_tokens), total + request.total_tokens
        padded = (count + 1) * longest
        if padded - total > MAX_PADDINGS or padded > budget:
            return waiting[:count]
    return waiting
