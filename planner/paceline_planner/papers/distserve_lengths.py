"""Prompt and output lengths of DistServe's workloads (OSDI'24, Table 1, figure 7), tokens.

Chat and code are the released pairs, read from the folder of traces; summarisation is LongBench, synthesised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from paceline_planner import traces
from paceline_planner.workloads import Empirical, LengthSource, Lognormal

SHORT_ANSWERS, LONG_ANSWERS, CONTEXTS = Lognormal(9, 0.8), Lognormal(306, 0.75), Lognormal(2205, 0.475)
MEAN_TOKENS: Mapping[str, tuple[float, float]] = {  # prompt and output, figure 7
    "chat": (755.5, 200.3),
    "code": (171.3, 98.2),
    "summarisation": (1738.3, 90.7),
}


@dataclass(frozen=True, slots=True)
class LongBench:
    """LongBench's 21 tasks as the paper's preparation cuts them: an answer, and a context up to 2040 tokens with it.

    Sixteen tasks (79 % of 4,750 items) answer with a few words or a line, five with a text. σ and the short answers'
    median are assumed; the long ones' median makes the published mean output, the contexts' (σ as in
    arxiv-summarization) the published mean prompt.
    """

    short_ratio: float = 0.79
    short: Lognormal = SHORT_ANSWERS
    long: Lognormal = LONG_ANSWERS
    context: Lognormal = CONTEXTS
    total_tokens: int = 2040

    def draw(self, rng: Random) -> tuple[int, int]:
        source = self.short if rng.random() < self.short_ratio else self.long
        answer = min(source.draw(rng), self.total_tokens // 2)
        return min(self.context.draw(rng), self.total_tokens - answer), answer


@cache
def lengths(folder: Path, workload: str) -> LengthSource:
    """Pairs of the released sets; LongBench synthesised."""
    files = {"chat": "sharegpt_opt_lengths_1600.csv", "code": "humaneval_opt_lengths.csv"}
    if workload not in files:
        return LongBench()
    found = traces.read(folder / "distserve" / files[workload])
    return Empirical(tuple((r.prompt_tokens, r.output_tokens) for r in found))
