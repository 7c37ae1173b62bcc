"""The fit finds the constants of a machine that follows its form, and what ships is what it finds in the grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paceline_api.catalog import MODELS
from paceline_planner.fit.grid import PHASES, Point
from paceline_planner.roofline.cost import Fractions, seconds
from paceline_planner.roofline.evidence import read_groups, read_operators
from paceline_planner.roofline.fitting import START, Group, errors, find, fit, group, leave_out, quantiles
from paceline_planner.roofline.fractions import FITTED, TYPICAL, achieved
from paceline_planner.roofline.gpu import GPUS
from paceline_planner.roofline.shape import of_catalogue

TRUTH = Fractions(0.6, 0.7, 2.5, 0.5, 0.9, 0.8, 1e-5, 5e-4, 8e-6)
POINTS = [
    *(Point("prefill", n, prefix, 0, 0, 1.0) for n in (128, 512, 2048, 8192) for prefix in (0, 4096)),
    *(Point("decode", 0, 0, b, context, 1.0) for b in (1, 8, 64, 256) for context in (256, 2048)),
    *(Point("mixed", n, 0, b, 2048, 1.0) for n in (128, 1024) for b in (8, 64)),
]


def obedient(truth: Fractions = TRUTH, gpu: str = "h100-sxm") -> list[Group]:
    """Steps of a machine that achieves exactly `truth`."""
    groups = []
    for name, tensor in (("llama-3.1-8b", 1), ("llama-3.1-8b", 2), ("llama-2-13b", 1), ("llama-3.1-70b", 4)):
        g = group(GPUS[gpu], of_catalogue(MODELS[name]), tensor, POINTS)
        groups.append(replace(g, measured=seconds(g.work, g.gpu, truth)))
    return groups


def test_the_fit_recovers_a_machine_that_follows_its_form() -> None:
    groups = obedient()
    assert errors(groups, START)["all"].median > 0.05
    found = errors(groups, fit(groups))
    assert found["all"].p90 < 0.005
    assert set(found) == {*PHASES, "all"}


def test_one_wild_measurement_in_ten_does_not_move_the_median() -> None:
    groups = obedient()
    for g in groups:
        g.measured[::10] *= 3.0
    assert errors(groups, fit(groups))["all"].median < 0.02


def test_what_is_left_out_is_predicted_without_it() -> None:
    slow = replace(TRUTH, arithmetic=0.3, traffic=0.35)
    groups = [*obedient(), *obedient(slow, "a100-sxm-80gb")]
    ratios = leave_out(groups, lambda g: g.gpu.name)
    assert set(ratios) == {"h100-sxm", "a100-sxm-80gb"}
    assert np.median(ratios["a100-sxm-80gb"]) < np.log(0.7)  # predicted from the faster one
    assert np.median(ratios["h100-sxm"]) > np.log(1.4)


def test_points_beyond_the_models_context_are_left_out() -> None:
    g = group(GPUS["h100-sxm"], of_catalogue(MODELS["opt-13b"]), 1, [*POINTS, Point("decode", 0, 0, 1, 4096, 1.0)])
    assert len(g.measured) == len(g.phases) == len(POINTS)


def test_the_constants_and_errors_that_ship_are_those_of_the_grid(traces: Path) -> None:
    """Errors left out within half a point of those stated; the constants as near to the grid as a new fit's."""
    groups = read_groups(traces / "calibration")
    together, each = find(groups)
    for found, shipped, of in (
        (together, TYPICAL, groups),
        *((f, FITTED[name], [g for g in groups if g.gpu.name == name]) for name, f in each.items()),
    ):
        for phase in PHASES:
            assert found.left_out[phase].median == pytest.approx(shipped.error[phase]["median"], abs=0.005), phase
            assert found.left_out[phase].p90 == pytest.approx(shipped.error[phase]["p90"], abs=0.01), phase
        refitted, kept = errors(of, found.fractions)["all"], errors(of, shipped.fractions)["all"]
        assert kept.median == pytest.approx(refitted.median, abs=0.003)
    assert set(each) == set(FITTED)


def test_a_gpu_that_the_grid_lacks_is_within_6_percent_of_what_vidur_measured_at_the_median(traces: Path) -> None:
    a40 = [o for o in read_operators(traces / "calibration") if o.gpu.name == "a40"]
    ratios = np.concatenate([o.log_ratios(achieved(o.gpu).fractions) for o in a40])
    found = quantiles(ratios, ["prefill"] * len(ratios))["all"]
    assert len(ratios) > 500
    assert achieved(GPUS["a40"]) is TYPICAL
    assert found.median < 0.06
    assert found.p90 < 0.15
