"""Sarathi-Serve's stall-free batching with one fixed token budget (OSDI'24, Algorithm 3).

All decodes run in every step; partial prefills go on and new ones start in order of arrival, in chunks that fill what
the decodes leave of the budget. The budget is a multiple of the tile, so that hybrid steps waste no partial tile
(§4.3).
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline_engine.policies.step import FOREVER, Latest, Reserve, Step, View


@dataclass(frozen=True, slots=True)
class Sarathi(Latest):
    """`token_budget` is the paper's τ: 512 for strict and 2048 for relaxed objectives."""

    token_budget: int = 512

    def plan(self, view: View, start_s: float) -> Step:
        prefills = (*view.partials, *view.waiting) if view.partials else view.waiting
        return Step(
            view.decodes, prefills, self.token_budget, reserve=Reserve.PROMPT, repeat=1 if prefills else FOREVER
        )
