"""How many instances prefill and how many decode: the split of a GPU budget with the most goodput per GPU.

A split cannot sustain more than its scarcer phase by itself, pooled as it is. Splits are simulated best bound first,
and no further once the bound is below what was found. Invariant: the answer was simulated, and every split left out has
a bound that is no higher. Rates are requests per second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paceline_planner.search.trial import NothingServes


@dataclass(frozen=True, slots=True)
class Split:
    """`prefills` and `decodes` instances of one GPU count each, and what they sustain together."""

    prefills: int
    decodes: int
    goodput_rps: float

    @property
    def gpus(self) -> int:
        return self.prefills + self.decodes

    @property
    def per_gpu_rps(self) -> float:
        return self.goodput_rps / self.gpus

    def __str__(self) -> str:
        return f"{self.prefills}P{self.decodes}D"


def best_split(
    gpus: int,
    prefill_bound_rps: Callable[[int], float],
    decode_bound_rps: Callable[[int], float],
    simulate: Callable[[int, int, float], float],
) -> tuple[Split, ...]:
    """The splits simulated of up to `gpus` GPUs, best per GPU first, fewer GPUs first among equals.

    `simulate` has prefills, decodes and the bound of their goodput, and returns their goodput. NothingServes.
    """
    bounds = [
        Split(p, n - p, min(prefill_bound_rps(p), decode_bound_rps(n - p)))
        for n in range(2, gpus + 1)
        for p in range(1, n)
    ]
    found: list[Split] = []
    for bound in sorted(bounds, key=lambda b: (-b.per_gpu_rps, b.gpus)):
        if bound.per_gpu_rps <= max((split.per_gpu_rps for split in found), default=0.0):
            break
        goodput = simulate(bound.prefills, bound.decodes, bound.goodput_rps)
        found.append(Split(bound.prefills, bound.decodes, goodput))
    if not any(split.goodput_rps for split in found):
        raise NothingServes(f"no split of up to {gpus} GPUs meets its objective at any rate")
    return tuple(sorted(found, key=lambda split: (-split.per_gpu_rps, split.gpus)))
