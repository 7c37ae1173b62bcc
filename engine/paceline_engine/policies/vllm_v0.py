"""vLLM v0's prefill-first policy (vLLM 0.2–0.3, the baseline of both papers).

Whenever a waiting prompt fits, the step is whole prompts only and every decode stalls behind it; decodes run when no
prompt can start. Source: Sarathi-Serve §2.5 and Algorithm 1, vLLM 0.2 `core/scheduler.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline_engine.policies.step import FOREVER, Latest, Reserve, Step, View


@dataclass(frozen=True, slots=True)
class VLLMv0(Latest):
    def plan(self, view: View, start_s: float) -> Step:
        limits = view.limits
        if view.waiting and view.can_start(view.waiting[0], Reserve.PROMPT, 0):
            budget = max(limits.max_batched_tokens, view.waiting[0].left_tokens)
            return Step((), view.waiting, budget, whole_prompts=True, reserve=Reserve.PROMPT)
        return Step(view.decodes, (), limits.max_batched_tokens, repeat=1 if view.waiting else FOREVER)
