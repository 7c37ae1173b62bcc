"""Predicted times of a request on a replica, from the engine's own table and its published scale and offset.

TTFT = the prompts queued ahead + its own + (across a hand-over) the transfer and one decode step. Decodes share a
mixed replica's steps, so a prompt there takes tokens/budget steps of prefill chunks beside all running decodes.
Invariant: predictions are finite and not negative, and grow with the work ahead. Times are model seconds.
"""

from __future__ import annotations

from paceline_router.facts import Facts
from paceline_router.foresight import LINK, followed
from paceline_router.replica import Replica

# Before the first scrape: round figures of an 8B model on one H100 (its table: 0.04 ms a token, 8 ms a decode step).
NEUTRAL_STEP_S = 0.010
NEUTRAL_TOKEN_S = 0.00005
NEUTRAL_CONTEXT_TOKEN_S = 1e-8

# A hand-over without a measurement: one round of the NIXL handshake, then a 200 Gb/s link at four fifths.
TRANSFER_CONSTANT_S = 0.005
TRANSFER_BYTES_PER_S = 20e9
NEUTRAL_KV_BYTES_PER_TOKEN = 131_072  # Llama-3.1-8B in 16 bits

SMALLEST_CHUNK = 16  # tokens: a budget full of decodes still moves a prompt


def step_s(facts: Facts, prefill_tokens: int, pairs: float, decodes: int, context: int) -> float:
    """Seconds of one step: s·T + h of its regime, never below half of T (DESIGN §5's bound on s)."""
    table = facts.table
    if table is None:
        return NEUTRAL_STEP_S + NEUTRAL_TOKEN_S * (prefill_tokens + decodes) + NEUTRAL_CONTEXT_TOKEN_S * context
    t = table.seconds4(prefill_tokens, pairs, decodes, context)
    if prefill_tokens:
        fitted = facts.mixed_scale * t + facts.mixed_offset_s
    else:
        fitted = facts.decode_scale * t + facts.decode_offset_s
    return fitted if fitted > 0.5 * t else 0.5 * t


def prefill_s(replica: Replica, tokens: int, squares: int) -> float:
    """Seconds in which `tokens` of prompts (Σ prompt² = `squares`) are computed beside the replica's decodes."""
    if tokens <= 0:
        return 0.0
    decodes, context = replica.decodes, replica.decode_context
    chunk = max(replica.facts.token_budget - decodes, SMALLEST_CHUNK)
    pairs = squares / 2
    if tokens <= chunk:
        return step_s(replica.facts, tokens, pairs, decodes, context)
    return tokens / chunk * step_s(replica.facts, chunk, pairs * chunk / tokens, decodes, context)


def wait_s(replica: Replica, now: float) -> float:
    """Seconds until the prompts queued at `replica` are done.

    The head of the queue has been at work since the last completion. One that should be done already is expected to
    take as long again as it is late, so that a replica that hangs looks worse with time, not better.
    """
    if not replica.prefill_queue:
        return 0.0
    whole = replica.queue_s
    if whole is None:
        whole = replica.queue_s = prefill_s(replica, replica.prefill_tokens, replica.prefill_squares)
    head = whole / replica.prefill_queue
    return whole - head + abs(head - max(now - replica.head_since_s, 0.0))


def handover_s(prefill: Replica, decode: Replica, prompt_tokens: int) -> float:
    """Seconds in which the KV of a prompt gets from one to the other, by how fast it did of late."""
    return decode.link * transfer_s(prefill.facts, prompt_tokens)


def transfer_s(facts: Facts, prompt_tokens: int) -> float:
    """Seconds to hand the KV of a prompt over on a fast network."""
    per_token = facts.table.kv_bytes_per_token if facts.table else NEUTRAL_KV_BYTES_PER_TOKEN
    return TRANSFER_CONSTANT_S + prompt_tokens * per_token / TRANSFER_BYTES_PER_S


def tpot_s(replica: Replica, prompt_tokens: int, *, joined: bool = False) -> float:
    """Seconds of a decode step with this request and all that are expected; `joined`: it is already among them."""
    extra = 0 if joined else 1
    decodes = replica.decodes + replica.incoming + replica.prefill_queue + extra
    context = replica.decode_context + replica.incoming_context + replica.prefill_tokens + extra * prompt_tokens
    return step_s(replica.facts, 0, 0.0, decodes, context)


def after_prefill_s(prefill: Replica, decode: Replica, prompt_tokens: int) -> float:
    """Seconds from a prompt's end at `prefill` to the first token, of a request that is expected at `decode`.

    The transfer, as slow as it was of late, then two decode steps: the one that runs when the KV has come, and its own.
    """
    return handover_s(prefill, decode, prompt_tokens) + 2 * tpot_s(decode, prompt_tokens, joined=True)


def link_seen(prefill: Replica, decode: Replica, prompt_tokens: int, seconds: float) -> float:
    """`decode.link` after one more hand-over, which took `seconds` from its request to the first token.

    Of the step that runs when the KV comes a half is left, as likely more as less.
    """
    steps_s = 1.5 * tpot_s(decode, prompt_tokens, joined=True)
    return followed(decode.link, handover_s(prefill, decode, prompt_tokens) + steps_s, seconds, LINK)
