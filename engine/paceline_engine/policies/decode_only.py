"""DistServe's decode instance: every decode in every step; KV arrives from prefill engines (OSDI'24, §4.3).

A prompt that has to be computed here after all, because its KV was lost, runs whole and alone between decode steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline_engine.policies.step import FOREVER, Latest, Reserve, Step, View


@dataclass(frozen=True, slots=True)
class DecodeOnly(Latest):
    def plan(self, view: View, start_s: float) -> Step:
        prefills = view.waiting[:1]
        budget = max(view.limits.max_batched_tokens, len(view.decodes) + sum(r.left_tokens for r in prefills))
        repeat = 1 if prefills else FOREVER
        return Step(view.decodes, prefills, budget, whole_prompts=True, reserve=Reserve.PROMPT, repeat=repeat)
