"""The machine of a simulated engine: the truth that a policy never sees (DESIGN §8).

It is a step-time table with tile steps, noise and rare stalls, and a constant plus size / bandwidth for each KV
hand-over. What a policy knows is its own prior and what it fits online. Pure; randomness comes from the generator
passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paceline_engine.step_time import StepTable

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What one replica runs on. With `noise_ratio` and `stall_probability` at 0 it is deterministic.

    `noise_ratio` is the standard deviation of a step's time around the table; a stall adds `stall_s` to a step (garbage
    collection, a preempted host thread). Assumed, not measured: 2 %, and 50 ms once in 5,000 steps.
    `kv_bytes_per_s` is the bandwidth of one hand-over (25 GB/s: a 200 Gb/s NIC). `stages` share the layers in equal
    parts; `send_s` passes a micro-batch on to the next one. `one_loop`: the engine is a single loop, as DistServe's is.
    It fetches KV only between steps, one hand-over after another, and begins no step meanwhile; newcomers join the
    micro-batch that has just come back, and stay with it.
    """

    table: StepTable
    tile_tokens: int = 128
    noise_ratio: float = 0.02
    stall_probability: float = 0.0002
    stall_s: float = 0.05
    kv_constant_s: float = 0.002
    kv_bytes_per_s: float = 25e9
    stages: int = 1
    send_s: float = 0.0
    one_loop: bool = False


class Machine:
    """Step and hand-over times of one replica, seconds."""

    def __init__(self, spec: MachineSpec, rng: Random) -> None:
        self.spec = spec
        self._table = replace(spec.table, tile_tokens=max(spec.tile_tokens, spec.table.tile_tokens))
        self._rng = rng
        self._noisy = spec.noise_ratio > 0 or spec.stall_probability > 0

    def step_s(self, prefill_tokens: int, prefill_pairs: float, decodes: int, decode_context: int) -> float:
        seconds = self._table.seconds4(prefill_tokens, prefill_pairs, decodes, decode_context)
        if not self._noisy:
            return seconds
        spec, rng = self.spec, self._rng
        seconds *= max(0.5, 1.0 + spec.noise_ratio * rng.gauss(0.0, 1.0))
        if rng.random() < spec.stall_probability:
            seconds += spec.stall_s
        return seconds

    def host_s(self, prefill_tokens: int, decodes: int, decode_context: int) -> float:
        """The part of a step that no pipeline stage sees: the host's, once for all of them.

        Of one loop that is its constant alone: what it takes per token is the workers', each for its own layers.
        """
        host = self._table.host
        return host.constant_s if self.spec.one_loop else host.seconds(prefill_tokens, decodes, decode_context)

    def transfer_s(self, tokens: int) -> float:
        """From a decode engine's request for `tokens` tokens of KV until it has them."""
        return self.spec.kv_constant_s + tokens * self._table.kv_bytes_per_token / self.spec.kv_bytes_per_s
