"""vLLM v1's default: one token budget without phases; what runs is served first, then prompts in order of arrival.

A prompt is cut wherever the budget ends, and KV is taken chunk by chunk, so admission can overcommit and preempt.
Source: vLLM 0.9–0.32 `v1/core/sched/scheduler.py`; `max_num_batched_tokens` is 2048 (A100 class) or 8192 by default.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline_engine.policies.step import FOREVER, Latest, Step, View


@dataclass(frozen=True, slots=True)
class VLLMv1(Latest):
    token_budget: int = 2048

    def plan(self, view: View, start_s: float) -> Step:
        prefills = (*view.partials, *view.waiting) if view.partials else view.waiting
        return Step(view.decodes, prefills, self.token_budget, repeat=1 if prefills else FOREVER)
