"""A transformer as its config.json describes it: what a step's work, the weights and the KV follow from.

Reads the Hugging Face keys of dense and mixture-of-experts models with multi-head, grouped or multi-query attention,
and of quantised ones (fp8, GPTQ, AWQ, compressed-tensors). Invariant: a configuration whose cost would have to be
guessed (latent or sliding attention, an unknown family or quantisation) is refused, never approximated. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from paceline_api.catalog import ModelShape

Config = Mapping[str, Any]
SIXTEEN_BITS = 2.0  # bytes of an element


class ShapeUnknown(ValueError):
    """The configuration does not say what a step costs; the message names the key and what is known."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture that replaces the MLP of a layer. `shared` is the width of what every token takes, 0 for none."""

    count: int
    per_token: int
    intermediate: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Precision:
    """How the layers' matrices, multiplications and KV are kept; embeddings and the output stay at 16 bits.

    `compute` names the data sheet's rate: bf16, fp8 or int8. Scales and zeros are part of `weight_bytes`.
    """

    weight_bytes: float = SIXTEEN_BITS
    compute: str = "bf16"
    kv_bytes: float = SIXTEEN_BITS


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes in elements, context in tokens. `dense_layers` of the layers have an MLP instead of `experts`.

    `mlp_matrices` is 3 for a gated MLP, else 2. `reduces_per_layer` counts the all-reduces of tensor parallelism: 1
    when attention and MLP run side by side. `small_parameters` are norms, biases and positions.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_context_tokens: int
    mlp_matrices: int = 3
    tied: bool = False
    experts: Experts | None = None
    dense_layers: int = 0
    reduces_per_layer: int = 2
    small_parameters: int = 0
    precision: Precision = Precision()

    @property
    def attention_parameters(self) -> int:
        """Matrices of one layer's attention."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    def mlp_parameters(self, intermediate: int) -> int:
        return self.mlp_matrices * self.hidden * intermediate

    @property
    def plain_layers(self) -> int:
        """Layers with an MLP that every token takes."""
        return self.dense_layers if self.experts else self.layers

    def _matrices(self, experts_per_layer: int) -> int:
        total = self.layers * self.attention_parameters + self.plain_layers * self.mlp_parameters(self.intermediate)
        if self.experts:
            mixed = self.hidden * self.experts.count + self.mlp_parameters(self.experts.shared)
            mixed += experts_per_layer * self.mlp_parameters(self.experts.intermediate)
            total += (self.layers - self.plain_layers) * mixed
        return total

    @property
    def matrices(self) -> int:
        """Parameters of the layers' matrices, all experts included: what is quantised."""
        return self._matrices(self.experts.count if self.experts else 0)

    @property
    def kept_parameters(self) -> int:
        """Parameters that stay at 16 bits: embeddings, output, norms, biases."""
        return (1 if self.tied else 2) * self.vocab * self.hidden + self.small_parameters

    @property
    def parameters(self) -> int:
        return self.matrices + self.kept_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters that one token uses, embeddings included."""
        return self._matrices(self.experts.per_token if self.experts else 0) + self.kept_parameters

    @property
    def weight_bytes(self) -> int:
        return int(self.matrices * self.precision.weight_bytes + self.kept_parameters * SIXTEEN_BITS)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token keeps over all layers, each head once."""
        return int(2 * self.layers * self.kv_heads * self.head_dim * self.precision.kv_bytes)


def of_catalogue(model: ModelShape) -> Shape:
    """A model of the catalogue; its parameters that are in no matrix are the small ones."""
    bare = Shape(
        name=model.name,
        layers=model.layers,
        hidden=model.hidden,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        intermediate=model.intermediate,
        vocab=model.vocab,
        max_context_tokens=model.max_context_tokens,
        mlp_matrices=3 if model.gated_mlp else 2,
        tied=not model.gated_mlp,  # of the catalogue's models OPT ties them
    )
    return replace(bare, small_parameters=model.parameters - bare.parameters)


def from_config(config: Config, name: str) -> Shape:
    """The shape of a config.json; raises ShapeUnknown."""
    family = str(config.get("model_type", ""))
    if "kv_lora_rank" in config:
        raise ShapeUnknown(f"{name}: kv_lora_rank: multi-head latent attention has no roofline here")
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window and window < config.get("max_position_embeddings", 0):
        raise ShapeUnknown(f"{name}: sliding_window: attention over the last {window} tokens has no roofline here")
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ShapeUnknown(f"{name}: no roofline for model_type {family or 'of an empty name'!r}; there are: {known}")
    try:
        precision = read_precision(config.get("quantization_config"), name)
        return Shape(name=name, precision=precision, **FAMILIES[family](config))
    except KeyError as e:
        raise ShapeUnknown(f"{name}: config.json has no {e.args[0]}") from e


def _llama(c: Config) -> dict[str, Any]:
    """Llama, Mistral, Qwen and their mixtures: gated MLPs, RMS norms, rotary positions."""
    hidden, heads, layers = c["hidden_size"], c["num_attention_heads"], c["num_hidden_layers"]
    head_dim = c.get("head_dim") or hidden // heads
    kv_heads = c.get("num_key_value_heads") or heads
    experts = _experts(c)
    dense = _dense_layers(c) if experts else 0
    gates = hidden * (layers - dense) if c["model_type"] == "qwen2_moe" else 0  # of the shared expert
    return {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate": c["intermediate_size"],
        "vocab": c["vocab_size"],
        "max_context_tokens": c["max_position_embeddings"],
        "tied": bool(c.get("tie_word_embeddings", False)),
        "experts": experts,
        "dense_layers": dense,
        "small_parameters": layers * _norms_and_biases(c, hidden, heads, kv_heads, head_dim) + hidden + gates,
    }


