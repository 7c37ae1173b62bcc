"""Decides which steps an engine is made to run: lone prompts, batches of decodes, prompts that join such a batch.

Lone prompts give the cost of tokens, and of token pairs once their prefix is cached; batches give the cost of decodes
and of their context; prompts that join give the cost of mixing. Invariant: every point fits the engine (one step's
tokens, the model's context, KV with room to spare), and sums of tokens fall on whole GEMM tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline_planner.fit.grid import DECODE_KNOTS
from paceline_planner.prompts import BLOCK_TOKENS

FEWEST_TOKENS = 128  # a tile; shorter prompts cost about the same
LONGEST_PREFIX = 8 * BLOCK_TOKENS
LONGEST_CONTEXT = 4096
SHORT_CONTEXT = 128
LOOK_TOKENS = 8  # of each stream between two looks
JOINING_TOKENS = 48  # that a stream may get while one prompt joins
KV_SHARE = 0.8  # of its KV that a batch may fill: near the brim engines preempt
MIXED_BATCHES = (1, 8, 32)
MIXED_TOKENS = (256, 1024)  # of the whole step


@dataclass(frozen=True, slots=True)
class Engine:
    """What the engine can hold: tokens of KV, of a request, of a step; `decodes` at most at once."""

    kv_tokens: int
    context_tokens: int
    step_tokens: int
    decodes: int


@dataclass(frozen=True, slots=True)
class Effort:
    """How long it may take; the medians are over `repeats` of a prompt, and over `looks` at a batch.

    `batch_prefill_s`: the engine's time to be spent on filling batches, all together.
    """

    repeats: int
    looks: int
    contexts: int  # that each batch size is measured at, 2 or 3
    batch_prefill_s: float


FULL = Effort(repeats=5, looks=6, contexts=3, batch_prefill_s=30.0)
QUICK = Effort(repeats=3, looks=4, contexts=2, batch_prefill_s=8.0)


@dataclass(frozen=True, slots=True)
class Lone:
    """A prompt of `tokens` after `prefix` cached ones, on an idle engine."""

    tokens: int
    prefix: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """`decodes` streams whose prompts have `context` tokens, and prompts that join them one after another."""

    decodes: int
    context: int
    max_tokens: int
    joining: tuple[int, ...] = ()


def lone_prompts(engine: Engine) -> list[Lone]:
    """From one tile up by doubling, and some of them behind one long prefix."""
    most = min(engine.step_tokens, engine.context_tokens - 1, int(KV_SHARE * engine.kv_tokens))
    sizes = [FEWEST_TOKENS << k for k in range(16) if FEWEST_TOKENS << k <= most]
    room = min(LONGEST_PREFIX, engine.context_tokens // 2, int(KV_SHARE * engine.kv_tokens) // 2)
    prefix = room // BLOCK_TOKENS * BLOCK_TOKENS
    behind = [n for n in sizes[::2] if prefix and prefix + n < engine.context_tokens]
    return [*(Lone(n) for n in sizes), *(Lone(n, prefix) for n in behind)]


def batches(engine: Engine, effort: Effort, prefill_tokens_per_s: float) -> list[Batch]:
    """Every batch size that the engine holds, from a short context to the longest that KV and time allow."""
    sizes = [b for b in DECODE_KNOTS if b <= engine.decodes]
    affordable = effort.batch_prefill_s * prefill_tokens_per_s / max(len(sizes), 1)
    planned: list[Batch] = []
    for b in sizes:
        longest = min(LONGEST_CONTEXT, engine.context_tokens // 2, int(affordable / b))
        contexts = [_fitting(b, c, engine, effort) for c in _contexts(longest, effort.contexts)]
        for i, c in enumerate(sorted({c for c in contexts if c >= SHORT_CONTEXT // 2})):
            joining = _joining(b, engine) if i == 0 else ()
            planned.append(Batch(b, c, _max_tokens(b, c, joining, effort), joining))
    return planned


def _contexts(longest: int, count: int) -> list[int]:
    """From short to longest; a middle one halfway, for the cost of context is linear."""
    shortest = min(SHORT_CONTEXT, longest)
    return [shortest, (shortest + longest) // 2, longest] if count > 2 else [shortest, longest]


def _fitting(decodes: int, context: int, engine: Engine, effort: Effort) -> int:
    """The context, or the most with which the batch still fits; negative when none does."""
    joining = _joining(decodes, engine)
    extra = _max_tokens(decodes, context, joining, effort)
    room = int(KV_SHARE * engine.kv_tokens) - sum(joining)
    return min(context, room // decodes - extra, engine.context_tokens - extra)


def _joining(decodes: int, engine: Engine) -> tuple[int, ...]:
    if decodes not in MIXED_BATCHES:
        return ()
    most = min(engine.step_tokens, engine.context_tokens // 2)
    return tuple(n - decodes for n in MIXED_TOKENS if n <= most)


def _max_tokens(decodes: int, context: int, joining: Sequence[int], effort: Effort) -> int:
    """Enough for the first stream to be there still when the last has been measured."""
    filling = max(decodes, -(-decodes * context // 256))  # steps, even of an engine with a small token budget
    joined = JOINING_TOKENS * effort.repeats * len(joining)
    return LOOK_TOKENS * (2 * effort.looks + 4) + filling + joined
