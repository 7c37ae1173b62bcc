"""Orca's iteration-level scheduling: whole prompts run beside the decodes, first come first served (OSDI'22, §4.2).

KV for the longest possible answer is reserved on admission, as Orca does, so nothing is ever preempted, and no token
budget bounds a step. Its published batch limit in the Sarathi-Serve comparison is 16 (8 for the 70B and 180B models):
set `max_requests`.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline_engine.policies.step import FOREVER, Latest, Reserve, Step, View


@dataclass(frozen=True, slots=True)
class Orca(Latest):
    def plan(self, view: View, start_s: float) -> Step:
        repeat = 1 if view.waiting else FOREVER
        budget = len(view.decodes) + sum(r.left_tokens for r in view.waiting[: view.limits.max_requests])
        return Step(view.decodes, view.waiting, max(1, budget), whole_prompts=True, reserve=Reserve.ALL, repeat=repeat)
