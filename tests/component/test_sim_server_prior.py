"""Truth and prior are two models: a wrong prior changes what the policy believes, never what the machine does."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from paceline_engine.request import Objective, Request
from paceline_engine.sim.metrics import labels
from paceline_engine.sim.options import check, make_replica, parser
from paceline_engine.sim.samples import samples
from paceline_engine.step_time import Regime
from sim_engine import engines, run

OBJECTIVE = Objective("chat", 1.0, 0.1, 0.3)


@dataclass(frozen=True, slots=True)
class Course:
    """What one replica went through."""

    machine_s: list[float]
    predicted_s: list[float]
    scale: float
    trusted: bool


def serve(*flags: str) -> Course:
    """Serves the same 40 requests, one after the other, on a virtual clock."""
    command = ["--model=llama-3.1-8b", "--table=a100-sxm-80gb", "--max-model-len=4096", "--seed=3", *flags]
    replica = make_replica(check(parser().parse_args(command)), 0)
    now = 0.0
    machine_s, predicted_s = [], []
    for i in range(40):
        replica.submit(Request(f"r{i}", 300 + 20 * i, 20, now, OBJECTIVE))
        while (step_s := replica.begin(now)) is not None:
            now += step_s
            replica.finish(now)
            machine_s.append(step_s)
            predicted_s.append(replica.predicted_s)
    model = replica.model
    return Course(machine_s, predicted_s, model.scale(Regime.DECODE), model.trusted(Regime.DECODE))


def error(course: Course, part: slice) -> float:
    """Mean relative error of the predictions of some steps."""
    pairs = list(zip(course.machine_s, course.predicted_s, strict=True))[part]
    return sum(abs(p / m - 1) for m, p in pairs) / len(pairs)


FIRST, LAST = slice(0, 16), slice(-200, None)


@pytest.mark.parametrize("scale", [0.75, 1.25])
def test_a_prior_scaled_wrong_starts_wrong_is_corrected_and_leaves_the_machine_alone(scale: float) -> None:
    right, wrong = serve(), serve(f"--prior-scale={scale}")
    assert wrong.machine_s == right.machine_s
    assert error(wrong, FIRST) > 0.15
    assert error(wrong, LAST) < 0.05
    assert wrong.trusted
    assert (wrong.scale > 1.05) if scale < 1 else (wrong.scale < 0.95)  # the offset takes the rest


def test_another_gpus_table_as_prior_is_corrected_too() -> None:
    right, wrong = serve(), serve("--prior-table=h100-sxm")
    assert wrong.machine_s == right.machine_s
    assert error(wrong, FIRST) > 0.15
    assert error(wrong, LAST) < error(wrong, FIRST) / 3


def test_even_the_right_prior_does_not_know_the_noise() -> None:
    course = serve()
    assert 0.005 < error(course, LAST) < 0.05


def test_the_published_scale_is_that_of_the_table_that_is_named() -> None:
    async def work() -> None:
        async with engines(("--prior-scale=0.75",)) as (client,):
            own = labels({"regime": "decode", "table": "a100-sxm-80gb", "model": "llama-3.1-8b", "tensor": 1})
            published = {own: value for _, name, own, value in samples(client.engine) if name.endswith("_time_scale")}
            assert published[own] == 0.75

    run(work)
