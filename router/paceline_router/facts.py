"""What an engine is and says of itself: its role, its step-time table with what it has learnt, its work in hand.

Values, as scraped; the ledger (state.py) holds the latest of each replica. Tokens, and model seconds. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from paceline_engine.step_time import StepTable
from paceline_engine.work import Work


class Role(StrEnum):
    """What the engines of a pool do."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Facts:
    """What an engine says of itself, as scraped at `seen_at_s`; the defaults hold before the first scrape."""

    table: StepTable | None = None
    mixed_scale: float = 1.0
    mixed_offset_s: float = 0.0
    decode_scale: float = 1.0
    decode_offset_s: float = 0.0
    token_budget: int = 2048  # vLLM's default max_num_batched_tokens
    kv_tokens: int | None = None  # None: not known, taken as enough
    work: Work | None = None  # whoever sent it; None: not told
    seen_at_s: float = 0.0

    def says_as(self, other: Facts) -> bool:
        """Whether the engine's own figures, apart from its work, are as in `other`."""
        return (
            self.table is other.table
            and self.mixed_scale == other.mixed_scale
            and self.mixed_offset_s == other.mixed_offset_s
            and self.decode_scale == other.decode_scale
            and self.decode_offset_s == other.decode_offset_s
            and self.kv_tokens == other.kv_tokens
        )


NO_FACTS = Facts()
