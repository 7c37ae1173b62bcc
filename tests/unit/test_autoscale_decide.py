"""The law over time: exact sequences of sizes over ticks, and each rule of when a pool may change (DESIGN §7).

Ticks are 15 s apart, rates are of the last 60 s, and the stabilisation window is 60 s unless a test says otherwise.
Capacities are the double's: a prefill or mixed replica holds 1 rps, a decode replica 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from paceline_router.autoscale.decide import Pacer
from paceline_router.autoscale.signals import ServiceSignals
from paceline_router.facts import Role
from scaling_double import Capacity, Fleet, make_class, make_pair, make_pool, make_signals

TICK_S = 15.0
MIXED, PREFILL, DECODE = Role.MIXED, Role.PREFILL, Role.DECODE
MODEL = Capacity()
Tick = float | None  # the measured rate, or None: blind


def run(
    pacer: Pacer,
    fleet: Fleet,
    ticks: Iterable[Tick],
    *,
    start: int = 0,
    make: Callable[..., ServiceSignals] = make_signals,
    max_gpus: int | None = None,
) -> list[tuple[int, ...]]:
    """The sizes after each tick."""
    sizes = []
    for i, rate in enumerate(ticks, start):
        now = i * TICK_S
        if rate is None:
            pacer.blind(now)
        else:
            ruling = pacer.rule(make(*fleet.seen(now), rps=rate, max_gpus=max_gpus), now)
            fleet.apply(ruling.changes, now)
        sizes.append(fleet.sizes())
    return sizes


def mixed(*args: object, **kwargs: object) -> list[int]:
    return [n for (n,) in run(*args, **kwargs)]  # type: ignore[arg-type]  # as run


def settled(replicas: int, *, stabilisation_s: float = 60.0) -> tuple[Pacer, Fleet]:
    """A pacer that has seen its whole window, and a mixed pool of the size that it wanted all along."""
    pacer, fleet = Pacer(stabilisation_s, MODEL), Fleet((make_pool(replicas=replicas),))
    for i in range(-int(stabilisation_s / TICK_S) - 1, 0):
        pacer.rule(make_signals(*fleet.seen(i * TICK_S), rps=0.85 * replicas), i * TICK_S)
    return pacer, fleet


# Sequences


def test_load_times_three_then_divided_by_three_as_an_exact_sequence_of_sizes() -> None:
    """2 rps are at most 2·(1 + 1/√240) of 120 s, so 3 replicas hold them; 6 rps need 6."""
    pacer, fleet = Pacer(60.0, MODEL), Fleet((make_pool(replicas=3),), start_s=30.0)
    assert mixed(pacer, fleet, [2.0] * 3) == [3, 3, 3]
    assert mixed(pacer, fleet, [3.0, 4.5, 6.0, 6.0, 6.0, 6.0, 6.0], start=3) == [3, 5, 6, 6, 6, 6, 6]
    assert mixed(pacer, fleet, [5.0, 3.5, 2.0, 2.0, 2.0, 2.0, 2.0], start=10) == [6, 6, 6, 6, 6, 4, 4]
    assert mixed(pacer, fleet, [2.0] * 40, start=17) == [4] + [3] * 39


def test_load_times_three_then_divided_by_three_of_two_pools() -> None:
    pacer, fleet = Pacer(60.0, MODEL), Fleet(make_pair(3, 2))
    assert run(pacer, fleet, [2.0, 6.0, 6.0]) == [(3, 2), (6, 3), (6, 3)]
    assert run(pacer, fleet, [2.0] * 4, start=3) == [(6, 3)] * 4
    assert run(pacer, fleet, [2.0] * 2, start=7) == [(3, 2), (3, 2)]


# Up


def test_up_at_once_by_as_much_as_is_wanted() -> None:
    assert mixed(Pacer(300.0, MODEL), Fleet((make_pool(replicas=1),)), [7.0]) == [7]


def test_replicas_that_are_starting_are_not_asked_for_again() -> None:
    fleet = Fleet((make_pool(replicas=1),), start_s=120.0)
    assert mixed(Pacer(300.0, MODEL), fleet, [5.0] * 6) == [5] * 6
    assert fleet.pools[0].ready == 1


def test_the_same_change_is_asked_for_until_it_shows() -> None:
    pacer, signals = Pacer(300.0, MODEL), make_signals(make_pool(replicas=1), rps=3.0)
    first, again = pacer.rule(signals, 0.0), pacer.rule(signals, TICK_S)
    assert [(c.pool, c.before, c.after, c.binding) for c in first.changes] == [("mixed", 1, 3, "chat/ttft")]
    assert again.changes == first.changes


# Down


def test_a_new_leader_shrinks_only_after_it_has_itself_seen_the_whole_window() -> None:
    assert mixed(Pacer(60.0, MODEL), Fleet((make_pool(replicas=5),)), [0.5] * 6) == [5, 5, 5, 5, 1, 1]


def test_down_to_the_greatest_size_surely_needed_in_the_window_not_the_latest() -> None:
    pacer, fleet = settled(6)
    assert mixed(pacer, fleet, [5.9, 1.6, 0.5, 0.5, 0.5, 0.5, 0.5]) == [6, 6, 6, 6, 6, 2, 1]


def test_a_tick_that_surely_needs_the_present_size_keeps_it_for_a_window() -> None:
    pacer, fleet = settled(4)
    assert mixed(pacer, fleet, [0.5, 0.5, 3.9, 0.5, 0.5, 0.5, 0.5, 0.5]) == [4] * 7 + [1]


def test_a_rate_that_may_be_chance_grows_nothing_and_one_that_stays_does() -> None:
    """3.3 rps over 60 s may be 2.9, which 3 replicas hold; over 135 s they are at least 3.01."""
    fleet = Fleet((make_pool(replicas=3),))
    assert mixed(Pacer(300.0, MODEL), fleet, [3.3] * 20) == [3] * 5 + [4] * 15


def test_what_a_rise_surely_asks_for_is_ordered_at_the_measured_rate() -> None:
    assert mixed(Pacer(300.0, MODEL), Fleet((make_pool(replicas=3),)), [4.9]) == [5], "at least 4.4 rps need 5"
    assert mixed(Pacer(300.0, MODEL), Fleet((make_pool(replicas=3),)), [4.0]) == [4], "at least 3.5, measured 4"


def test_the_smaller_fleet_must_hold_at_the_upper_bound_of_the_measured_rate() -> None:
    """1.9 rps over 60 s may be 2.08; over ten minutes they are at most 1.96."""
    for window_s, after in ((60.0, 3), (600.0, 2)):
        pacer, pool = Pacer(0.0, MODEL), make_pool(replicas=3)
        ruling = pacer.rule(make_signals(pool, rps=1.9, window_s=window_s), 0.0)
        assert [c.after for c in ruling.changes] == [after] * (after != 3)


def test_without_traffic_down_to_the_least_after_the_window() -> None:
    pacer, fleet = settled(4)
    assert mixed(pacer, fleet, [0.0] * 6) == [4, 4, 4, 4, 1, 1]


def test_a_longer_stabilisation_takes_effect_at_once() -> None:
    pacer, fleet = Pacer(30.0, MODEL), Fleet((make_pool(replicas=5),))
    mixed(pacer, fleet, [4.5, 4.5, 0.5])
    pacer.stabilisation_s = 90.0
    assert mixed(pacer, fleet, [0.5] * 7, start=3) == [5] * 5 + [1] * 2, "4.5 rps were until 30 s"


WAITS: list[tuple[str, ServiceSignals, str]] = [
    (
        "a pool whose replicas are not all ready does not shrink",
        make_signals(make_pool(replicas=4, ready=3, settled_s=0.0), rps=0.5),
        "mixed 4 → 1: 3 of 4 replicas ready, and not settled",
    ),
    (
        "a pool with a surge replica of a rollout does not shrink",
        make_signals(make_pool(replicas=4, ready=5), rps=0.5),
        "mixed 4 → 1: 5 of 4 replicas ready, and not settled",
    ),
    (
        "a pool that has just settled elsewhere does not shrink",
        make_signals(make_pool(replicas=4, settled_s=0.0), rps=0.5),
        "mixed 4 → 1: 4 of 4 replicas ready, and not settled",
    ),
    (
        "prefill does not shrink while a decode replica that counts is missing",
        make_signals(make_pool(PREFILL, 4), make_pool(DECODE, 2, ready=1), rps=2.1),
        "prefill 4 → 3: decode has 1 of 2 ready",
    ),
    (
        "prefill does not shrink while decode still has to grow",
        make_signals(make_pool(PREFILL, 4), make_pool(DECODE, 1), rps=2.1),
        "prefill 4 → 3: decode has 1 of 2 ready",
    ),
]


@pytest.mark.parametrize(("signals", "waits"), [w[1:] for w in WAITS], ids=[w[0] for w in WAITS])
def test_waits(signals: ServiceSignals, waits: str) -> None:
    pacer = Pacer(60.0, MODEL)
    for i in range(5):
        ruling = pacer.rule(signals, i * TICK_S)
    assert ruling.waits == waits
    assert not [c for c in ruling.changes if c.after < c.before]


def test_a_decode_replica_too_many_that_fails_keeps_no_prefill_replica() -> None:
    pacer, signals = Pacer(60.0, MODEL), make_signals(make_pool(PREFILL, 4), make_pool(DECODE, 2, ready=1), rps=0.5)
    for i in range(5):
        ruling = pacer.rule(signals, i * TICK_S)
    assert [(c.pool, c.after) for c in ruling.changes] == [("prefill", 1)]


def test_what_is_seen_of_the_window_is_said_while_a_shrink_waits() -> None:
    pacer, signals = Pacer(300.0, MODEL), make_signals(make_pool(replicas=4), rps=0.5)
    pacer.rule(signals, 0.0)
    assert pacer.rule(signals, 12.0).waits == "mixed 4 → 1: 12 of 300 s seen"
    assert pacer.seen_s(12.0) == 12.0
    assert pacer.rule(replace(signals, classes=(make_class(rps=4.0),)), 24.0).waits == ""


def test_the_reason_of_a_shrink_has_the_window_and_what_the_smaller_fleet_attains() -> None:
    pacer, fleet = settled(4)
    mixed(pacer, fleet, [1.5] * 4)
    (change,) = pacer.rule(make_signals(*fleet.seen(60.0), rps=1.5), 60.0).changes
    figures = "chat at 1.5 rps attains 98 %, target 95 %"
    assert change.why == f"2 replicas are enough, and no more were surely needed for 60 s: {figures}"
    assert change.binding == "chat/ttft"


# Blindness, gaps, clocks and terms


def test_blind_ticks_change_nothing_however_many() -> None:
    pacer, fleet = settled(4)
    assert mixed(pacer, fleet, [None] * 40) == [4] * 40


def test_after_an_outage_longer_than_the_rates_window_the_stabilisation_window_starts_anew() -> None:
    pacer, fleet = settled(4, stabilisation_s=60.0)
    sizes = mixed(pacer, fleet, [None, None, None, None, None, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert sizes == [4] * 9 + [1]


def test_a_blind_tick_within_the_rates_window_is_no_gap_every_arrival_was_seen() -> None:
    pacer, fleet = settled(4)
    assert mixed(pacer, fleet, [0.5, None, 0.5, None, 0.5]) == [4, 4, 4, 4, 1]


def test_a_process_that_slept_has_not_seen_the_window() -> None:
    pacer, fleet = settled(4)
    assert mixed(pacer, fleet, [0.5, 0.5]) == [4, 4]
    assert mixed(pacer, fleet, [0.5] * 5, start=100) == [4, 4, 4, 4, 1]


@pytest.mark.parametrize("jump", ["restart", "back"])
def test_a_clock_that_jumps_restarts_the_window(jump: str) -> None:
    pacer, fleet = settled(4)
    mixed(pacer, fleet, [0.5, 0.5, 0.5])
    start = 3
    if jump == "restart":
        pacer.restart(3 * TICK_S)
    else:
        start = -100
        fleet.changed_s = {"mixed": -1e5}
    assert mixed(pacer, fleet, [0.5] * 5, start=start) == [4, 4, 4, 4, 1]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda s: replace(s, classes=(make_class(rps=0.5, ttft_s=0.3),)), id="a class"),
        pytest.param(lambda s: replace(s, classes=(make_class(rps=0.5, target=0.9),)), id="a target"),
        pytest.param(lambda s: replace(s, max_gpus=9), id="maxGPUs"),
        pytest.param(lambda s: replace(s, pools=(replace(s.pools[0], most=9),)), id="a bound"),
        pytest.param(lambda s: replace(s, pools=(*s.pools, make_pool(name="other", least=0))), id="a pool"),
    ],
)
def test_sizes_wanted_on_other_terms_are_forgotten(change: Callable[[ServiceSignals], ServiceSignals]) -> None:
    pacer, signals = Pacer(60.0, MODEL), make_signals(make_pool(replicas=4), rps=0.5)
    for i in range(4):
        pacer.rule(signals, i * TICK_S)
    after = [pacer.rule(change(signals), i * TICK_S) for i in range(4, 9)]
    assert [bool(ruling.changes) for ruling in after] == [False] * 4 + [True]


# Budget and bounds


def test_growth_waits_for_the_gpus_that_another_pool_still_holds() -> None:
    """The budget of 8 is full with 2 + 6; with shorter answers decode needs 2, and prefill gets what it leaves."""
    pacer, fleet = Pacer(30.0, MODEL), Fleet(make_pair(2, 6))
    assert run(pacer, fleet, [4.0] * 4, max_gpus=8) == [(2, 6), (2, 6), (2, 3), (4, 3)]


def test_growth_cut_by_the_budget_says_so() -> None:
    signals = make_signals(*make_pair(2, 5), rps=4.0, max_gpus=8)
    (change,) = Pacer(60.0, MODEL).rule(signals, 0.0).changes
    assert (change.pool, change.after, change.binding) == ("prefill", 3, "")
    assert change.why.startswith("maxGPUs 8 leaves 3 of 4 replicas until another pool shrinks: TTFT of chat at 4 rps")


def test_a_pool_scaled_to_zero_wakes_only_within_the_budget() -> None:
    pools = make_pool(PREFILL, 0, least=0), make_pool(DECODE, 3)
    assert Pacer(60.0, MODEL).rule(make_signals(*pools, rps=1.0, max_gpus=3), 0.0).changes == ()


def test_a_lowered_budget_is_reached_like_any_smaller_size_after_a_window() -> None:
    pacer, fleet = Pacer(60.0, MODEL), Fleet((make_pool(replicas=6),))
    assert mixed(pacer, fleet, [6.0] * 4) == [6] * 4
    assert mixed(pacer, fleet, [6.0] * 5, start=4, max_gpus=4) == [6, 6, 6, 6, 4]


def test_a_held_pool_never_changes_and_the_other_goes_on() -> None:
    pacer, fleet = Pacer(0.0, MODEL), Fleet((make_pool(PREFILL, 6, held=True), make_pool(DECODE, 4)))
    assert run(pacer, fleet, [1.0, 9.0]) == [(6, 1), (6, 5)]


def test_the_ruling_predicts_for_what_is_ready_now() -> None:
    signals = make_signals(make_pool(replicas=3, ready=2), rps=3.0)
    assert Pacer(600.0, MODEL).rule(signals, 0.0).predicted["chat"].joint == pytest.approx(0.99**2 / 1.5**8)


def test_the_words_of_a_wait_name_pool_and_sizes() -> None:
    ruling = Pacer(60.0, MODEL).rule(make_signals(*make_pair(4, 4), rps=0.5), 0.0)
    assert re.fullmatch(r"prefill 4 → 1: 0 of 60 s seen; decode 4 → 1: 0 of 60 s seen", ruling.waits)
