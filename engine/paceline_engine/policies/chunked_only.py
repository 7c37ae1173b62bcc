"""Chunked prefills without hybrid steps, the middle of Sarathi-Serve's ablation (OSDI'24, table 4).

Steps take turns: chunks of prompts up to the token budget, then all decodes, alone. A turn that has nothing to do falls
to the other, so that no step is idle. Source: sarathi-serve's `simple_chunking_scheduler.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from paceline_engine.policies.step import FOREVER, Latest, Reserve, Step, View


@dataclass(slots=True)
class ChunkedOnly(Latest):
    token_budget: int = 512
    _decodes_next: bool = field(default=False, init=False)

    def plan(self, view: View, start_s: float) -> Step:
        can_prefill = bool(view.partials) or (
            bool(view.waiting) and view.can_start(view.waiting[0], Reserve.PROMPT, self.token_budget)
        )
        if can_prefill and not (self._decodes_next and view.decodes):
            self._decodes_next = True
            return Step((), (*view.partials, *view.waiting), self.token_budget, reserve=Reserve.PROMPT)
        self._decodes_next = False
        waits = can_prefill or bool(view.waiting)
        budget = max(1, len(view.decodes))
        return Step(view.decodes, (), budget, repeat=1 if waits else FOREVER)
