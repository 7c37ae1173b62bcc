"""How much of its data sheet each GPU achieves, and how far a roofline made of it is off: fitted constants.

Fitted by fitting.py to the 9,315 steps of aiconfigurator-core 0.12.0 (Apache-2.0; backend vllm, bf16); `python
benchmarks/roofline.py` prints them anew. Invariant: the error stated is never one on data that the constants were
fitted to: a GPU's own was measured on families of models left out of its fit, TYPICAL's on GPUs left out of it. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from paceline_planner.fit.grid import PHASES
from paceline_planner.roofline.cost import Fractions
from paceline_planner.roofline.gpu import Gpu

Quantiles = Mapping[str, Mapping[str, float]]  # phase: {"median": .., "p90": ..}, relative


@dataclass(frozen=True, slots=True)
class Achieved:
    """What a GPU achieves and how far predictions are off by phase. `basis` says whose constants they are."""

    fractions: Fractions
    error: Quantiles
    basis: str


def _errors(*by_phase: tuple[float, float]) -> Quantiles:
    return {phase: {"median": m, "p90": p} for phase, (m, p) in zip(PHASES, by_phase, strict=True)}


TYPICAL = Achieved(
    Fractions(0.741, 0.784, 1.55, 0.573, 0.832, 0.533, 2.48e-05, 0.000407, 3.29e-06),
    _errors((0.092, 0.211), (0.076, 0.158), (0.082, 0.190)),
    "all GPUs of the grid together",
)
_OWN: Mapping[str, tuple[Fractions, Quantiles]] = {
    "a100-sxm-80gb": (
        Fractions(0.782, 0.718, 1.57, 0.675, 0.78, 0.483, 5.31e-05, 8.96e-05, 2.06e-06),
        _errors((0.053, 0.115), (0.045, 0.120), (0.042, 0.119)),
    ),
    "b200-sxm": (
        Fractions(0.646, 0.919, 1.19, 0.534, 0.891, 0.537, 4.51e-05, 1.66e-06, 2.45e-06),
        _errors((0.061, 0.164), (0.049, 0.127), (0.061, 0.132)),
    ),
    "h100-sxm": (
        Fractions(0.703, 0.806, 2.24, 0.63, 0.882, 0.637, 4.5e-06, 0.00108, 4.43e-06),
        _errors((0.045, 0.096), (0.048, 0.130), (0.036, 0.091)),
    ),
    "h200-sxm": (
        Fractions(0.709, 0.749, 2.35, 0.598, 0.851, 0.689, 8.17e-06, 0.000927, 4.01e-06),
        _errors((0.042, 0.110), (0.055, 0.177), (0.036, 0.088)),
    ),
    "l40s": (
        Fractions(0.58, 0.773, 1.89, 0.428, 0.79, 0.571, 1.62e-05, 6.4e-07, 2.85e-06),
        _errors((0.034, 0.090), (0.037, 0.087), (0.018, 0.069)),
    ),
}
FITTED: Mapping[str, Achieved] = MappingProxyType(
    {name: Achieved(fractions, error, f"the grid's {name}") for name, (fractions, error) in _OWN.items()}
)
SAME_CHIP: Mapping[str, str] = MappingProxyType({"a100-pcie-80gb": "a100-sxm-80gb"})


def achieved(gpu: Gpu) -> Achieved:
    """The GPU's own constants, or those of the same chip on another board; else the typical ones."""
    return FITTED.get(SAME_CHIP.get(gpu.name, gpu.name), TYPICAL)
