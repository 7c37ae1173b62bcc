"""What the data sheets promise of a GPU: dense arithmetic, memory bandwidth, links. Only facts, no achieved share.

`shared_path_bytes_s` is the one thing that no data sheet states: how fast GPUs reduce once a group is larger than a
linked pair and its traffic goes through the host. Invariant: rates are dense ones, per second, in one direction. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU in its usual server. `flops`: operations per second by precision, bf16 always among them.

    `link_bytes_s` is what a GPU sends to its peers: to all of them, or to one when `shared_path_bytes_s` is given. Then
    the ring of a larger group moves that much in all, 1/n of it for each of n GPUs. `memory_of` names an accelerator of
    the catalogue with the same memory.
    """

    name: str
    flops: Mapping[str, float]
    memory_bytes_s: float
    link_bytes_s: float
    memory_of: str
    source: str
    shared_path_bytes_s: float | None = None

    def peak(self, compute: str) -> float:
        """Operations per second; a precision that the GPU lacks runs as bf16 (weights are unpacked first)."""
        return self.flops.get(compute, self.flops["bf16"])

    def ring_bytes_s(self, group: int, link_share: float) -> float:
        """What each of `group` GPUs sends to the next when all do: a share of the link, or of the measured path."""
        if self.shared_path_bytes_s is None or group <= 2:
            return link_share * self.link_bytes_s
        return self.shared_path_bytes_s / group


def _flops(bf16: float, fp8: float = 0.0, int8: float = 0.0) -> Mapping[str, float]:
    rates = {"bf16": bf16, "fp8": fp8, "int8": int8}
    return MappingProxyType({name: rate * 1e12 for name, rate in rates.items() if rate})


# Dense rates: where a data sheet prints those with sparsity, half of them. NVLink is printed as the sum of both ways.
# PCIe 4.0 x16 carries 31.5 GB/s each way.
L40S_PATH = 14.8e9  # what 4 and 8 L40S alike move in all, from aiconfigurator-core 0.12.0's steps
PAIRS_PATH = 4 * 23.7e9  # 4 GPUs linked in pairs, microsoft/vidur data/profiling (A100 pairwise NVLink, all-reduce)
GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        g.name: g
        for g in (
            Gpu(
                "a100-sxm-80gb",
                _flops(312, int8=624),
                2.039e12,
                300e9,
                "a100-sxm-80gb",
                "NVIDIA A100 data sheet (SXM 80 GB)",
            ),
            Gpu(
                "a100-pcie-80gb",
                _flops(312, int8=624),
                1.935e12,
                300e9,
                "a100-sxm-80gb",
                "NVIDIA A100 data sheet (PCIe 80 GB, NVLink bridges between pairs)",
                PAIRS_PATH,
            ),
            Gpu("h100-sxm", _flops(989, 1979, 1979), 3.35e12, 450e9, "h100-sxm", "NVIDIA H100 data sheet (SXM)"),
            Gpu("h200-sxm", _flops(989, 1979, 1979), 4.8e12, 450e9, "h200-sxm", "NVIDIA H200 data sheet (SXM)"),
            Gpu("b200-sxm", _flops(2250, 4500, 4500), 8.0e12, 900e9, "b200-sxm", "NVIDIA HGX B200 data sheet"),
            Gpu(
                "l40s",
                _flops(362, 733, 733),
                0.864e12,
                31.5e9,
                "l40s",
                "NVIDIA L40S data sheet (PCIe 4.0)",
                L40S_PATH,
            ),
            Gpu(
                "a40",
                _flops(149.7, int8=299.3),
                0.696e12,
                31.5e9,
                "a40",
                "NVIDIA A40 data sheet (PCIe 4.0); groups of more than two as A100s linked in pairs",
                PAIRS_PATH,
            ),
        )
    }
)
