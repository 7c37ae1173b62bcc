"""The seam between a batching policy and whatever fills and runs its steps (the simulated engine, or vLLM's scheduler).

A policy answers one question: what may the next step contain? It names an order and a token budget and nothing else,
because that is all that vLLM's own scheduler lets an outsider set. It owns no clock, no queue and no memory pool: it
reads a `View` and returns a `Step`. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, assert_never

from paceline_engine.kv_blocks import KVBlocks
from paceline_engine.request import Request

FOREVER = 1 << 30  # `repeat` of a step that only an arrival, an end or a departure changes


class Reserve(Enum):
    """How much KV a prompt needs before it may start."""

    CHUNK = "chunk"  # what its first chunk fills (vLLM v1)
    PROMPT = "prompt"  # the whole prompt, 1 % of the pool left free (vLLM v0, Sarathi-Serve)
    ALL = "all"  # prompt and longest answer (Orca)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one engine: requests that run at once, tokens of one step, and the tile its kernels compute in."""

    max_requests: int = 256
    max_batched_tokens: int = 8192
    tile_tokens: int = 128


@dataclass(slots=True)
class View:
    """One engine's requests. `decodes` and `partials` (prefill begun) hold KV, in the order they were admitted.

    `flying` more are in micro-batches on their way through a pipeline: they run, and no step may hold them.
    """

    kv: KVBlocks
    limits: Limits
    decodes: list[Request] = field(default_factory=list)
    partials: list[Request] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)
    flying: int = 0

    @property
    def running(self) -> int:
        return len(self.decodes) + len(self.partials) + self.flying

    def can_start(self, request: Request, reserve: Reserve, first_chunk: int) -> bool:
        """Whether a waiting request may be admitted, given the KV that `reserve` asks for and the limit on requests."""
        if self.running >= self.limits.max_requests:
            return False
        kv = self.kv
        match reserve:
            case Reserve.CHUNK:
                return kv.missing(request, request.computed_tokens + first_chunk) <= kv.available
            case Reserve.PROMPT:
                spare = kv.watermark if self.running else 0
                return kv.missing(request, request.total_tokens) + spare <= kv.available
            case Reserve.ALL:
                return kv.missing(request, request.prompt_tokens + request.max_tokens) <= kv.available
            case _:
                assert_never(reserve)


@dataclass(frozen=True, slots=True)
class Step:
    """What one engine step may hold: all of `decodes`, then chunks of `prefills` in order, within `token_budget`."""

    decodes: Sequence[Request]
    prefills: Sequence[Request]
    token_budget: int
    whole_prompts: bool = False  # a prompt runs in one piece or not at all
    reserve: Reserve = Reserve.CHUNK
    repeat: int = 1  # the same step may run this often while nothing arrives, ends or leaves
    padded: bool = False  # every prompt is computed at the length of the longest one beside it


class Policy(Protocol):
    """A batching policy. `plan` is called before each step; `start_s` is when that step can start at the earliest."""

    def plan(self, view: View, start_s: float) -> Step: ...

    def victim(self, view: View, start_s: float) -> Request:
        """Which running request gives up its KV when a decode cannot grow; `view` has at least one."""
        ...


class Latest:
    """vLLM's choice of a victim: what was admitted last."""

    def victim(self, view: View, start_s: float) -> Request:
        return view.partials[-1] if view.partials else view.decodes[-1]
