"""What one replica's engine takes for a service's prompts and decodes: its table and fit on the present lengths.

Everything here is independent of how many replicas there are, and computed once. Invariant: times are positive and
finite; a longer prompt is never quicker, a larger batch never faster. Times are seconds. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from paceline_engine.policies.step import Limits

from paceline_router.autoscale.queueing import Sharing
from paceline_router.autoscale.signals import EngineSignals
from paceline_router.autoscale.workload import Context, Load, context
from paceline_router.facts import Facts, Role
from paceline_router.latency import step_s, transfer_s

LIMITS = Limits()  # vLLM's defaults, which engines run with: 256 requests at once, 8192 tokens a step
DENSE_TOKENS = 2048  # from here to twice as many, a table's slope is what a prompt token costs a busy engine
CHUNK_TOKENS = 512  # of prompts beside decodes, about what a TPOT limit leaves
EXPECTED = 1.5  # of the tokens emitted: mixed replicas keep KV for the median of what is still to come
KV_SPARE = 0.01  # of the KV is left free by whoever admits (vLLM's watermark)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompts of one length. `shared_s` is the part of `alone_s` that prompts computed in one step pay once."""

    share: float
    limit_s: float
    alone_s: float
    shared_s: float
    transfer_s: float


@dataclass(frozen=True, slots=True)
class Prompts:
    """One class's prompts on this engine, with the means over them: seconds, and seconds² of `alone_s`."""

    lengths: tuple[Prompt, ...]
    limit_s: float
    alone_s: float
    shared_s: float
    square_s2: float


class Machine:
    """One replica of an engine under the loads of a service, in a role. The loads are at least one."""

    def __init__(self, engine: EngineSignals, of: Sequence[Load], role: Role) -> None:
        self.engine = engine
        self.role = role
        self._facts = Facts(
            table=engine.table,
            mixed_scale=engine.mixed_scale,
            mixed_offset_s=engine.mixed_offset_s,
            decode_scale=engine.decode_scale,
            decode_offset_s=engine.decode_offset_s,
        )
        self.tpot_s = min(load.slo.tpot_s for load in of)
        self.stall_s = min(load.slo.stall_s for load in of)
        self._context = context(of).mean
        self.sharing = Sharing(self._gaps_s(of) if role is not Role.PREFILL else [self.tpot_s])
        paced = min(self.sharing.within(self.tpot_s), self.sharing.slots)
        self._beside = (int(paced / 2), int(paced / 2 * self._context)) if role is Role.MIXED else (0, 0)
        dense_s = self._prompt_s(2 * DENSE_TOKENS, 0.0) - self._prompt_s(DENSE_TOKENS, 0.0)
        self._token_s = max(dense_s / DENSE_TOKENS, 0.0)
        self._pair_s = engine.mixed_scale * engine.table.pair_s
        self.prompts = tuple(self._prompts(load) for load in of) if role is not Role.DECODE else ()
        self.capacity_rps = self._capacity_rps(of, paced)

    def _capacity_rps(self, of: Sequence[Load], paced: float) -> float:
        """Requests a second that keep one replica busy at the pace of the tightest class; only ratios of it matter."""
        rate = sum(load.rate_rps for load in of)
        busy_s = (
            sum(load.rate_rps * p.alone_s for load, p in zip(of, self.prompts, strict=True)) if self.prompts else 0.0
        )
        if self.role is not Role.PREFILL:
            m = max(paced, 1.0)
            busy_s += sum(load.tokens_per_s for load in of) * self.sharing.gap_s(m) / m
        return rate / busy_s

    def crowded_s(self, decodes: float) -> float:
        """A step of so many decodes in which there is always a prompt, without the time of the prompt's tokens."""
        m = int(decodes)
        # The fitted offset is half a tile of a prompt's last chunk, which `alone_s` has; chunks end on tiles.
        facts = replace(self._facts, mixed_offset_s=0.0)
        filled_s = step_s(facts, CHUNK_TOKENS, 0.0, m, int(m * self._context))
        return max(filled_s - CHUNK_TOKENS * self._token_s, self.sharing.gap_s(decodes))

    def _gaps_s(self, of: Sequence[Load]) -> list[float]:
        kv_tokens = self.engine.kv_tokens or self.engine.table.kv_tokens
        fit = mean_fit(kv_tokens * (1 - KV_SPARE), context(of, EXPECTED if self.role is Role.MIXED else 1.0))
        slots = max(1, min(LIMITS.max_requests, int(fit)))
        return [step_s(self._facts, 0, 0.0, m, int(m * self._context)) for m in range(1, slots + 1)]

    def _prompt_s(self, tokens: int, pairs: float) -> float:
        """What prompts add to a replica's time beside its usual decodes."""
        decodes, decode_context = self._beside
        together_s = step_s(self._facts, tokens, pairs, decodes, decode_context)
        return together_s - (step_s(self._facts, 0, 0.0, decodes, decode_context) if decodes else 0.0)

    def _prompts(self, load: Load) -> Prompts:
        found = tuple(self._prompt(load, tokens, share) for tokens, share in load.prompts)
        return Prompts(
            found,
            sum(p.share * p.limit_s for p in found),
            sum(p.share * p.alone_s for p in found),
            sum(p.share * p.shared_s for p in found),
            sum(p.share * p.alone_s**2 for p in found),
        )

    def _prompt(self, load: Load, tokens: float, share: float) -> Prompt:
        length = max(1, round(tokens))
        pieces = -(-length // LIMITS.max_batched_tokens)
        alone_s = max(pieces * self._prompt_s(-(-length // pieces), length * length / 2 / pieces), 1e-6)
        own_s = self._token_s * length + self._pair_s * length * length / 2
        shared_s = max(alone_s - own_s, 0.0)
        return Prompt(share, load.slo.ttft_limit_s(length), alone_s, shared_s, transfer_s(self._facts, length))


def mean_fit(kv_tokens: float, of: Context) -> float:
    """How many requests' KV fits at once, on average over which they are: the mean count of a renewal process."""
    return kv_tokens / of.mean + ((of.deviation / of.mean) ** 2 - 1) / 2
