"""The catalogue's shapes are those of the published configurations, and are found by the names that people write."""

from __future__ import annotations

import pytest
from paceline_api.catalog import ACCELERATORS, MODELS, ModelShape, find_model


def parameters_of(model: ModelShape) -> int:
    """Every weight of the architecture: Llama's family (gated MLP, untied output) or OPT's (biases, tied output)."""
    hidden, query, kv = model.hidden, model.heads * model.head_dim, model.kv_heads * model.head_dim
    if model.gated_mlp:
        norms = 2 * hidden + (2 * model.head_dim if model.name.startswith("qwen3") else 0)
        layer = 2 * hidden * query + 2 * hidden * kv + 3 * hidden * model.intermediate + norms
        return model.layers * layer + 2 * model.vocab * hidden + hidden
    attention, mlp = 4 * hidden * hidden + 4 * hidden, 2 * hidden * model.intermediate + model.intermediate + hidden
    positions = model.max_context_tokens + 2
    return model.layers * (attention + mlp + 4 * hidden) + (model.vocab + positions) * hidden + 2 * hidden


@pytest.mark.parametrize("name", MODELS)
def test_a_shape_accounts_for_every_parameter(name: str) -> None:
    assert MODELS[name].parameters == parameters_of(MODELS[name])


@pytest.mark.parametrize(
    ("written", "name"),
    [
        pytest.param("hf://Qwen/Qwen3-8B", "qwen3-8b", id="a Hugging Face URI"),
        pytest.param(
            "hf://meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b", id="an instruct variant has the same shape"
        ),
        pytest.param("meta-llama/Meta-Llama-3.1-70B", "llama-3.1-70b", id="the older repository name"),
        pytest.param("meta-llama/Llama-2-70b-chat-hf", "llama-2-70b", id="several endings"),
        pytest.param("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b", id="a version that is the catalogue's"),
        pytest.param("hf://facebook/opt-13b", "opt-13b", id="OPT"),
        pytest.param("pvc://models/qwen3-32b/", "qwen3-32b", id="a volume's folder"),
        pytest.param("yi-34b", "yi-34b", id="a plain name"),
        pytest.param("01-ai/Yi-34B-200K", None, id="a long-context variant is another model"),
        pytest.param("Qwen/Qwen3-8B-FP8", None, id="a quantised variant is another model"),
        pytest.param("Qwen/Qwen3-235B-A22B", None, id="an unknown model"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_models_are_found_by_the_names_people_write(written: str, name: str | None) -> None:
    found = find_model(written)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [("opt-13b", 819_200), ("llama-3.1-8b", 131_072), ("qwen3-8b", 147_456), ("yi-34b", 245_760)],
)
def test_a_token_of_context_takes_keys_and_values_of_every_layer(name: str, kv_bytes: int) -> None:
    assert MODELS[name].kv_bytes_per_token == kv_bytes


def test_opt_66b_keeps_1_13_gigabytes_for_512_tokens_as_distserve_says() -> None:
    assert MODELS["opt-66b"].kv_bytes_per_token * 512 == pytest.approx(1.13 * 2**30, rel=0.01)


def test_accelerators_are_those_that_the_chart_builds_in() -> None:
    assert list(ACCELERATORS) == ["a100-sxm-80gb", "h100-sxm", "h200-sxm", "b200-sxm", "l40s", "a40"]
    assert ACCELERATORS["a40"].table == ""
    for accelerator in ACCELERATORS.values():
        assert accelerator.resource_name == "nvidia.com/gpu"
        assert accelerator.node_selector["nvidia.com/gpu.product"].startswith("NVIDIA-")
