"""The tables that ship: complete, physical, close to their source, and what their script writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.catalog import ACCELERATORS, MODELS
from paceline_engine.tables import TableMissing, available, load_table
from paceline_planner.fit import tables as script
from paceline_planner.fit.grid import DECODE_KNOTS, TOKEN_KNOTS, Point, errors, fit
from paceline_planner.fit.nnls import nnls

GRID = [key for key in available() if "." not in key[0]]
DISTSERVE = [key for key in available() if "." in key[0]]


def test_every_accelerator_with_a_table_has_one_for_every_model_that_fits() -> None:
    for accelerator in ACCELERATORS.values():
        if accelerator.table:
            assert {model for table, model, _ in GRID if table == accelerator.table} == {
                name
                for name in MODELS
                if accelerator.name != "l40s" or name != "opt-175b"  # 8 × 44 GiB do not hold its 325 GiB
            }
    assert len(GRID) == 5 * 23 - 2  # the grid without OPT-66B on two L40S and OPT-175B on eight


@pytest.mark.parametrize("key", GRID, ids=str)
def test_a_grid_table_names_its_source_and_its_error(key: tuple[str, str, int]) -> None:
    table = load_table(*key)
    assert "aiconfigurator" in table.source
    assert ("Llama-shaped" in table.source) == table.model.startswith("opt")
    assert table.kv_bytes_per_token == MODELS[table.model].kv_bytes_per_token
    assert table.kv_tokens > 0
    assert table.kv_tokens % 16 == 0
    for phase in ("prefill", "decode", "mixed"):
        assert table.error[phase]["median"] < 0.05, phase
        assert table.error[phase]["p90"] < 0.17, phase


def test_over_all_grid_tables_the_median_error_is_below_3_and_the_p90_below_10_percent() -> None:
    for phase in ("prefill", "decode", "mixed"):
        errors = [load_table(*key).error[phase] for key in GRID]
        medians = sorted(e["median"] for e in errors)
        assert medians[len(medians) // 2] < 0.03, phase
        assert sorted(e["p90"] for e in errors)[len(errors) * 9 // 10] < 0.10, phase


@given(
    key=st.sampled_from(GRID),
    prefill=st.integers(0, 20_000),
    prefix=st.integers(0, 8_000),
    decodes=st.integers(0, 300),
    mean_context=st.integers(1, 2_000),
    more=st.sampled_from(["prefill", "pairs", "decodes", "context"]),
    amount=st.integers(1, 500),
)
def test_a_step_never_gets_faster_by_having_more_to_do(
    key: tuple[str, str, int], prefill: int, prefix: int, decodes: int, mean_context: int, more: str, amount: int
) -> None:
    table = load_table(*key)
    pairs, context = prefill * (prefix + prefill / 2), decodes * mean_context
    before = table.seconds4(prefill, pairs, decodes, context)
    match more:
        case "prefill" if prefill:
            prefill += amount
        case "pairs" if prefill:
            pairs += amount
        case "decodes" if decodes:
            decodes += amount
        case "context" if decodes:
            context += amount
    assert table.seconds4(prefill, pairs, decodes, context) >= before * (1 - 1e-9)


@given(
    key=st.sampled_from(GRID), prefill=st.integers(1, 20_000), decodes=st.integers(1, 300), mean=st.integers(1, 2_000)
)
def test_joining_prefills_to_decodes_never_makes_the_decodes_faster(
    key: tuple[str, str, int], prefill: int, decodes: int, mean: int
) -> None:
    table = load_table(*key)
    alone = table.seconds4(0, 0.0, decodes, decodes * mean)
    assert table.seconds4(prefill, prefill**2 / 2, decodes, decodes * mean) >= alone > 0


# DistServe's published coefficients, ms (PAPERS §2.5): model, tensor, prefill a b c, decode a b c below 95 and from 95.
PUBLISHED = [
    ("distserve", "opt-13b", 1, (18.10, 0.1019, 7.12e-6), (19.93, 6.27e-4, 0.0385), (7.17, 5.80e-4, 0.158), 66_144),
    ("distserve", "opt-66b", 4, (29.44, 0.1514, 8.3e-6), (30.76, 4.52e-4, 0.0633), (27.47, 4.05e-4, 0.125), 78_496),
    (
        "distserve-vllm",
        "opt-13b",
        1,
        (22.05, 0.1405, 8.08e-6),
        (23.48, 5.93e-4, 0.0607),
        (20.21, 4.91e-4, 0.120),
        66_144,
    ),
    (
        "distserve-vllm",
        "opt-66b",
        4,
        (42.97, 0.2129, 4.6e-5),
        (39.58, 6.95e-4, 0.1358),
        (40.86, 4.27e-4, 0.195),
        78_496,
    ),
]


@pytest.mark.parametrize(("engine", "model", "tensor", "prefill", "small", "large", "kv_tokens"), PUBLISHED)
def test_distserves_fit_is_the_published_one(
    engine: str,
    model: str,
    tensor: int,
    prefill: tuple[float, float, float],
    small: tuple[float, float, float],
    large: tuple[float, float, float],
    kv_tokens: int,
) -> None:
    table = load_table(f"a100-sxm-80gb.{engine}", model, tensor)
    assert table.kv_tokens == kv_tokens
    a, b, c = prefill
    for prompts in ([512], [64, 900], [1]):
        tokens, squares = sum(prompts), sum(n * n for n in prompts)
        expected_ms = a + b * tokens + c * squares + 2 + 1e-4 * tokens
        assert table.seconds4(tokens, squares / 2, 0, 0) * 1e3 == pytest.approx(expected_ms, rel=2e-3)
    for batch, (a, b, c) in ((1, small), (94, small), (95, large), (300, large)):
        context = batch * 700
        expected_ms = a + b * context + c * batch + 2 + 1e-4 * context
        assert table.seconds4(0, 0.0, batch, context) * 1e3 == pytest.approx(expected_ms, rel=2e-3)


def test_no_table_takes_time_off_for_attention() -> None:
    assert all(load_table(*key).pair_s >= 0 and load_table(*key).mixed_s >= 0 for key in available())
    assert load_table("a100-sxm-80gb.distserve-vllm", "opt-66b", 2).pair_s == 0  # published below zero


def test_the_two_sources_of_opt_13b_agree_within_a_quarter_on_a_prefill_and_a_decode() -> None:
    ours, theirs = (load_table(name, "opt-13b", 1) for name in ("a100-sxm-80gb", "a100-sxm-80gb.distserve"))
    for step in ((1024, 1024**2 / 2, 0, 0), (0, 0.0, 32, 32 * 1024)):
        assert ours.seconds4(*step) == pytest.approx(theirs.seconds4(*step), rel=0.25)


def test_a_model_is_found_by_its_uri_too() -> None:
    assert load_table("h100-sxm", "hf://meta-llama/Llama-3.1-8B-Instruct", 1) == load_table(
        "h100-sxm", "llama-3.1-8b", 1
    )


@pytest.mark.parametrize(
    ("table", "model", "tensor", "message"),
    [
        pytest.param(
            "h100-sxm",
            "qwen3-32b",
            3,
            "no step-time table for qwen3-32b on h100-sxm with tensor 3; there are: tensor 2, tensor 4",
            id="a tensor parallelism that was not measured",
        ),
        pytest.param(
            "h100-sxm", "hf://x/Unknown-9B", 1, "Unknown-9B on h100-sxm .*there are: llama-2-13b with", id="a model"
        ),
        pytest.param("l40s", "opt-175b", 8, "opt-175b on l40s", id="weights that do not fit"),
        pytest.param("a40", "opt-13b", 1, "no step-time table 'a40'; there are: a100-sxm-80gb, ", id="an accelerator"),
    ],
)
def test_a_missing_table_says_what_there_is(table: str, model: str, tensor: int, message: str) -> None:
    with pytest.raises(TableMissing, match=message):
        load_table(table, model, tensor)


def test_kv_capacity_is_what_weights_and_activations_leave() -> None:
    model = MODELS["llama-3.1-8b"]
    tokens = script.kv_capacity_tokens(model, 1, 79)
    used = tokens * model.kv_bytes_per_token + model.weight_bytes + 2 * 2**30
    assert 0 <= 0.9 * 79 * 2**30 - used < 16 * model.kv_bytes_per_token
    assert script.kv_capacity_tokens(MODELS["opt-66b"], 2, 44) == 0


def test_the_script_says_what_to_name_when_it_finds_no_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        script.main(["--traces", str(tmp_path), "--check"])
    assert exit_.value.code == 2
    assert "name it with --traces or PACELINE_TRACES" in capsys.readouterr().err


def test_the_files_are_what_the_script_writes(traces: Path) -> None:
    assert script.main(["--traces", str(traces), "--check"]) == 0


def test_a_fit_finds_the_table_that_its_points_come_from() -> None:
    decode = tuple((b, 0.008 + 3e-5 * b, 9e-8) for b in DECODE_KNOTS)
    linear = tuple((n, 0.00803 + 5e-5 * (n - 1)) for n in TOKEN_KNOTS)
    truth = replace(load_table("h100-sxm", "qwen3-8b"), linear=linear, pair_s=3e-9, mixed_s=1e-3, decode=decode)
    steps = [("prefill", n, prefix, 0, 0) for n in TOKEN_KNOTS[1:] for prefix in (0, 4096)]
    steps += [("decode", 0, 0, b, c) for b in DECODE_KNOTS for c in (256, 2048, 8192)]
    steps += [("mixed", n, 0, b, 2048) for n in (128, 1024) for b in (8, 128)]
    points = [replace(p, seconds=truth.seconds(p.shape)) for p in (Point(*step, seconds=0.0) for step in steps)]
    found = fit(points, 8192)
    assert found.pair_s == pytest.approx(truth.pair_s, rel=1e-3)
    assert found.mixed_s == pytest.approx(truth.mixed_s, rel=1e-2)
    refitted = replace(truth, linear=found.linear, pair_s=found.pair_s, mixed_s=found.mixed_s, decode=found.decode)
    assert all(phase["max"] < 1e-3 for phase in errors(refitted, points, 8192).values())


@given(st.integers(0, 2**32 - 1), st.integers(3, 12), st.integers(1, 6))
def test_least_squares_stays_non_negative_and_cannot_be_improved(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rows, columns)), rng.normal(size=rows)
    x = nnls(a, b)
    downhill = a.T @ (b - a @ x)
    assert np.all(x >= 0)
    assert np.all(downhill <= 1e-7)  # more of no term helps
    assert np.all(np.abs(downhill[x > 0]) <= 1e-7)  # nor does less of one that is there
