"""What the autoscaler's benchmark holds against the law, from made-up runs; nothing is simulated here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, in no package

from autoscale_hours import LAWS, STATIC, Outcome, reversals
from autoscale_loads import CONSTANT, Load, last_half, peak_rps
from autoscale_replay import show_constant, show_hours
from autoscale_seen import histogram

HOUR = Load("an hour", 3600.0, ((0.0, 2.0), (1800.0, 4.0), (2400.0, 8.0)), onset_s=2400.0)


def make_outcomes(law: float, clairvoyant: float, attained: float = 0.97, static: float = 10.0) -> list[Outcome]:
    """GPU-hours of each; the law's attainment."""
    hours = dict.fromkeys(LAWS, 9.0) | {STATIC: static, "law": law, "clairvoyant": clairvoyant}
    return [Outcome(HOUR.name, 1, who, attained if who == "law" else 0.97, n, (), ()) for who, n in hours.items()]


@pytest.mark.parametrize(
    ("outcomes", "misses"),
    [
        pytest.param(make_outcomes(8.3, 8.0), [], id="85 % of what can be saved, at the target"),
        pytest.param(make_outcomes(8.5, 8.0), ["an hour: the law saves 1.5", "over all"], id="75 % of it"),
        pytest.param(
            make_outcomes(8.0, 8.0, attained=0.94), ["an hour: the law attains 94.0 %"], id="below the target"
        ),
        pytest.param(make_outcomes(10.2, 10.3), [], id="nothing to be saved, and less lost than the clairvoyant"),
        pytest.param(make_outcomes(10.9, 10.3), ["over all"], id="nothing to be saved, and more lost"),
    ],
)
def test_the_law_saves_four_fifths_of_what_a_clairvoyant_does_at_the_target(
    outcomes: list[Outcome], misses: list[str]
) -> None:
    found = show_hours(Console(quiet=True), [HOUR], outcomes, LAWS)
    assert len(found) == len(misses)
    assert all(line.startswith(miss) for line, miss in zip(found, misses, strict=True))


@pytest.mark.parametrize(("turns", "missed"), [(1, 0), (2, 1)])
def test_at_constant_load_one_reversal_in_ten_minutes_is_allowed(turns: int, missed: int) -> None:
    steady = [Outcome(CONSTANT, 1, law, 0.97, 5.0, (), (), reversals=turns) for law in LAWS]
    assert len(show_constant(Console(quiet=True), steady, LAWS)) == missed


@pytest.mark.parametrize(
    ("sizes", "turns"),
    [
        pytest.param([(0.0, 3), (700.0, 4), (800.0, 5)], 0, id="one way"),
        pytest.param([(0.0, 3), (700.0, 4), (900.0, 3)], 1, id="up and down"),
        pytest.param([(0.0, 3), (700.0, 4), (900.0, 3), (1100.0, 4)], 2, id="and up again"),
        pytest.param([(0.0, 3), (700.0, 4), (900.0, 3), (1600.0, 4)], 1, id="but much later"),
        pytest.param([(0.0, 3), (100.0, 4), (300.0, 3)], 0, id="before it has settled"),
    ],
)
def test_reversals_are_turns_within_ten_minutes(sizes: list[tuple[float, int]], turns: int) -> None:
    assert reversals(sizes) == turns


def test_an_hour_has_its_highest_rate_and_a_second_half() -> None:
    assert [peak_rps(HOUR, 0.0, until) for until in (1799.0, 1800.0, 9999.0)] == [2.0, 4.0, 8.0]
    assert last_half(HOUR).rates == ((0.0, 4.0), (600.0, 8.0))
    assert last_half(HOUR).onset_s == 600.0


def test_lengths_are_told_as_shares_of_the_routers_buckets() -> None:
    found = histogram([1, 100, 100, 5000])
    assert found.mean_tokens == 1300.25
    assert sum(share for _, share in found.buckets) == pytest.approx(1.0)
    assert [share for _, share in found.buckets if share] == [0.25, 0.5, 0.25]
