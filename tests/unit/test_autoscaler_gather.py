"""From what Prometheus says to signals: every way to be blind, and what the figures become otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from factories_scaling import NOW_S, make_pod_view, make_pool_view, make_view
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.slo import SLOClass
from paceline_router.autoscale.signals import Blind, ServiceSignals
from paceline_router.scaling.answers import Answers, Told, by_service
from paceline_router.scaling.figures import figures
from paceline_router.scaling.gather import Standing, gather
from paceline_router.scaling.lengths import BOUNDS, expected, measured
from paceline_router.scaling.loop import find_table
from paceline_router.scaling.queries import Signal
from paceline_router.scaling.views import Hint, ServiceView
from prometheus_double import SCRAPE_S, Rows, bend, healthy, histogram, row

LONG = 1e9


def make_told(rows: Rows | None = None, clock_s: float = NOW_S) -> Told:
    found = healthy() if rows is None else rows
    return Answers(by_service(found), clock_s, NOW_S, SCRAPE_S).of(("llm", "chat"))


def see(view: ServiceView | None = None, rows: Rows | None = None, **over: Any) -> ServiceSignals | Blind:
    return gather(view or make_view(), make_told(rows, **over), Standing(), find_table)


def signals(view: ServiceView | None = None, rows: Rows | None = None) -> ServiceSignals:
    found = see(view, rows)
    assert isinstance(found, ServiceSignals), found
    return found


def without(*gone: Signal) -> Rows:
    return healthy() | {signal: [] for signal in gone}


def unready(view: ServiceView, pod: str, since_s: float | None) -> ServiceView:
    return replace(view, pods=tuple(replace(p, ready_since_s=since_s) if p.name == pod else p for p in view.pods))


@dataclass(frozen=True)
class Case:
    """What is seen, and the reason and words of being blind; an empty reason: not blind."""

    sentence: str
    reason: str
    says: str = ""
    rows: Callable[[], Rows] = healthy
    view: Callable[[], ServiceView] = make_view
    clock_s: float = NOW_S


TWO = make_pool_view(size=2)
BLIND = [
    Case("a healthy service is seen", ""),
    Case("a service without pools has nothing to decide", "MetricsMissing", "no pools",
         view=lambda: make_view(pools=())),
    Case("an empty Prometheus, and no pod ready yet", "MetricsMissing", "no router has been seen", dict,
         lambda: make_view(pods=())),
    Case("an empty Prometheus, and pods ready", "MetricsStale", "sees no router, and 1 are ready", dict),
    Case("routers are seen, engines are cut off", "MetricsStale", "no engine of mixed",
         lambda: without(Signal.ENGINE_AGES)),
    Case("samples of routers older than three intervals", "MetricsStale", "younger than 6 s",
         lambda: bend(healthy(), Signal.ROUTER_AGES, 6.1)),
    Case("samples of engines older than three intervals", "MetricsStale", "engine of mixed",
         lambda: bend(healthy(), Signal.ENGINE_AGES, 6.1)),
    Case("samples just young enough", "", rows=lambda: bend(healthy(), Signal.ROUTER_AGES, 6.0)),
    Case("fewer engines than are ready", "MetricsInvalid", "1 of 2 are missing", view=lambda: make_view(TWO)),
    Case("an engine that became ready within two intervals need not be seen", "",
         view=lambda: unready(make_view(TWO), "chat-mixed-1", NOW_S - 3.9)),
    Case("an engine that is not ready need not be seen", "",
         view=lambda: unready(make_view(TWO), "chat-mixed-1", None)),
    Case("one of two routers is not seen", "MetricsInvalid", "every router", view=lambda: make_view(routers=2)),
    Case("another pod than the ready one is seen", "MetricsInvalid", "every engine of mixed",
         rows=lambda: healthy() | {Signal.ENGINE_AGES: [row(1.0, pool="mixed", pod="chat-mixed-9")]}),
    Case("without pod labels engines are counted", "",
         rows=lambda: healthy() | {Signal.ENGINE_AGES: [row(1.0, pool="mixed", instance="10.0.0.1:8000")]}),
    Case("a router that was seen for less than the window", "MetricsMissing", "do not cover the last 30 s",
         lambda: bend(healthy(), Signal.COVERAGE, 10)),
    Case("routers that count no class", "MetricsMissing", "count no class", lambda: without(Signal.ARRIVALS)),
    Case("a rate that is no number", "MetricsInvalid", "arrivals of interactive",
         lambda: bend(healthy(), Signal.ARRIVALS, math.nan)),
    Case("an infinite rate", "MetricsInvalid", "inf", lambda: bend(healthy(), Signal.ARRIVALS, math.inf)),
    Case("more rejected than received", "MetricsInvalid", "-0.5", lambda: bend(healthy(), Signal.ARRIVALS, -0.5)),
    Case("a rate below 0 by rounding is 0", "", rows=lambda: bend(healthy(), Signal.ARRIVALS, -1e-9)),
    Case("verdicts that are no number", "MetricsInvalid", "verdicts",
         lambda: bend(healthy(), Signal.VERDICTS, math.nan)),
    Case("a step time scale that is none", "MetricsInvalid", "scales of mixed",
         lambda: bend(healthy(), Signal.SCALES, 0.0)),
    Case("a negative offset is one", "", rows=lambda: bend(healthy(), Signal.OFFSETS, -0.003)),
    Case("Prometheus' clock is 31 s ahead", "MetricsInvalid", "NTP", clock_s=NOW_S + 31),
    Case("Prometheus' clock is 31 s behind", "MetricsInvalid", "NTP", clock_s=NOW_S - 31),
    Case("Prometheus' clock is 29 s ahead", "", clock_s=NOW_S + 29),
    Case("arrivals of unknown length", "MetricsMissing", "spec.workload", lambda: without(Signal.OUTPUT_BUCKETS)),
    Case("arrivals whose lengths a person has told", "", rows=lambda: without(Signal.OUTPUT_BUCKETS),
         view=lambda: make_view(output_hint=Hint(200, 400))),
    Case("a service without traffic needs no lengths", "", rows=lambda: healthy(rates={"interactive": 0.0})),
    Case("no engine and no table of the accelerator", "MetricsMissing", "step-time table",
         lambda: healthy(pools={"mixed": 0}), lambda: make_view(make_pool_view(size=0, table=""))),
    Case("no engine, and the accelerator has a table", "", rows=lambda: healthy(pools={"mixed": 0}),
         view=lambda: make_view(make_pool_view(size=0))),
]  # fmt: skip


@pytest.mark.parametrize("case", BLIND, ids=lambda case: case.sentence)
def test_it_is_blind_when(case: Case) -> None:
    found = see(case.view(), case.rows(), clock_s=case.clock_s)
    assert (found.reason if isinstance(found, Blind) else "") == case.reason
    if isinstance(found, Blind):
        assert case.says in found.message


def test_what_another_namespace_says_of_a_service_does_not_count() -> None:
    forged = replace(row(100.0, slo_class="interactive"))
    forged = replace(forged, labels={**forged.labels, "namespace": "elsewhere"})
    rows = healthy()
    rows[Signal.ARRIVALS].insert(0, forged)
    assert signals(rows=rows).classes[0].arrivals_rps == 4.0


def test_without_namespaces_the_metric_alone_says_whose_it_is() -> None:
    rows = {s: [replace(r, labels={k: v for k, v in r.labels.items() if k != "namespace"}) for r in found]
            for s, found in healthy().items()}  # fmt: skip
    assert signals(rows=rows).classes[0].arrivals_rps == 4.0


def test_the_figures_of_a_class_and_a_pool() -> None:
    found = signals()
    (one,), (pool,) = found.classes, found.pools
    assert (one.arrivals_rps, one.prompt.mean_tokens, one.output.mean_tokens) == (4.0, 1000, 200)
    assert (one.verdicts.good, one.verdicts.decided) == pytest.approx((117.6, 120))
    assert (pool.engine.table.name, pool.engine.mixed_scale, pool.engine.decode_scale) == ("a100-sxm-80gb", 1.1, 1.0)
    assert (pool.engine.kv_tokens, pool.held) == (16 * 27720, False)
    assert found.window_s == 30.0


def test_an_untrusted_fit_leaves_the_table_as_it_is() -> None:
    (pool,) = signals(rows=without(Signal.SCALES, Signal.OFFSETS)).pools
    assert (pool.engine.mixed_scale, pool.engine.mixed_offset_s) == (1.0, 0.0)


def test_what_is_held_and_settled_is_passed_on() -> None:
    found = gather(make_view(), make_told(), Standing({"mixed"}, {"mixed": 7.0}), find_table)
    assert isinstance(found, ServiceSignals)
    assert (found.pools[0].held, found.pools[0].settled_s) == (True, 7.0)


@pytest.mark.parametrize(
    ("held", "budget"),
    [(frozenset(), 4), (frozenset({"mixed"}), 5)],
    ids=["is the service's own", "lets nothing grow while somebody's size exceeds it, and takes nothing away"],
)
def test_the_budget(held: frozenset[str], budget: int) -> None:
    view = make_view(make_pool_view(size=5, ready=1), max_gpus=4)
    found = gather(view, make_told(), Standing(held, {}), find_table)
    assert isinstance(found, ServiceSignals)
    assert found.max_gpus == budget


BATCH = SLOClass("batch", 30.0, 0.25)
BOTH = make_view(classes=(*make_view().classes, BATCH))


def test_a_class_of_which_nothing_completed_yet_has_the_lengths_of_the_others() -> None:
    rows = healthy()
    rows[Signal.ARRIVALS].append(row(0.5, slo_class="batch"))
    found = signals(BOTH, rows)
    assert found.classes[1].arrivals_rps == 0.5
    assert found.classes[1].output == found.classes[0].output


def test_a_class_that_the_routers_do_not_know_yet_has_no_arrivals() -> None:
    found = signals(BOTH)
    assert [c.arrivals_rps for c in found.classes] == [4.0, 0.0]


def test_few_measured_lengths_say_less_than_a_hint() -> None:
    few = healthy() | {Signal.PROMPT_BUCKETS: histogram(9, 8, slo_class="interactive")}
    few[Signal.PROMPT_SUM] = [row(9 * 7, slo_class="interactive")]
    assert signals(rows=few).classes[0].prompt.mean_tokens == 7
    assert signals(make_view(prompt_hint=Hint(1155, 2734)), few).classes[0].prompt.mean_tokens == 1155


@given(mean=st.floats(1, 1e5), ratio=st.floats(0.5, 5))
def test_expected_lengths_are_a_whole_distribution(mean: float, ratio: float) -> None:
    lengths = expected(Hint(mean, mean * ratio))
    assert sum(share for _, share in lengths.buckets) == pytest.approx(1)
    assert all(share >= -1e-12 for _, share in lengths.buckets)


def test_expected_lengths_have_their_p90() -> None:
    shares = dict(expected(Hint(600, 1024)).buckets)
    assert sum(share for le, share in shares.items() if le <= 1024) == pytest.approx(0.9, abs=0.001)


@given(counts=st.lists(st.floats(0, 1e6), min_size=19, max_size=19), total=st.floats(0, 1e12))
def test_measured_lengths_are_a_whole_distribution_even_where_counts_are_a_hair_apart(
    counts: list[float], total: float
) -> None:
    lengths = measured(zip((*BOUNDS, math.inf), counts, strict=True), total)
    if max(counts) <= 0:
        assert not lengths.buckets
        return
    assert sum(share for _, share in lengths.buckets) == pytest.approx(1)
    assert all(share >= 0 for _, share in lengths.buckets)
    assert 0 <= lengths.mean_tokens <= lengths.buckets[-1][0]


@given(data=st.data())
def test_whatever_prometheus_says_signals_are_finite_or_there_are_none(data: st.DataObject) -> None:
    signal = data.draw(st.sampled_from(Signal))
    value = data.draw(st.floats())
    found = see(rows=bend(healthy(), signal, value))
    if isinstance(found, Blind):
        assert found.reason.startswith("Metrics")
        assert found.message
        return
    (one,), (pool,) = found.classes, found.pools
    figures_ = [one.arrivals_rps, one.prompt.mean_tokens, one.output.mean_tokens, one.verdicts.decided]
    figures_ += [pool.engine.mixed_scale, pool.engine.kv_tokens]
    assert all(math.isfinite(figure) and figure >= 0 for figure in figures_)


def test_what_is_reported_of_a_class() -> None:
    (one,) = figures(make_view(), make_told())
    assert one.good_ratio == pytest.approx(0.98)
    assert one.goodput_rps == pytest.approx(4.0 * 0.98)
    assert (one.ttft_p90_s, one.tpot_p90_s, one.is_missed) == (0.31, 0.033, False)


def test_engines_that_are_not_seen_take_no_figure_from_the_routers() -> None:
    (one,) = figures(make_view(), make_told(without(Signal.ENGINE_AGES)))
    assert one.good_ratio == pytest.approx(0.98)


@pytest.mark.parametrize(
    "rows",
    [pytest.param({}, id="nothing is told"), pytest.param(healthy(rates={"interactive": 0.0}), id="no traffic")],
)
def test_there_are_no_figures_when(rows: Rows) -> None:
    (one,) = figures(make_view(), make_told(rows))
    assert (one.name, one.good_ratio, one.goodput_rps, one.is_missed) == ("interactive", None, None, False)


def test_a_pod_on_its_way_in_is_ready_for_no_time() -> None:
    assert not make_pod_view("p", ready_since_s=None).is_ready_for(0.0, LONG)


def test_a_pool_of_nobody_whose_table_is_unknown_blinds_no_other_of_its_role() -> None:
    spare = make_pool_view("spare", 0, least=0, table="")
    assert [pool.name for pool in signals(make_view(make_pool_view(), spare)).pools] == ["mixed"]
    found = see(make_view(spare))
    assert isinstance(found, Blind)
    assert "has told its step-time table" in found.message
