"""Roofline tables: physical, near the measured tables and the papers' figures, and honest about what they rest on."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.catalog import MODELS
from paceline_engine.step_time import StepTable
from paceline_engine.tables import available, load_table
from paceline_planner.roofline.cost import touched
from paceline_planner.roofline.fractions import FITTED, TYPICAL, achieved
from paceline_planner.roofline.gpu import GPUS
from paceline_planner.roofline.shape import Experts, Precision, Shape, of_catalogue
from paceline_planner.roofline.table import DoesNotFit, roofline_table

MEASURED = [key for key in available() if "." not in key[0]]
QWEN3_30B = Shape("qwen3-30b-a3b", 48, 2048, 32, 4, 128, 0, 151936, 40960, experts=Experts(128, 8, 768))
FALCON_180B = Shape(
    "falcon-180b", 80, 14848, 232, 8, 64, 4 * 14848, 65024, 2048, mlp_matrices=2, tied=True, reduces_per_layer=1
)
STEPS = [  # prefill tokens, pairs, decodes, their context
    *((n, n * n / 2, 0, 0) for n in (128, 512, 1024, 2048, 4096)),
    *((0, 0.0, b, b * context) for b in (1, 8, 32, 128) for context in (256, 1024, 2048)),
    *((n, n * n / 2, b, b * 2048) for n in (256, 1024) for b in (8, 64)),
]


def dense(name: str, **over: object) -> Shape:
    return replace(of_catalogue(MODELS[name]), **over)  # type: ignore[arg-type]  # Shape's fields by name


def decode_s(table: StepTable, decodes: int, context: int = 1024) -> float:
    return table.seconds4(0, 0.0, decodes, decodes * context)


def prefill_s(table: StepTable, tokens: int) -> float:
    return table.seconds4(tokens, tokens**2 / 2, 0, 0)


def test_rooflines_are_within_5_percent_of_the_measured_tables_at_the_median_and_15_at_p90() -> None:
    off = []
    for key in MEASURED:
        measured = load_table(*key)
        table = roofline_table(dense(measured.model), GPUS[measured.gpu], measured.tensor)
        off += [abs(table.seconds4(*step) / measured.seconds4(*step) - 1.0) for step in STEPS]
    assert np.median(off) < 0.05
    assert np.quantile(off, 0.9) < 0.15


@pytest.mark.parametrize("key", MEASURED, ids=str)
def test_kv_capacity_is_that_of_the_measured_table(key: tuple[str, str, int]) -> None:
    measured = load_table(*key)
    table = roofline_table(dense(measured.model), GPUS[measured.gpu], measured.tensor)
    assert (table.kv_tokens, table.kv_bytes_per_token) == (measured.kv_tokens, measured.kv_bytes_per_token)


@pytest.mark.parametrize(
    ("seconds", "published_s", "tolerance"),
    [
        pytest.param(lambda t: prefill_s(t, 4096) / 2, 1.150, 0.1, id="a stage's 4k prompt"),
        pytest.param(lambda t: decode_s(t, 8, 2048), 0.085, 0.25, id="8 decodes, without what the host adds"),
        pytest.param(lambda t: decode_s(t, 128, 2048), 0.150, 0.25, id="128 decodes"),
    ],
)
def test_falcon_180b_on_two_nodes_of_four_a100_is_near_sarathi_serves_figures(
    seconds: object, published_s: float, tolerance: float
) -> None:
    table = roofline_table(FALCON_180B, GPUS["a100-pcie-80gb"], tensor=4, pipeline=2, stage_bytes_s=12.5e9)
    assert callable(seconds)
    assert seconds(table) == pytest.approx(published_s, rel=tolerance)


@given(
    shape=st.sampled_from([dense("llama-3.1-8b"), dense("opt-66b"), QWEN3_30B, FALCON_180B]),
    gpu=st.sampled_from(["a100-sxm-80gb", "b200-sxm", "a40"]),
    prefill=st.integers(0, 20_000),
    prefix=st.integers(0, 8_000),
    decodes=st.integers(0, 300),
    mean_context=st.integers(1, 2_000),
    more=st.sampled_from(["prefill", "prefix", "decodes", "context"]),
)
def test_a_step_with_more_to_do_never_takes_less(
    shape: Shape, gpu: str, prefill: int, prefix: int, decodes: int, mean_context: int, more: str
) -> None:
    table = roofline_table(shape, GPUS[gpu], 4 if shape is QWEN3_30B else 8, pipeline=2)

    def at(n: int, before: int, b: int, context: int) -> float:
        return table.seconds4(n, n * (before + n / 2), b, b * context)

    grown = {
        "prefill": (prefill + 1, prefix, decodes, mean_context),
        "prefix": (prefill, prefix + 100, decodes, mean_context),
        "decodes": (prefill, prefix, decodes + 1, mean_context),
        "context": (prefill, prefix, decodes, mean_context + 1),
    }
    assert at(*grown[more]) >= at(prefill, prefix, decodes, mean_context) * (1.0 - 1e-12)


def test_a_mixture_reads_the_experts_that_its_tokens_take() -> None:
    experts, tokens = Experts(128, 8, 768), np.array([0.0, 1.0, 16.0, 1000.0])
    assert touched(experts, tokens) == pytest.approx([0.0, 8.0, 128 * (1 - (15 / 16) ** 16), 128.0])
    mixture, plain = (roofline_table(shape, GPUS["h200-sxm"]) for shape in (QWEN3_30B, dense("qwen3-32b")))
    assert decode_s(mixture, 1) < decode_s(plain, 1) / 3  # 3.3 of 30.5 billion weights are read
    assert decode_s(mixture, 64) > 2 * decode_s(mixture, 1)  # nearly all are
    assert prefill_s(mixture, 4096) < prefill_s(plain, 4096) / 3


def test_fewer_bits_save_the_traffic_of_weights_and_only_fp8_hardware_saves_arithmetic() -> None:
    def both(name: str, **precision: object) -> tuple[float, float]:
        shape = dense("llama-3.1-8b", precision=Precision(**precision))  # type: ignore[arg-type]
        table = roofline_table(shape, GPUS[name])
        return decode_s(table, 1), prefill_s(table, 4096)

    for name, arithmetic_gains in (("a100-sxm-80gb", False), ("h100-sxm", True)):
        (plain_decode, plain_prefill), (decode, prefill) = both(name), both(name, weight_bytes=1.0, compute="fp8")
        assert decode < 0.75 * plain_decode
        assert (prefill < 0.75 * plain_prefill) is arithmetic_gains, name
    four_bits = both("h100-sxm", weight_bytes=0.52)
    assert four_bits[0] < 0.6 * both("h100-sxm")[0]
    assert four_bits[1] == pytest.approx(both("h100-sxm")[1], rel=0.1)


def test_a_pair_of_l40s_reduces_fast_and_four_over_the_host_slowly() -> None:
    l40s = GPUS["l40s"]
    assert l40s.ring_bytes_s(2, 0.7) == pytest.approx(0.7 * 31.5e9)
    assert l40s.ring_bytes_s(8, 0.7) == pytest.approx(l40s.ring_bytes_s(4, 0.7) / 2)
    assert GPUS["h100-sxm"].ring_bytes_s(8, 0.7) == pytest.approx(0.7 * 450e9)
    slow, fast = (roofline_table(dense("llama-2-70b"), GPUS[name], 4) for name in ("l40s", "a100-sxm-80gb"))
    assert prefill_s(slow, 2048) > 5 * prefill_s(fast, 2048)


def test_stages_add_memory_and_the_time_to_send_activations() -> None:
    one, two = (roofline_table(FALCON_180B, GPUS["h200-sxm"], 8, stages) for stages in (1, 2))
    assert two.kv_tokens > 2 * one.kv_tokens
    far = roofline_table(FALCON_180B, GPUS["h200-sxm"], 8, 2, stage_bytes_s=1e9)
    assert prefill_s(far, 4096) - prefill_s(one, 4096) == pytest.approx(4096 * 14848 * 2 / 1e9)


def test_a_table_says_what_it_rests_on_and_how_far_that_is_off() -> None:
    known = roofline_table(dense("llama-3.1-8b"), GPUS["h100-sxm"])
    assert known.name == "roofline.h100-sxm"
    assert known.source.startswith(
        "roofline: NVIDIA H100 data sheet (SXM); shares of it as the grid's h100-sxm achieve"
    )
    assert known.error["prefill"]["p90"] == FITTED["h100-sxm"].error["prefill"]["p90"]
    unknown = roofline_table(QWEN3_30B, GPUS["a40"], 2)
    assert "as all GPUs of the grid together achieve" in unknown.source
    assert unknown.source.endswith("its mixture of experts has no measured step to compare with")
    assert unknown.error == TYPICAL.error
    small = roofline_table(dense("llama-3.1-8b", precision=Precision(1.0, "fp8")), GPUS["h100-sxm"])
    assert small.source.endswith("its precision has no measured step to compare with")
    assert achieved(GPUS["a100-pcie-80gb"]) is FITTED["a100-sxm-80gb"]


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        pytest.param("opt-175b", 2, "325 GiB of weights leave no KV on 2 x a100-sxm-80gb", id="too large"),
        pytest.param("yi-34b", 16, "56 heads cannot be split over 16 GPUs", id="heads that do not divide"),
    ],
)
def test_what_cannot_be_on_the_gpus_is_refused(name: str, tensor: int, message: str) -> None:
    with pytest.raises(DoesNotFit, match=message):
        roofline_table(dense(name), GPUS["a100-sxm-80gb"], tensor)


def test_a_table_takes_at_most_10_ms() -> None:
    began = time.process_time()
    for _ in range(20):
        roofline_table(QWEN3_30B, GPUS["h100-sxm"], 2)
    assert (time.process_time() - began) / 20 < 0.010
