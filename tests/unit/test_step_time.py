"""The form of a step's time: knots, tiles, host term, mixed steps; and what the online model does with bad input."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paceline_engine.step_time import HostTerm, Regime, StepShape, StepTable, StepTimeModel

PREFILL = StepShape(100, 5_000.0, 0, 0)
DECODE = StepShape(0, 0.0, 10, 1_000)


def make_table(**over: object) -> StepTable:
    """lin 10 ms + 0.1 ms a token (0.2 from 1,001), dec 5 ms + 0.1 ms a decode up to 11, 1 µs a token of context."""
    table = StepTable(
        name="t",
        source="made up",
        gpu="g",
        model="m",
        tensor=1,
        linear=((1, 0.0101), (1001, 0.1101), (2001, 0.3101)),
        pair_s=1e-8,
        mixed_s=0.001,
        decode=((1, 0.0051, 1e-6), (11, 0.0061, 1e-6), (21, 0.0081, 2e-6)),
        kv_tokens=10_000,
        kv_bytes_per_token=1,
    )
    return replace(table, **over)  # type: ignore[arg-type]  # the tests name real fields


@pytest.mark.parametrize(
    ("step", "expected_s"),
    [
        pytest.param((0, 0.0, 0, 0), 0.0, id="an empty step takes no time"),
        pytest.param((1, 0.0, 0, 0), 0.0101, id="the first knot"),
        pytest.param((501, 0.0, 0, 0), 0.0601, id="between knots"),
        pytest.param((1001, 0.0, 0, 0), 0.1101, id="on a knot"),
        pytest.param((3001, 0.0, 0, 0), 0.5101, id="beyond the last knot the last slope goes on"),
        pytest.param((1, 1e6, 0, 0), 0.0201, id="attention counts pairs"),
        pytest.param((0, 0.0, 6, 0), 0.0056, id="decodes between knots"),
        pytest.param((0, 0.0, 6, 2_000), 0.0076, id="decodes read their context"),
        pytest.param((0, 0.0, 16, 1_000), 0.0071 + 0.0015, id="the cost of context is between its knots too"),
        pytest.param((0, 0.0, 31, 1_000), 0.0101 + 0.003, id="beyond the last batch both go on"),
        pytest.param(
            (95, 0.0, 6, 2_000), 0.0201 + 0.002 + 0.001, id="a mixed step pays for all tokens, context and mixing"
        ),
    ],
)
def test_seconds_of_a_step(step: tuple[int, float, int, int], expected_s: float) -> None:
    table = make_table()
    assert table.seconds4(*step) == pytest.approx(expected_s)
    assert table.seconds(StepShape(*step)) == table.seconds4(*step)


def test_a_mixed_step_is_never_faster_than_its_decodes_alone() -> None:
    table = make_table(linear=((1, 1e-4), (1001, 1e-3)), mixed_s=0.0)
    assert table.seconds4(1, 0.5, 10, 100_000) == table.seconds4(0, 0.0, 10, 100_000)


def test_tiles_round_all_tokens_of_a_step_with_prefills_up() -> None:
    smooth, tiled = make_table(), make_table(tile_tokens=128)
    assert tiled.seconds4(1, 0.0, 0, 0) == smooth.seconds4(128, 0.0, 0, 0)
    assert tiled.seconds4(120, 0.0, 8, 0) == smooth.seconds4(120, 0.0, 8, 0)
    assert tiled.seconds4(121, 0.0, 8, 0) == smooth.seconds4(248, 0.0, 8, 0)
    assert tiled.seconds4(0, 0.0, 8, 500) == smooth.seconds4(0, 0.0, 8, 500)


def test_the_host_adds_its_constant_once_and_its_tokens_by_kind() -> None:
    bare, hosted = make_table(), make_table(host=HostTerm(0.002, 1e-5, 1e-7))
    assert hosted.seconds4(100, 0.0, 0, 0) - bare.seconds4(100, 0.0, 0, 0) == pytest.approx(0.002 + 100e-5)
    assert hosted.seconds4(0, 0.0, 6, 4_000) - bare.seconds4(0, 0.0, 6, 4_000) == pytest.approx(0.002 + 4e-4)
    assert hosted.seconds4(100, 0.0, 6, 4_000) - bare.seconds4(100, 0.0, 6, 4_000) == pytest.approx(0.003 + 4e-4)


def test_the_host_adds_its_time_for_each_running_sequence_to_every_kind_of_step() -> None:
    bare, hosted = make_table(), make_table(host=HostTerm(sequence_s=4e-4))
    assert hosted.seconds4(0, 0.0, 6, 4_000) - bare.seconds4(0, 0.0, 6, 4_000) == pytest.approx(6 * 4e-4)
    assert hosted.seconds4(100, 0.0, 6, 4_000) - bare.seconds4(100, 0.0, 6, 4_000) == pytest.approx(6 * 4e-4)
    assert hosted.seconds4(100, 0.0, 0, 0) == bare.seconds4(100, 0.0, 0, 0)


def test_the_hosts_part_of_a_step_is_what_it_adds_to_it() -> None:
    bare, hosted = make_table(), make_table(host=HostTerm(0.002, 1e-5, 1e-7, 4e-4))
    for prefill, decodes, context in ((100, 0, 0), (0, 6, 4_000), (100, 6, 4_000)):
        added = hosted.seconds4(prefill, 0.0, decodes, context) - bare.seconds4(prefill, 0.0, decodes, context)
        assert hosted.host.seconds(prefill, decodes, context) == pytest.approx(added)


def test_before_it_has_measured_anything_the_model_is_the_table_with_a_wide_margin() -> None:
    table = make_table()
    model = StepTimeModel(table)
    for shape, regime in ((PREFILL, Regime.MIXED), (DECODE, Regime.DECODE)):
        assert model.predict(shape) == table.seconds(shape)
        assert model.margin_ratio(regime) == 0.5
        assert (model.trusted(regime), model.scale(regime), model.offset_s(regime)) == (False, 1.0, 0.0)


def test_the_regimes_are_fitted_apart() -> None:
    table = make_table()
    model = StepTimeModel(table)
    for _ in range(64):
        model.observe(DECODE, 1.2 * table.seconds(DECODE))
    assert model.trusted(Regime.DECODE)
    assert not model.trusted(Regime.MIXED)
    assert model.predict(DECODE) == pytest.approx(1.2 * table.seconds(DECODE), rel=0.02)
    assert model.predict(PREFILL) == table.seconds(PREFILL)


@pytest.mark.parametrize(
    ("shape", "measured_s"),
    [
        pytest.param(DECODE, 0.0, id="no time"),
        pytest.param(DECODE, -1.0, id="time running back"),
        pytest.param(DECODE, float("nan"), id="not a number"),
        pytest.param(DECODE, float("inf"), id="infinite"),
        pytest.param(DECODE, 61.0, id="longer than any step"),
        pytest.param(DECODE, 1.0, id="a hundred times the table"),
        pytest.param(StepShape(0, 0.0, 0, 0), 0.01, id="a step of nothing"),
    ],
)
def test_what_cannot_be_a_step_time_is_counted_and_ignored(shape: StepShape, measured_s: float) -> None:
    model = StepTimeModel(make_table())
    for _ in range(40):
        model.observe(shape, measured_s)
    assert model.ignored == 40
    assert model.predict(DECODE) == make_table().seconds(DECODE)


def test_memory_is_bounded_however_many_shapes_come() -> None:
    model = StepTimeModel(make_table())
    for i in range(3_000):
        shape = StepShape(1 << (i % 14), 0.0, 1 << (i % 9), 100)
        model.observe(shape, model.table.seconds(shape))
    strata = model._mixed.strata
    assert len(strata) <= 32
    assert all(len(ring) <= 8 for ring in strata.values())
