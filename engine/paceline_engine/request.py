"""One request as a batching policy sees it: tokens that are there, tokens whose KV is computed, and its objective.

There are no phases, as in vLLM v1: `computed_tokens` catches up with `total_tokens`, and whenever it has caught up one
more token is emitted. Chunked prefill, prefix hits, decodes, preemption and KV from elsewhere all fall out of that.
Times are seconds on the engine's clock. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Leg(Enum):
    """Which part of a request an engine serves."""

    WHOLE = "whole"  # prefill and decode
    PREFILL = "prefill"  # one token, then the KV waits for a decode engine
    DECODE = "decode"  # the prompt's KV comes from a prefill engine


@dataclass(frozen=True, slots=True)
class Objective:
    """What is left of a request's objective when the engine receives it. `ttft_s` counts from that moment."""

    class_name: str
    ttft_s: float
    tpot_s: float
    max_stall_s: float


@dataclass(slots=True, eq=False)
class Request:
    """State of one request in one engine; `max_tokens` outputs end it, `block_hashes` name its full prompt blocks."""

    id: str
    prompt_tokens: int
    max_tokens: int
    arrival_s: float
    objective: Objective
    block_hashes: tuple[int, ...] = ()
    leg: Leg = Leg.WHOLE

    computed_tokens: int = 0
    emitted_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, found in the prefix cache when it was first scheduled
    started_s: float = float("nan")  # when the first step with a part of it began, or could begin
    first_token_s: float = float("nan")
    last_token_s: float = float("nan")
    max_gap_s: float = 0.0
    preemptions: int = 0
    urgency_s: float = float("nan")  # the latest start of its prefill that meets its deadline, kept by the policy
    lost: bool = False  # its mean TPOT cannot be met any more: it no longer bounds the others' steps
    blocks: list[int] = field(default_factory=list)  # the KV blocks that it holds, written by KVBlocks only
    gaps_s: list[float] | None = None  # gets each gap between two of its tokens, where somebody wants them

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.emitted_tokens

    @property
    def left_tokens(self) -> int:
        """Tokens to compute before the next one is emitted: 1 for a decode, more for a prefill."""
        return self.prompt_tokens + self.emitted_tokens - self.computed_tokens

    @property
    def decoding(self) -> bool:
        """Whether a single token completes its next step and its KV is there (also after KV came from elsewhere)."""
        return self.computed_tokens > 0 and self.left_tokens == 1

    @property
    def finished(self) -> bool:
        return self.emitted_tokens >= self.max_tokens

    @property
    def ttft_deadline_s(self) -> float:
        return self.arrival_s + self.objective.ttft_s

    def advance(self, tokens: int, now: float) -> bool:
        """Note that `tokens` more were computed by `now`; True when that emitted a token."""
        self.computed_tokens += tokens
        if self.computed_tokens < self.prompt_tokens + self.emitted_tokens:
            return False
        if self.emitted_tokens:
            self.max_gap_s = max(self.max_gap_s, now - self.last_token_s)
            if self.gaps_s is not None:
                self.gaps_s.append(now - self.last_token_s)
        else:
            self.first_token_s = now
        self.emitted_tokens += 1
        self.last_token_s = now
        return True

    def restart(self) -> None:
        """Preempted: its KV is gone, what it emitted stays and is computed again with the prompt."""
        self.computed_tokens = 0
        self.preemptions += 1
