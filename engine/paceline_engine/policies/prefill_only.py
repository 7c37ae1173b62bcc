"""DistServe's prefill instance: whole prompts in order of arrival, batched up to the length that saturates the GPU.

A prompt longer than that runs alone (OSDI'24, §3.1 and §4.3; the length is 512 tokens for OPT-13B on an A100). What has
to be decoded here all the same (a last token, a lone engine) runs when no prompt waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline_engine.policies.step import FOREVER, Latest, Reserve, Step, View


@dataclass(frozen=True, slots=True)
class PrefillOnly(Latest):
    saturating_tokens: int = 512

    def plan(self, view: View, start_s: float) -> Step:
        if view.waiting and view.can_start(view.waiting[0], Reserve.PROMPT, 0):
            first = view.waiting[0].left_tokens
            budget = max(self.saturating_tokens, first)
            return Step((), view.waiting, budget, whole_prompts=True, reserve=Reserve.PROMPT)
        return Step(view.decodes, (), view.limits.max_batched_tokens, repeat=1 if view.waiting else FOREVER)
