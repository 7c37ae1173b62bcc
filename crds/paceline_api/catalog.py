"""The accelerators and models that Paceline knows without asking: memory, placement labels and model shapes.

Decides which step-time table an accelerator uses and how many bytes a model's weights and KV take. An operator may add
accelerators through the chart (DESIGN §3); these are the built-in ones. Standard library only. Invariant: a model is
found only under a name whose published configuration is exactly the shape given here, never under a quantised or
long-context variant's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One kind of GPU as a pool names it; the fields are those of the chart value `accelerators` (DESIGN §3).

    `memory_gib` is what CUDA reports for one GPU, rounded down. `table` names the step-time table; it is empty for a
    GPU that has none.
    """

    name: str
    table: str
    memory_gib: int
    gpus_per_node: int
    node_selector: Mapping[str, str]
    resource_name: str = "nvidia.com/gpu"
    tolerations: tuple[Mapping[str, str], ...] = (
        MappingProxyType({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}),
    )


def _accelerator(name: str, product: str, memory_gib: int, table: str | None = None) -> Accelerator:
    selector = MappingProxyType({"nvidia.com/gpu.product": product})
    return Accelerator(name, name if table is None else table, memory_gib, 8, selector)


ACCELERATORS: Mapping[str, Accelerator] = MappingProxyType(
    {
        a.name: a
        for a in (
            _accelerator("a100-sxm-80gb", "NVIDIA-A100-SXM4-80GB", 79),
            _accelerator("h100-sxm", "NVIDIA-H100-80GB-HBM3", 79),
            _accelerator("h200-sxm", "NVIDIA-H200", 139),
            _accelerator("b200-sxm", "NVIDIA-B200", 178),
            _accelerator("l40s", "NVIDIA-L40S", 44),
            _accelerator("a40", "NVIDIA-A40", 44, table=""),
        )
    }
)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a step's cost and a replica's memory follow from; sizes in elements, context in tokens.

    `parameters` counts everything that is loaded, embeddings included.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    parameters: int
    max_context_tokens: int
    gated_mlp: bool = True
    weight_bytes_per_param: int = 2

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token keeps over all layers, at 16 bits an element."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    @property
    def weight_bytes(self) -> int:
        return self.parameters * self.weight_bytes_per_param


# From each model's published config.json (max_position_embeddings is the context); parameters follow from it.
# OPT-175B has no public weights: OPT paper (arXiv 2205.01068), table 1. Mistral-7B is v0.3's (v0.1 attends 4,096 back).
MODELS: Mapping[str, ModelShape] = MappingProxyType(
    {
        m.name: m
        for m in (
            ModelShape("llama-2-7b", 32, 4096, 32, 32, 128, 11008, 32000, 6_738_415_616, 4096),
            ModelShape("llama-2-13b", 40, 5120, 40, 40, 128, 13824, 32000, 13_015_864_320, 4096),
            ModelShape("llama-2-70b", 80, 8192, 64, 8, 128, 28672, 32000, 68_976_648_192, 4096),
            ModelShape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, 8_030_261_248, 131072),
            ModelShape("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256, 70_553_706_496, 131072),
            ModelShape("mistral-7b", 32, 4096, 32, 8, 128, 14336, 32768, 7_248_023_552, 32768),
            ModelShape("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936, 8_190_735_360, 40960),
            ModelShape("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936, 32_762_123_264, 40960),
            ModelShape("yi-34b", 60, 7168, 56, 8, 128, 20480, 64000, 34_388_917_248, 4096),
            ModelShape("opt-13b", 40, 5120, 40, 40, 128, 20480, 50272, 12_853_473_280, 2048, gated_mlp=False),
            ModelShape("opt-66b", 64, 9216, 72, 72, 128, 36864, 50272, 65_719_701_504, 2048, gated_mlp=False),
            ModelShape("opt-175b", 96, 12288, 96, 96, 128, 49152, 50272, 174_604_468_224, 2048, gated_mlp=False),
        )
    }
)

# Endings of a repository's name that change the weights but not the shape.
_SAME_SHAPE = re.compile(r"(-(hf|chat|instruct|base|it|v0\.3|instruct-v0\.3|chat-hf))*$")
_ALIASES: Mapping[str, str] = MappingProxyType(
    {"meta-llama-3.1-8b": "llama-3.1-8b", "meta-llama-3.1-70b": "llama-3.1-70b"}
)


def find_model(uri_or_name: str) -> ModelShape | None:
    """The shape behind `hf://Qwen/Qwen3-8B`, `pvc://claim/opt-13b` or a plain name; None when it is not a known one."""
    last = uri_or_name.rstrip("/").rsplit("/", 1)[-1].lower()
    stem = _SAME_SHAPE.sub("", last)
    return MODELS.get(_ALIASES.get(stem, stem))
