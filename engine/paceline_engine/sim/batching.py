"""Filling a `Step`: which tokens of which requests run, and what KV they get, as vLLM's own scheduler would do it.

Decodes first, each growing its KV (a victim of the policy's choice is preempted when none is left), then prefill chunks
in the step's order while its token budget lasts. The budget is never exceeded; what cannot be had leaves no trace.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from paceline_engine.policies.step import Policy, Step, View
from paceline_engine.request import Request


@dataclass(slots=True)
class Batch:
    """One step's work: decodes (a token each) and prefill chunks, with the four numbers that its time depends on."""

    decodes: list[Request] = field(default_factory=list)
    chunks: list[tuple[Request, int]] = field(default_factory=list)
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    decode_context: int = 0
    preempted: list[Request] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return len(self.decodes) + self.prefill_tokens

    def __bool__(self) -> bool:
        return bool(self.decodes or self.chunks)


def fill(step: Step, view: View, policy: Policy, start_s: float) -> Batch:
    """The batch of this step. Admitted requests move from `view.waiting` to `view.partials`; preempted ones go back."""
    batch = Batch()
    _fill_decodes(batch, step.decodes, step, view, policy, start_s)
    _fill_prefills(batch, step, view, start_s)
    stuck = view.running > view.flying and (batch.preempted or not view.flying)  # what flies will make room
    if not batch and stuck:  # who should have run gave way, or prefills hold all KV and none can go on
        if not view.decodes and not batch.preempted:
            _preempt(batch, view, policy.victim(view, start_s))
        _fill_decodes(batch, view.decodes, step, view, policy, start_s)
        _fill_prefills(batch, step, view, start_s)
    return batch


def _fill_decodes(
    batch: Batch, decodes: Sequence[Request], step: Step, view: View, policy: Policy, start_s: float
) -> None:
    kv, block_size = view.kv, view.kv.block_size
    chosen = list(decodes[: step.token_budget])
    totals = [r.prompt_tokens + r.emitted_tokens for r in chosen]
    if not batch.preempted and grow_decodes(view, chosen):
        batch.decodes, batch.decode_context = chosen, sum(totals)
        return
    context = batch.decode_context
    for r in chosen:
        total = r.prompt_tokens + r.emitted_tokens
        if len(r.blocks) * block_size < total:
            if not r.blocks:  # preempted a moment ago for one before it
                continue
            while not kv.grow(r, total):
                victim = policy.victim(view, start_s)
                _preempt(batch, view, victim)
                if victim is r:
                    break
            if not r.blocks:
                continue
        batch.decodes.append(r)
        context += total
    if batch.preempted:
        batch.decodes = [r for r in batch.decodes if r.blocks]
        context = sum(r.total_tokens for r in batch.decodes)
    batch.decode_context = context


def grow_decodes(view: View, decodes: Sequence[Request]) -> bool:
    """Make room for the next token of each; False, and nothing changed, when the pool has too few blocks for all."""
    kv, block_size = view.kv, view.kv.block_size
    lacking = [r for r in decodes if len(r.blocks) * block_size < r.prompt_tokens + r.emitted_tokens]
    if sum(kv.missing(r, r.prompt_tokens + r.emitted_tokens) for r in lacking) > kv.available:
        return False
    for r in lacking:
        kv.grow(r, r.prompt_tokens + r.emitted_tokens)
    return True


def _fill_prefills(batch: Batch, step: Step, view: View, start_s: float) -> None:
    kv = view.kv
    budget = step.token_budget - batch.tokens
    for r in tuple(step.prefills):
        if budget <= 0:
            break
        fresh = r not in view.partials
        if fresh and batch.preempted:  # nothing new may take what a preempted request gave up, as in vLLM
            break
        if fresh:
            r.computed_tokens = min(kv.share(r, r.total_tokens), r.total_tokens - 1)
        chunk = min(r.left_tokens, budget)
        fits = chunk == r.left_tokens or not step.whole_prompts
        if (
            not fits
            or (fresh and not view.can_start(r, step.reserve, chunk))
            or not kv.grow(r, r.computed_tokens + chunk)
        ):
            if fresh:
                kv.release(r)
                r.computed_tokens = 0
                break
            continue
        if fresh:
            r.cached_tokens = max(r.cached_tokens, r.computed_tokens)
            if r.preemptions == 0:
                r.started_s = start_s
            view.waiting.remove(r)
            view.partials.append(r)
        batch.chunks.append((r, chunk))
        batch.prefill_tokens += chunk
        batch.prefill_pairs += chunk * (r.computed_tokens + chunk / 2)
        budget -= chunk
    if step.padded and batch.chunks:
        batch.prefill_tokens = len(batch.chunks) * max(chunk for _, chunk in batch.chunks)


def _preempt(batch: Batch, view: View, victim: Request) -> None:
    view.kv.release(victim)
    victim.restart()
    (view.partials if victim in view.partials else view.decodes).remove(victim)
    view.waiting.insert(0, victim)
    batch.preempted.append(victim)
