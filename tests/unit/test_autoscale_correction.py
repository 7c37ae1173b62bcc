"""What verdicts teach the load factors, and what teaches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from itertools import pairwise

import pytest
from paceline_router.autoscale.correction import COLD_S, Learned, misses, observe, wilson
from paceline_router.autoscale.decide import Pacer
from paceline_router.autoscale.outlook import Outlook
from paceline_router.autoscale.signals import Attained, PoolSignals, Ruling, ServiceSignals, Verdicts
from paceline_router.facts import Role
from scaling_double import Capacity, Fleet, make_class, make_pair, make_pool, make_signals

# Correction

TICK_S = 15.0
MIXED, PREFILL, DECODE = Role.MIXED, Role.PREFILL, Role.DECODE
MODEL = Capacity()


def rule_at(pacer: Pacer, signals: ServiceSignals, times: Sequence[float]) -> list[Ruling]:
    return [pacer.rule(signals, now) for now in times]


def verdicts(share: float, count: float = 2000.0) -> Verdicts:
    """Misses are of the first token."""
    return Verdicts(good=share * count, ttft=(1 - share) * count)


THREE = make_pool(replicas=3)


def observed(share: float, pool: PoolSignals = THREE, *, rps: float = 2.85, count: float = 2000.0) -> ServiceSignals:
    return make_signals(pool, classes=(make_class(rps=rps, verdicts=verdicts(share, count)),))


def test_wilson_covers_the_share_and_never_says_certain() -> None:
    assert astuple(wilson(950, 1000)) == pytest.approx((0.9285, 0.9653), abs=1e-3)
    assert wilson(50, 50).low < 0.9
    assert wilson(50, 50).high == 1.0


def test_the_interval_of_factors_is_what_the_model_at_the_present_sizes_makes_of_the_share() -> None:
    """EASY² at up to 3 rps of 3 replicas; 80 % is 2.5 % more (overload⁻⁸), which 2.85 rps reach at a factor of 1.08."""
    signals = observed(0.80)
    interval = observe(Outlook(signals, {}, MODEL(signals)), MIXED, {"chat": 0.95})
    assert interval is not None
    assert interval.low <= 1.08 <= interval.high
    assert interval.high / interval.low < 1.1


def test_what_reaches_its_target_never_raises_the_factor() -> None:
    """Else an overrated A∞ would look like load, and each unlucky window would add to the one before."""
    signals = observed(0.80)
    interval = observe(Outlook(signals, {}, MODEL(signals)), MIXED, {"chat": 0.80})
    assert interval is not None
    assert interval.low == 0.5
    assert 1.08 <= interval.high < 1.2


def test_more_missed_than_predicted_adds_one_replica_a_decision_never_more() -> None:
    pacer, fleet = Pacer(600.0, MODEL), Fleet((make_pool(replicas=3),))
    sizes = []
    for i in range(30):
        now = i * TICK_S
        ruling = pacer.rule(observed(0.3, *fleet.seen(now), rps=2.85), now)
        fleet.apply(ruling.changes, now)
        sizes.append(fleet.sizes()[0])
    assert sizes[0] == 4
    settle = int((60.0 + COLD_S) / TICK_S)
    assert sizes[:settle] == [4] * settle, "verdicts of before the new replica was warm teach nothing"
    assert [b - a for a, b in pairwise(sizes) if b != a] == [1, 1], "up to a factor of 2"
    assert pacer.factors[MIXED] <= 2.0


def test_better_than_predicted_lets_go_of_one_replica_a_decision() -> None:
    pacer, signals = Pacer(0.0, MODEL), observed(0.97, make_pool(replicas=6), rps=9.0)
    ruling = pacer.rule(signals, 0.0)
    assert ruling.wanted == {"mixed": 8}
    assert 0.5 < pacer.factors[MIXED] < 1.0
    assert pacer.rule(signals, TICK_S).factors == ruling.factors, "these verdicts have been used"
    assert pacer.rule(signals, 60.0 + COLD_S).wanted == {"mixed": 7}


def test_a_factor_that_explains_what_is_seen_stays() -> None:
    pacer, signals = Pacer(600.0, MODEL), observed(0.80)
    first = pacer.rule(signals, 0.0).factors
    assert first[MIXED] > 1.0
    assert [pacer.rule(signals, k * 90.0).factors for k in range(1, 5)] == [first] * 4


@pytest.mark.parametrize(
    ("change", "left"),
    [
        pytest.param(1.0, 1.6, id="the load at which it was learned: all"),
        pytest.param(1.15, 1.6, id="a seventh more: all"),
        pytest.param(1 / 1.35, 1.6**0.5, id="a quarter less: half, in its logarithm"),
        pytest.param(1.6, 1.0, id="six tenths more: nothing"),
        pytest.param(0.0, 1.6, id="no load: all"),
    ],
)
def test_a_factor_is_kept_near_the_load_at_which_it_was_learned(change: float, left: float) -> None:
    learned = Learned(1.6, 2000.0)
    for _ in range(4):  # ticks at that load
        learned = learned.at(change * 2000.0)
    assert learned.left == pytest.approx(left, abs=1e-3)


def test_what_is_forgotten_of_a_factor_does_not_come_back_with_the_load() -> None:
    assert Learned(1.6, 1.0).at(1.35).at(1.0).left == pytest.approx(1.6**0.5, abs=1e-3)


def test_ticks_at_a_third_more_load_leave_half_of_a_factor_however_many() -> None:
    pacer = Pacer(600.0, MODEL)
    learned = pacer.rule(observed(0.80), 0.0).factors[MIXED]
    more = make_signals(THREE, classes=(make_class(rps=1.35 * 2.85),))
    factors = [pacer.rule(more, 600.0 + k * 60.0).factors[MIXED] for k in range(5)]
    assert factors == pytest.approx([learned**0.5] * 5, rel=1e-3)


def test_a_factor_is_forgotten_as_the_load_moves_away_and_stays_forgotten() -> None:
    pacer = Pacer(600.0, MODEL)
    learned = pacer.rule(observed(0.80), 0.0).factors[MIXED]
    unknown = make_class(rps=6.0), make_class(rps=2.85)
    factors = [pacer.rule(make_signals(THREE, classes=(c,)), k * 75.0).factors[MIXED] for k, c in enumerate(unknown, 1)]
    assert learned > 1.0
    assert factors == [1.0, 1.0]


@pytest.mark.parametrize(
    ("share", "count", "missed"),
    [
        pytest.param(0.80, 300.0, True, id="fifteen points below the target"),
        pytest.param(0.93, 300.0, False, id="two points below, which may be chance"),
        pytest.param(0.93, 5000.0, True, id="two points below, of thousands"),
        pytest.param(0.0, 40.0, False, id="too few to say"),
    ],
)
def test_a_target_is_missed_where_chance_does_not_explain_it(share: float, count: float, missed: bool) -> None:
    assert misses(observed(share, count=count), {"chat": 0.95}) is missed


def test_a_rise_that_may_be_chance_grows_a_fleet_whose_requests_miss() -> None:
    """Not settled: the verdicts teach no factor."""
    held = observed(0.99, rps=3.3)
    late = observed(0.85, make_pool(replicas=3, settled_s=0.0), rps=3.3)
    assert Pacer(600.0, MODEL).rule(held, 0.0).changes == ()
    assert [c.after for c in Pacer(600.0, MODEL).rule(late, 0.0).changes] == [4]


@pytest.mark.parametrize(
    ("share", "replicas"),
    [
        pytest.param(0.8, 10, id="misses of a fleet where load hardly matters"),
        pytest.param(1.0, 3, id="more attained than half the load explains: the model underrates A∞"),
    ],
)
def test_what_is_not_the_loads_doing_teaches_nothing(share: float, replicas: int) -> None:
    pacer = Pacer(600.0, Capacity(unloaded={"chat": Attained(0.97, 0.97)}))
    signals = observed(share, make_pool(replicas=replicas), count=20_000.0, rps=2.85)
    assert pacer.rule(signals, 0.0).factors == {}


UNTAUGHT = [
    ("a replica started within the window", make_pool(replicas=3, settled_s=50.0), 2000.0),
    ("a replica was cold within the window", make_pool(replicas=3, settled_s=60.0 + COLD_S - 1), 2000.0),
    ("a replica is missing", make_pool(replicas=3, ready=2), 2000.0),
    ("a person set the size", make_pool(replicas=3, held=True), 2000.0),
    ("maxReplicas keeps the class from its target anyway", make_pool(replicas=2, most=2), 2000.0),
    ("fewer than fifty were decided", make_pool(replicas=3), 49.0),
]


@pytest.mark.parametrize(("pool", "count"), [u[1:] for u in UNTAUGHT], ids=[u[0] for u in UNTAUGHT])
def test_nothing_is_learned_when(pool: PoolSignals, count: float) -> None:
    pacer = Pacer(600.0, MODEL)
    assert pacer.rule(observed(0.3, pool, count=count), 0.0).factors == {}


def test_nothing_is_learned_from_verdicts_on_other_objectives() -> None:
    pacer = Pacer(600.0, MODEL)
    pacer.rule(observed(0.98), 0.0)
    edited = replace(observed(0.3), classes=(make_class(rps=2.85, ttft_s=0.3, verdicts=verdicts(0.3)),))
    assert pacer.rule(edited, TICK_S).factors == {}
    assert pacer.rule(edited, 4 * TICK_S).factors == {}
    assert [ruling.factors != {} for ruling in rule_at(pacer, edited, (80.0, 100.0, 120.0))] == [False, False, True]


def test_prefill_learns_from_first_tokens_and_decode_from_the_tokens_after_them() -> None:
    for seen, role in ((Verdicts(good=1400, ttft=600), PREFILL), (Verdicts(good=1400, tpot=600), DECODE)):
        pacer = Pacer(600.0, MODEL)
        pacer.rule(make_signals(*make_pair(3, 2), classes=(make_class(rps=2.9, verdicts=seen),)), 0.0)
        assert list(pacer.factors) == [role]
        assert pacer.factors[role] > 1.0


def test_requests_that_were_never_served_say_nothing_about_decode() -> None:
    pacer = Pacer(600.0, MODEL)
    seen = Verdicts(good=1400, unserved=600)
    pacer.rule(make_signals(*make_pair(3, 2), classes=(make_class(rps=2.9, verdicts=seen),)), 0.0)
    assert list(pacer.factors) == [PREFILL]