def _norms_and_biases(c: Config, hidden: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Of one layer of Llama's kin."""
    family, biased = c["model_type"], bool(c.get("attention_bias", False))
    norms = 2 * hidden + (2 * head_dim if family.startswith("qwen3") else 0)  # those of queries and keys
    inputs = head_dim * (heads + 2 * kv_heads) if biased or family.startswith("qwen2") else 0
    return norms + inputs + (hidden if biased else 0)


def _experts(c: Config) -> Experts | None:
    keys = ("num_local_experts", "num_experts", "n_routed_experts")
    count = next((int(c[key]) for key in keys if c.get(key)), 0)
    if count <= 1:
        return None
    width = int(c.get("moe_intermediate_size") or c["intermediate_size"])
    shared = int(c.get("shared_expert_intermediate_size") or (c.get("n_shared_experts") or 0) * width)
    return Experts(count, int(c["num_experts_per_tok"]), width, shared)


def _dense_layers(c: Config) -> int:
    """Layers of a mixture that have a plain MLP: the first ones, those between sparse steps, those listed."""
    first, listed = int(c.get("first_k_dense_replace") or 0), set(c.get("mlp_only_layers") or ())
    step, every = int(c.get("decoder_sparse_step") or 1), int(c.get("moe_layer_freq") or 1)
    return sum(i < first or i in listed or (i + 1) % step != 0 or i % every != 0 for i in range(c["num_hidden_layers"]))


def _opt(c: Config) -> dict[str, Any]:
    hidden, layers, ffn = c["hidden_size"], c["num_hidden_layers"], c["ffn_dim"]
    if c.get("word_embed_proj_dim", hidden) != hidden:
        raise ShapeUnknown("word_embed_proj_dim: OPT with projected embeddings has no roofline here")
    return {
        "layers": layers,
        "hidden": hidden,
        "heads": c["num_attention_heads"],
        "kv_heads": c["num_attention_heads"],
        "head_dim": hidden // c["num_attention_heads"],
        "intermediate": ffn,
        "vocab": c["vocab_size"],
        "max_context_tokens": c["max_position_embeddings"],
        "mlp_matrices": 2,
        "tied": True,
        "small_parameters": layers * (9 * hidden + ffn) + (c["max_position_embeddings"] + 4) * hidden,
    }


def _falcon(c: Config) -> dict[str, Any]:
    hidden, layers, heads = c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"]
    new, side_by_side = bool(c.get("new_decoder_architecture")), bool(c.get("parallel_attn", True))
    kv_heads = c["num_kv_heads"] if new else 1 if c.get("multi_query", True) else heads
    norms = int(c.get("num_ln_in_parallel_attn") or 2) if new else 1 if side_by_side else 2
    return {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": hidden // heads,
        "intermediate": c.get("ffn_hidden_size") or 4 * hidden,
        "vocab": c["vocab_size"],
        "max_context_tokens": c.get("max_position_embeddings", 2048),
        "mlp_matrices": 2,
        "tied": bool(c.get("tie_word_embeddings", True)),
        "reduces_per_layer": 1 if new or side_by_side else 2,
        "small_parameters": layers * norms * 2 * hidden + 2 * hidden,
    }


FAMILIES: Mapping[str, Callable[[Config], dict[str, Any]]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "deepseek"), _llama),
    "opt": _opt,
    "falcon": _falcon,
}


def read_precision(quantization: Config | None, name: str) -> Precision:
    """What a config.json's quantization_config means; raises ShapeUnknown."""
    if not quantization:
        return Precision()
    method = quantization.get("quant_method")
    if method == "fp8":
        return Precision(1.0, "fp8")
    if method in ("gptq", "awq"):
        return Precision(grouped_bytes(int(quantization["bits"]), int(quantization.get("group_size") or 128)))
    if method == "compressed-tensors":
        return _compressed_tensors(quantization, name)
    known = "fp8, gptq, awq, compressed-tensors"
    raise ShapeUnknown(f"{name}: no roofline for quant_method {method!r}; there are: {known}")


def grouped_bytes(bits: int, group: int) -> float:
    """Bytes of one weight whose group shares a 16-bit scale and a zero point; group -1 is a whole column."""
    return bits / 8 if group < 0 else (bits + (16 + bits) / group) / 8


def _compressed_tensors(quantization: Config, name: str) -> Precision:
    """One scheme for all matrices; activations at 8 bits make the multiplications 8-bit ones."""
    groups = list(quantization["config_groups"].values())
    if len(groups) != 1:
        raise ShapeUnknown(f"{name}: config_groups: {len(groups)} schemes; a roofline needs one for all matrices")
    weights, inputs = groups[0]["weights"], groups[0].get("input_activations")
    bits = int(weights["num_bits"])
    if inputs and inputs["num_bits"] != 8:
        raise ShapeUnknown(f"{name}: input_activations: no data sheet rate here for {inputs['num_bits']} bits")
    kv = quantization.get("kv_cache_scheme")
    kv_bytes = int(kv["num_bits"]) / 8 if kv else SIXTEEN_BITS
    compute = "bf16" if not inputs else "fp8" if weights["type"] == "float" else "int8"
    return Precision(grouped_bytes(bits, int(weights.get("group_size") or -1)), compute, kv_bytes)
