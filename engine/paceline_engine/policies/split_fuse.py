"""DeepSpeed-FastGen's Dynamic SplitFuse: every step is filled to the same size with decodes and pieces of prompts.

Long prompts are decomposed and short ones composed to hit the size; a prompt starts only when its whole KV fits.
Source: DeepSpeed-MII 0.2, `max_ragged_batch_size` 768, and the DeepSpeed-FastGen report (arXiv 2401.08671, §3).
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline_engine.policies.step import FOREVER, Latest, Reserve, Step, View


@dataclass(frozen=True, slots=True)
class SplitFuse(Latest):
    token_budget: int = 768

    def plan(self, view: View, start_s: float) -> Step:
        prefills = (*view.partials, *view.waiting) if view.partials else view.waiting
        repeat = 1 if prefills else FOREVER
        return Step(view.decodes, prefills, self.token_budget, reserve=Reserve.PROMPT, repeat=repeat)
