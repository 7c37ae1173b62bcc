"""Shapes read from config.json account for the published numbers of parameters and bytes, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
from paceline_api.catalog import MODELS
from paceline_planner.roofline.shape import Precision, ShapeUnknown, from_config, of_catalogue, read_precision

Config = dict[str, Any]


def llama(hidden: int, layers: int, heads: int, kv_heads: int, width: int, vocab: int, **more: object) -> Config:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": width,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        **more,
    }


LLAMA_8B = llama(4096, 32, 32, 8, 14336, 128256)
LLAMA_70B = llama(8192, 80, 64, 8, 28672, 128256)
MIXTRAL = llama(4096, 32, 32, 8, 14336, 32000, model_type="mixtral", num_local_experts=8, num_experts_per_tok=2)
QWEN3_8B = llama(4096, 36, 32, 8, 12288, 151936, model_type="qwen3", head_dim=128)
QWEN25_7B = llama(3584, 28, 28, 4, 18944, 152064, model_type="qwen2")
QWEN3_MOE = llama(2048, 48, 32, 4, 6144, 151936, model_type="qwen3_moe", head_dim=128, num_experts=128)
QWEN3_MOE |= {"num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1, "mlp_only_layers": []}
QWEN2_MOE = llama(2048, 24, 16, 16, 5632, 151936, model_type="qwen2_moe", num_experts=60, num_experts_per_tok=4)
QWEN2_MOE |= {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632}
DEEPSEEK = llama(2048, 28, 16, 16, 10944, 102400, model_type="deepseek", n_routed_experts=64, n_shared_experts=2)
DEEPSEEK |= {"num_experts_per_tok": 6, "moe_intermediate_size": 1408, "first_k_dense_replace": 1}
FALCON_180B: Config = {
    "model_type": "falcon",
    "hidden_size": 14848,
    "num_hidden_layers": 80,
    "num_attention_heads": 232,
    "num_kv_heads": 8,
    "new_decoder_architecture": True,
    "vocab_size": 65024,
}
FALCON_7B: Config = {
    "model_type": "falcon",
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "multi_query": True,
    "parallel_attn": True,
    "vocab_size": 65024,
}
OPT_13B: Config = {
    "model_type": "opt",
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "ffn_dim": 20480,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
    "word_embed_proj_dim": 5120,
}


@pytest.mark.parametrize(
    ("config", "total_b", "active_b"),
    [
        pytest.param(LLAMA_8B, 8.03, 8.03, id="Llama-3.1-8B"),
        pytest.param(LLAMA_70B, 70.55, 70.55, id="Llama-3.1-70B"),
        pytest.param(MIXTRAL, 46.7, 12.9, id="Mixtral-8x7B: eight experts, two a token"),
        pytest.param(QWEN25_7B, 7.62, 7.62, id="Qwen2.5-7B: biases on queries, keys and values"),
        pytest.param(QWEN3_MOE, 30.5, 3.3, id="Qwen3-30B-A3B: 128 small experts"),
        pytest.param(QWEN2_MOE, 14.3, 2.7, id="Qwen1.5-MoE-A2.7B: a shared expert with a gate"),
        pytest.param(DEEPSEEK, 16.4, 2.8, id="DeepSeekMoE-16B: a dense first layer, two shared experts"),
        pytest.param(FALCON_180B, 178.6, 178.6, id="Falcon-180B: 180 B, tied output"),
        pytest.param(FALCON_7B, 6.92, 6.92, id="Falcon-7B: one KV head"),
    ],
)
def test_parameters_are_those_published(config: Config, total_b: float, active_b: float) -> None:
    shape = from_config(config, "model")
    assert shape.parameters / 1e9 == pytest.approx(total_b, rel=0.002)
    assert shape.active_parameters / 1e9 == pytest.approx(active_b, rel=0.03)


@pytest.mark.parametrize(
    ("config", "name"),
    [(LLAMA_8B, "llama-3.1-8b"), (LLAMA_70B, "llama-3.1-70b"), (QWEN3_8B, "qwen3-8b"), (OPT_13B, "opt-13b")],
)
def test_a_configuration_accounts_for_the_catalogues_every_parameter(config: Config, name: str) -> None:
    assert from_config(config, name).parameters == MODELS[name].parameters


@pytest.mark.parametrize("name", MODELS)
def test_the_catalogues_models_keep_their_bytes(name: str) -> None:
    shape = of_catalogue(MODELS[name])
    assert shape.parameters == shape.active_parameters == MODELS[name].parameters
    assert shape.weight_bytes == MODELS[name].weight_bytes
    assert shape.kv_bytes_per_token == MODELS[name].kv_bytes_per_token


@pytest.mark.parametrize(
    ("config", "kv_bytes"),
    [
        pytest.param(LLAMA_8B, 131_072, id="Llama-3.1-8B: 128 KiB"),
        pytest.param(LLAMA_70B, 327_680, id="Llama-3.1-70B: 320 KiB"),
        pytest.param(MIXTRAL, 131_072, id="experts keep no KV"),
        pytest.param(QWEN3_MOE, 98_304, id="head_dim differs from hidden / heads"),
        pytest.param(FALCON_180B, 163_840, id="Falcon-180B: 8 heads of 64"),
        pytest.param(FALCON_7B, 8_192, id="multi-query: one head of 64"),
        pytest.param(OPT_13B, 819_200, id="multi-head: 800 KiB"),
    ],
)
def test_kv_bytes_of_a_token(config: Config, kv_bytes: int) -> None:
    assert from_config(config, "model").kv_bytes_per_token == kv_bytes


def scheme(bits: int, kind: str, **more: object) -> Config:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {"weights": {"num_bits": bits, "type": kind}}},
        **more,
    }


EIGHT_BIT_INPUTS: Config = scheme(8, "float", kv_cache_scheme={"num_bits": 8})
EIGHT_BIT_INPUTS["config_groups"]["g"]["input_activations"] = {"num_bits": 8, "type": "float"}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        pytest.param(None, Precision(2.0, "bf16", 2.0), id="none: 16 bits"),
        pytest.param({"quant_method": "fp8", "activation_scheme": "dynamic"}, Precision(1.0, "fp8"), id="fp8"),
        pytest.param(
            {"quant_method": "awq", "bits": 4, "group_size": 128},
            Precision(0.51953125, "bf16"),
            id="AWQ: 4 bits, and 20 for each 128 weights",
        ),
        pytest.param({"quant_method": "gptq", "bits": 8, "group_size": -1}, Precision(1.0), id="GPTQ by column"),
        pytest.param(EIGHT_BIT_INPUTS, Precision(1.0, "fp8", 1.0), id="compressed-tensors with 8-bit KV"),
        pytest.param(scheme(4, "int"), Precision(0.5, "bf16"), id="compressed-tensors, weights only"),
    ],
)
def test_precision_of_a_quantised_model(quantization: Config | None, expected: Precision) -> None:
    assert read_precision(quantization, "model") == expected


def test_a_window_that_is_off_or_never_reached_does_not_matter() -> None:
    for more in ({"sliding_window": 4096, "use_sliding_window": False}, {"sliding_window": 32768}):
        assert from_config(LLAMA_8B | more, "model") == from_config(LLAMA_8B, "model")


def four_bit_inputs() -> Config:
    quantization = scheme(4, "float")
    quantization["config_groups"]["g"]["input_activations"] = {"num_bits": 4, "type": "float"}
    return quantization


def test_only_the_layers_matrices_are_quantised() -> None:
    plain, small = (
        from_config(LLAMA_8B, "a"),
        from_config(LLAMA_8B | {"quantization_config": {"quant_method": "fp8"}}, "b"),
    )
    assert plain.weight_bytes - small.weight_bytes == plain.matrices
    assert plain.kept_parameters == 2 * 128256 * 4096 + (2 * 32 + 1) * 4096


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(LLAMA_8B | {"kv_lora_rank": 512}, "kv_lora_rank", id="latent attention"),
        pytest.param(LLAMA_8B | {"sliding_window": 4096}, "over the last 4096 tokens", id="a sliding window"),
        pytest.param(
            LLAMA_8B | {"quantization_config": four_bit_inputs()}, "rate here for 4 bits", id="4-bit arithmetic"
        ),
        pytest.param(
            LLAMA_8B | {"model_type": "mamba"}, "model_type 'mamba'; there are: .*falcon", id="another family"
        ),
        pytest.param({}, "of an empty name", id="no model_type"),
        pytest.param({"model_type": "opt"}, "has no hidden_size", id="a key is missing"),
        pytest.param(OPT_13B | {"word_embed_proj_dim": 512}, "word_embed_proj_dim", id="OPT-350M's projections"),
        pytest.param(
            LLAMA_8B | {"quantization_config": {"quant_method": "bitsandbytes"}},
            "quant_method 'bitsandbytes'; there are: fp8",
            id="an unknown quantisation",
        ),
        pytest.param(
            LLAMA_8B
            | {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": {}, "b": {}}}},
            "2 schemes",
            id="a mixture of precisions",
        ),
    ],
)
def test_what_would_have_to_be_guessed_is_refused(config: Config, message: str) -> None:
    with pytest.raises(ShapeUnknown, match=message):
        from_config(config, "org/model")
