"""A step-time model that starts from a guess: it finds a machine far from it, and noise does not make it say never."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from paceline_engine.step_time import Regime, StepShape
from paceline_engine.vllm.guess import CPU_CORE, GPU, GuessedModel, Shape, fit, guess_table

SMALL = Shape(layers=4, hidden=256, heads=8, kv_heads=4, head_dim=32, intermediate=704)
NONE = (1e-12, 1e-12, 1e-12)
FIRST = ((16, 0), (64, 0), (256, 0), (1000, 0), (2048, 0), (1952, 2048))  # (tokens, context): a start-up's prompts


def make_model(shape: Shape = SMALL) -> GuessedModel:
    return GuessedModel(guess_table(shape, CPU_CORE, "m", 1, 65_536))


def chunk(tokens: int, context: int, decodes: int = 0) -> StepShape:
    return StepShape(tokens, tokens * (context + tokens / 2), decodes, decodes * 500)


def machine(constant_s: float, token_s: float, pair_s: float) -> Callable[[StepShape], float]:
    return lambda x: constant_s + token_s * (x.prefill_tokens + x.decodes) + pair_s * x.prefill_pairs


def teach(model: GuessedModel, seconds: Callable[[StepShape], float], steps: int = 40) -> None:
    """A start-up, then steps as a controller makes them: all near one duration."""
    for tokens, context in FIRST:
        model.observe(chunk(tokens, context), seconds(chunk(tokens, context)))
    for k in range(steps):
        model.observe(chunk(64, 64 * k, 1), seconds(chunk(64, 64 * k, 1)))
        model.observe(StepShape(0, 0.0, 1, 500), seconds(StepShape(0, 0.0, 1, 500)))


@pytest.mark.parametrize(
    "truth",
    [
        pytest.param(machine(0.004, 0.0002, 1e-9), id="attention far cheaper than guessed"),
        pytest.param(machine(0.004, 0.00005, 2e-7), id="attention far dearer"),
        pytest.param(machine(0.0005, 0.00001, 1e-8), id="a machine ten times as fast"),
        pytest.param(machine(0.05, 0.003, 1e-7), id="a machine twenty times as slow"),
    ],
)
def test_a_machine_far_from_the_guess_is_found(truth: Callable[[StepShape], float]) -> None:
    model = make_model()
    teach(model, truth)
    for tokens, context in ((16, 100), (64, 2000), (200, 500), (1000, 3000)):
        assert model.expect(chunk(tokens, context, 1)) == pytest.approx(truth(chunk(tokens, context, 1)), rel=0.25)
    assert model.trusted(Regime.MIXED)
    assert model.trusted(Regime.DECODE)


@pytest.mark.parametrize("seed", range(5))
def test_disturbed_steps_are_expected_later_but_at_most_twice_as_late(seed: int) -> None:
    rng, calm = Random(seed), machine(0.004, 0.0002, 1e-8)
    model = make_model()
    teach(model, lambda x: calm(x) + (0.02 if rng.random() < 0.1 else 0.0), steps=100)
    small = chunk(16, 200, 1)
    assert 0 <= model.late_s < 0.025
    assert model.predict(small) <= 2 * model.expect(small) + 1e-9
    assert model.expect(small) < 3 * calm(small)


def test_what_disturbs_every_eighth_step_is_expected_of_each() -> None:
    model = make_model()
    teach(model, machine(0.004, 0.0002, 1e-8))
    for k in range(128):
        model.observe(chunk(64, 1000, 1), 0.0176 + (0.02 if k % 8 == 0 else 0.0))
    assert 0.01 < model.late_s < 0.025
    expected = model.expect(chunk(64, 1000, 1))
    assert model.predict(chunk(64, 1000, 1)) == pytest.approx(expected + min(model.late_s, expected))


def test_a_few_slow_first_steps_do_not_last() -> None:
    truth = machine(0.004, 0.0002, 1e-8)
    model = make_model()
    for _ in range(4):
        model.observe(chunk(8, 0), 0.5)  # kernels being prepared
    teach(model, truth)
    assert model.expect(chunk(64, 1000, 1)) == pytest.approx(truth(chunk(64, 1000, 1)), rel=0.2)


def test_what_is_no_step_time_is_counted_and_ignored() -> None:
    model = make_model()
    before = model.expect(chunk(64, 0))
    for seconds in (0.0, -1.0, 61.0, float("nan"), float("inf")):
        model.observe(chunk(64, 0), seconds)
    model.observe(StepShape(0, 0.0, 0, 0), 0.01)
    assert model.ignored == 6
    assert model.expect(chunk(64, 0)) == before


def test_predictions_grow_with_the_chunk() -> None:
    model = make_model()
    teach(model, machine(0.004, 0.0002, 1e-8))
    seconds = [model.predict(chunk(tokens, 1000, 2)) for tokens in range(16, 2048, 16)]
    assert seconds == sorted(seconds)


def test_a_coefficient_without_evidence_stays() -> None:
    k, a, b = fit([(100.0, 0.0, 0.010, 1.0)] * 8 + [(200.0, 0.0, 0.018, 1.0)] * 8, (0.004, 0.00005, 1e-8), NONE)
    assert (k, a) == pytest.approx((0.002, 0.00008), rel=0.1)
    assert b == pytest.approx(1e-8, rel=1e-6)


def test_coefficients_are_never_negative() -> None:
    falling = [(100.0, 1e4, 0.010, 1.0), (200.0, 3e4, 0.008, 1.0), (400.0, 9e4, 0.006, 1.0)]
    assert min(fit(falling * 4, (0.001, 0.0001, 1e-8), NONE)) >= 0


def test_a_coefficient_that_was_zero_is_found_again() -> None:
    model = make_model()
    for _ in range(4):
        model.observe(chunk(64, 0), 0.05)
        model.observe(chunk(640, 0), 0.02)  # as if more tokens took less time
    truth = machine(0.004, 0.0002, 0.0)
    for k in range(512):
        shape = chunk(64 << k % 5, 0)
        model.observe(shape, truth(shape))
    for tokens in (128, 1000):
        assert model.expect(chunk(tokens, 0)) == pytest.approx(truth(chunk(tokens, 0)), rel=0.25)


def test_many_shapes_of_decodes_leave_room_for_those_of_prefills() -> None:
    model = make_model()
    for decodes in range(8):
        for context in range(8):
            shape = StepShape(0, 0.0, 1 << decodes, 1 << decodes + context)
            model.observe(shape, 0.004)
    for k in range(8):
        model.observe(chunk(64, 64 * k), 0.1)
    assert model.expect(chunk(64, 0)) == pytest.approx(0.1, rel=0.3)


def test_a_guess_follows_the_models_shape_and_the_devices() -> None:
    large = Shape(layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=14336)
    assert large.layer_parameters == pytest.approx(6.98e9, rel=0.01)  # llama-3.1-8b without its embeddings
    one, four = (guess_table(large, GPU, "m", n, 1000) for n in (1, 4))
    assert one.seconds(chunk(4096, 0)) > 3 * four.seconds(chunk(4096, 0))
    assert one.seconds(chunk(64, 0)) > guess_table(SMALL, GPU, "m", 1, 1000).seconds(chunk(64, 0))
