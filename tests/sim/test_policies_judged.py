"""How policies are judged: stalls count, capacities are found, splits are the best ones, and one contest in small."""

from __future__ import annotations

import pytest
from paceline_api.slo import SLOClass
from paceline_engine.policies import POLICIES
from paceline_planner.judged.cases import CASES, DEADLINES, FIXED, OTHERS, SLOW_PRIOR, Box, Contender, fleet, jobs
from paceline_planner.judged.contests import Mixes, Silo, fraction_rps, split_rps
from paceline_planner.judged.measure import (
    HOPELESS_POINTS,
    STALLED,
    UNDECIDED,
    Measured,
    Window,
    bracket,
    measure,
    settle,
)

CHAT = CASES[2]
SHORT = Window(10.0, 200)


def run(who: Contender, rate_rps: float, slo: SLOClass = CHAT.slo, window: Window = SHORT) -> Measured:
    spec = fleet(CHAT.box, who, [slo])
    return measure(spec, jobs({slo.name: (1.0, CHAT.lengths)}, rate_rps, 1), rate_rps, 1, window)


def test_a_stall_is_a_miss_whatever_the_mean() -> None:
    loose = SLOClass("interactive", 5.0, 0.1, max_stall_s=0.06)
    prefill_first = run(OTHERS[1], 6.0, loose)
    assert prefill_first.verdicts["interactive", STALLED] > 100
    assert prefill_first.attainment_percent["interactive"] < 50
    assert run(DEADLINES, 6.0, loose).attainment_percent["interactive"] > 95


def test_the_deadline_driven_policy_holds_more_than_fixed_budgets_where_both_are_pressed() -> None:
    window = Window(20.0, 400)
    ours = run(DEADLINES, CHAT.guess_rps, window=window).goodput_rps
    assert all(ours > run(who, CHAT.guess_rps, window=window).goodput_rps for who in (FIXED[1], FIXED[3], *OTHERS))


def test_a_measured_window_counts_every_request_once() -> None:
    found = run(DEADLINES, 30.0)
    assert sum(found.verdicts.values()) == SHORT.arrivals
    assert found.goodput_rps < 30.0
    assert found.over_percent == found.attainment_percent["interactive"] - 90


def test_a_hopeless_run_is_cut_and_says_that_it_does_not_hold() -> None:
    spec = fleet(CHAT.box, DEADLINES, [CHAT.slo])
    loads = {CHAT.slo.name: (1.0, CHAT.lengths)}
    whole, cut = (measure(spec, jobs(loads, 30.0, 1), 30.0, 1, SHORT, cuts=cuts) for cuts in (False, True))
    assert ("interactive", UNDECIDED) in cut.verdicts
    assert ("interactive", UNDECIDED) not in whole.verdicts
    assert whole.over_percent <= cut.over_percent < -HOPELESS_POINTS


def test_a_run_that_holds_is_not_cut() -> None:
    spec = fleet(CHAT.box, DEADLINES, [CHAT.slo])
    loads = {CHAT.slo.name: (1.0, CHAT.lengths)}
    whole, cut = (measure(spec, jobs(loads, 6.0, 1), 6.0, 1, SHORT, cuts=cuts) for cuts in (False, True))
    assert whole == cut


def test_one_hopeless_seed_is_enough_not_to_hold() -> None:
    over = {1: 9.0, 2: -6.0, 3: 9.0}
    assert settle(lambda rate, seed: threshold(over[seed] if rate > 2.0 else 1.0), 2.5, (1, 2, 3), 1.3) < 2.0


def threshold(limit_rps: float) -> Measured:
    return Measured(0.0, {}, limit_rps, 0.0, 0.0, 0.0, {})


@pytest.mark.parametrize("guess", [0.4, 2.9, 11.0], ids=["from far below", "from nearby", "from far above"])
def test_a_capacity_is_found_from_any_guess(guess: float) -> None:
    def trial(rate: float, seed: int) -> Measured:
        return threshold(3.0 + 0.01 * seed - rate)

    near = bracket(trial, guess)
    assert near <= 3.01 < near * 1.08
    found = settle(trial, near, (1, 2, 3), 1.02)
    assert found <= 3.02 < found * 1.02


def test_no_capacity_where_nothing_holds() -> None:
    assert bracket(lambda rate, seed: threshold(-1.0), 5.0) == 0.0


def test_the_best_split_gives_each_class_what_its_share_needs() -> None:
    mixes = Mixes(Box("t", "m"), 3, SLOClass("i", 1, 1), SLOClass("b", 1, 1), {}, {}, (0.5,))
    apart = [Silo("i", 1, "", 2.0), Silo("i", 2, "", 4.0), Silo("b", 1, "", 5.0), Silo("b", 2, "", 10.0)]
    assert split_rps(apart, mixes, 0.5) == (8.0, 2)
    rate_rps, interactive_replicas = split_rps(apart, mixes, 0.1)
    assert rate_rps == pytest.approx(10 / 0.9)
    assert interactive_replicas == 1


def test_a_split_in_fractions_is_never_below_one_in_whole_replicas_and_the_same_where_that_fits() -> None:
    mixes = Mixes(Box("t", "m"), 3, SLOClass("i", 1, 1), SLOClass("b", 1, 1), {}, {}, (0.5,))
    apart = [Silo("i", 1, "", 2.0), Silo("i", 2, "", 4.0), Silo("b", 1, "", 5.0), Silo("b", 2, "", 10.0)]
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert fraction_rps(apart, mixes, share) >= split_rps(apart, mixes, share)[0] - 1e-9
    fits = 4.0 / 9.0
    assert fraction_rps(apart, mixes, fits) == pytest.approx(split_rps(apart, mixes, fits)[0])


def test_every_case_believes_a_wrong_prior_and_names_policies_that_exist() -> None:
    assert all(case.box.prior in (SLOW_PRIOR, 1 / SLOW_PRIOR) for case in CASES)
    assert {DEADLINES.policy, *(who.policy for who in (*FIXED, *OTHERS))} <= set(POLICIES)
