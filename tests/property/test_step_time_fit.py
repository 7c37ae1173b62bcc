"""The online fit: what it converges to, what it never does, on seeded streams of steps like a serving engine's."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline_engine.step_time import Regime, StepShape, StepTable, StepTimeModel
from paceline_engine.tables import load_table

A100 = load_table("a100-sxm-80gb", "llama-3.1-8b", 1)


def steps(rng: Random, count: int) -> Iterator[StepShape]:
    """Decode-only and mixed steps of changing batch, context and chunk."""
    for _ in range(count):
        decodes = rng.randint(1, 128)
        chunk = rng.choice([0, 0, 0, 64, 256, 512, 2048])
        context = chunk * (rng.randint(0, 2048) + chunk / 2)
        yield StepShape(chunk, context, decodes, decodes * rng.randint(100, 3000))


def worst_regime_error(model: StepTimeModel, truth: StepTable, scale: float, offset_s: float, rng: Random) -> float:
    """The larger over the regimes of the median relative error of fresh steps."""
    errors: dict[bool, list[float]] = {False: [], True: []}
    for shape in steps(rng, 400):
        true_s = scale * truth.seconds(shape) + offset_s
        errors[shape.prefill_tokens > 0].append(abs(model.predict(shape) / true_s - 1.0))
    return max(sorted(found)[len(found) // 2] for found in errors.values())


@settings(max_examples=15, deadline=None)
@given(
    scale=st.sampled_from([0.75, 1.0, 1.25]),
    offset_ms=st.sampled_from([0.0, 1.5]),
    noise=st.floats(0.0, 0.08),
    seed=st.integers(0, 2**16),
)
def test_it_learns_a_machine_off_by_a_quarter_through_noise_and_rare_stalls(
    scale: float, offset_ms: float, noise: float, seed: int
) -> None:
    rng = Random(seed)
    model = StepTimeModel(A100)
    for shape in steps(rng, 2_000):
        true_s = scale * A100.seconds(shape) + offset_ms * 1e-3
        stall = rng.uniform(3, 20) if rng.random() < 0.01 else 1.0
        model.observe(shape, true_s * max(rng.gauss(1.0, noise), 0.2) * stall)
    assert worst_regime_error(model, A100, scale, offset_ms * 1e-3, rng) < 0.02 + noise / 4
    for regime in Regime:
        assert model.trusted(regime)
        assert 0.02 <= model.margin_ratio(regime) < 0.06 + 2.5 * noise


@settings(max_examples=25, deadline=None)
@given(
    shape=st.sampled_from(
        [StepShape(0, 0.0, 32, 32_000), StepShape(512, 131_072.0, 16, 8_000), StepShape(0, 0.0, 1, 1)]
    ),
    scale=st.floats(0.6, 2.5),
    noise=st.floats(0.0, 0.1),
    seed=st.integers(0, 2**16),
)
def test_a_stream_of_one_shape_never_diverges(shape: StepShape, scale: float, noise: float, seed: int) -> None:
    rng = Random(seed)
    model = StepTimeModel(A100)
    true_s = scale * A100.seconds(shape)
    for i in range(1_500):
        model.observe(shape, true_s * max(rng.gauss(1.0, noise), 0.2))
        if i > 200:
            assert model.predict(shape) == pytest.approx(true_s, rel=0.02 + 1.5 * noise)
    regime = Regime.MIXED if shape.prefill_tokens else Regime.DECODE
    assert 0.5 <= model.scale(regime) <= 3.0
    assert abs(model.offset_s(regime)) <= 0.05
    # Another shape is still predicted within the bounds of the correction.
    for other in steps(rng, 50):
        assert 0.5 * A100.seconds(other) <= model.predict(other) <= 3.0 * A100.seconds(other) + 0.05


@pytest.mark.parametrize(
    ("prior", "machine", "off", "left"),
    [
        pytest.param("h100-sxm", "a100-sxm-80gb", 0.5, 0.1, id="a GPU of the generation before"),
        pytest.param("h200-sxm", "h100-sxm", 0.15, 0.04, id="the same chip with slower memory"),
        pytest.param("h100-sxm", "h200-sxm", 0.15, 0.04, id="the same chip with faster memory"),
        pytest.param("a100-sxm-80gb", "l40s", 0.4, 0.1, id="one with other proportions of memory to compute"),
    ],
)
def test_a_prior_of_another_gpu_within_the_bounds_recovers(prior: str, machine: str, off: float, left: float) -> None:
    rng, truth = Random(1), load_table(machine, "qwen3-32b", 2)
    model = StepTimeModel(load_table(prior, "qwen3-32b", 2))
    assert worst_regime_error(model, truth, 1.0, 0.0, Random(2)) > off
    for shape in steps(rng, 2_000):
        model.observe(shape, truth.seconds(shape) * rng.gauss(1.0, 0.03))
    after = worst_regime_error(model, truth, 1.0, 0.0, Random(2))
    assert [model.trusted(regime) for regime in Regime] == [True, True]
    assert after < left


@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_a_machine_beyond_the_bounds_is_not_trusted_and_the_table_stands(scale: float) -> None:
    rng = Random(1)
    model = StepTimeModel(A100)
    for shape in steps(rng, 2_000):
        model.observe(shape, scale * A100.seconds(shape) * rng.gauss(1.0, 0.03))
    for shape in steps(rng, 20):
        assert model.predict(shape) == A100.seconds(shape)
    assert all(model.margin_ratio(regime) >= 0.5 for regime in Regime)
    assert not any(model.trusted(regime) for regime in Regime)


def test_it_follows_a_machine_that_changes() -> None:
    rng = Random(3)
    model = StepTimeModel(A100)
    for scale in (1.0, 1.6):
        for shape in steps(rng, 4_000):
            model.observe(shape, scale * A100.seconds(shape) * rng.gauss(1.0, 0.03))
        assert worst_regime_error(model, A100, scale, 0.0, rng) < 0.03


def test_the_same_stream_gives_the_same_fit() -> None:
    def fitted() -> tuple[float, float]:
        rng = Random(5)
        model = StepTimeModel(A100)
        for shape in steps(rng, 500):
            model.observe(shape, A100.seconds(shape) * rng.gauss(1.3, 0.05))
        return model.scale(Regime.MIXED), model.offset_s(Regime.MIXED)

    assert fitted() == fitted()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5_000), st.integers(0, 400), st.integers(0, 4_000), st.floats(allow_nan=True, width=32)
        ),
        min_size=20,
        max_size=150,
    )
)
def test_no_measurement_makes_a_prediction_that_is_not_a_positive_number(
    stream: list[tuple[int, int, int, float]],
) -> None:
    model = StepTimeModel(A100)
    for chunk, decodes, context, measured_s in stream:
        shape = StepShape(chunk, chunk**2 / 2, decodes, decodes * context)
        model.observe(shape, measured_s)
        if chunk or decodes:
            assert isfinite(model.predict(shape))
            assert model.predict(shape) > 0
            assert all(isfinite(model.margin_ratio(regime)) for regime in Regime)
