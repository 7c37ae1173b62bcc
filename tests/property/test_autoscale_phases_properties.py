"""The forecast at any size and load: within 0..1, never lower with a replica more, never higher with more load."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite

from hypothesis import given, settings
from hypothesis import strategies as st
from paceline_api.slo import SLOClass
from paceline_engine.tables import load_table
from paceline_router.autoscale.phases import Forecaster
from paceline_router.autoscale.queueing import Line, Sharing
from paceline_router.autoscale.signals import (
    ClassSignals,
    EngineSignals,
    Lengths,
    PoolSignals,
    ServiceSignals,
)
from paceline_router.autoscale.workload import moment, points
from paceline_router.facts import Role

TABLES = [
    ("a100-sxm-80gb", "llama-3.1-8b", 1),
    ("a100-sxm-80gb", "llama-2-70b", 4),
    ("a100-sxm-80gb", "opt-66b", 2),
    ("a100-sxm-80gb.distserve-vllm", "opt-13b", 1),
    ("h100-sxm", "qwen3-32b", 2),
]
ALMOST = 1e-4  # sizes beyond the first that is as good as certain are not looked at
BOUNDS = tuple(float(2**n) for n in range(18))


@st.composite
def lengths(draw: st.DrawFn) -> Lengths:
    first = draw(st.integers(0, 13))
    weights = draw(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4))
    total = sum(weights)
    shares = {first + i: w / total for i, w in enumerate(weights)}
    buckets = tuple((bound, shares.get(n, 0.0)) for n, bound in enumerate(BOUNDS))
    low = sum(share * BOUNDS[max(n - 1, 0)] for n, share in shares.items())
    high = sum(share * BOUNDS[n] for n, share in shares.items())
    return Lengths(low + draw(st.floats(0.0, 1.0)) * (high - low), buckets)


@st.composite
def classes(draw: st.DrawFn) -> tuple[ClassSignals, ...]:
    count = draw(st.integers(1, 3))
    return tuple(
        ClassSignals(
            SLOClass(f"class-{i}", draw(st.floats(0.05, 60.0)), draw(st.floats(0.005, 0.5)), 0.9),
            draw(st.floats(0.01, 60.0)),
            draw(lengths()),
            draw(lengths()),
        )
        for i in range(count)
    )


@st.composite
def engines(draw: st.DrawFn) -> EngineSignals:
    table = load_table(*draw(st.sampled_from(TABLES)))
    return EngineSignals(
        table,
        draw(st.floats(0.5, 3.0)),
        draw(st.floats(-0.01, 0.05)),
        draw(st.floats(0.5, 3.0)),
        draw(st.floats(-0.01, 0.05)),
        draw(st.sampled_from([0, 2000, 100_000])),
    )


@st.composite
def services(draw: st.DrawFn) -> ServiceSignals:
    roles = draw(
        st.sampled_from([(Role.PREFILL, Role.DECODE), (Role.MIXED,), (Role.PREFILL, Role.DECODE, Role.DECODE)])
    )
    by_role = {role: draw(engines()) for role in dict.fromkeys(roles)}
    pools = tuple(PoolSignals(f"pool-{i}", role, 1, 1, 1, 1, 64, by_role[role]) for i, role in enumerate(roles))
    return ServiceSignals(draw(classes()), pools, 60.0)


def times(signals: ServiceSignals, factor: float) -> ServiceSignals:
    return replace(signals, classes=tuple(replace(c, arrivals_rps=factor * c.arrivals_rps) for c in signals.classes))


@settings(max_examples=120, deadline=None)
@given(services(), st.data())
def test_a_replica_more_never_lowers_what_any_class_attains(signals: ServiceSignals, data: st.DataObject) -> None:
    model = Forecaster(signals)
    sizes = {pool.name: data.draw(st.integers(0, 40)) for pool in signals.pools}
    grown = sizes | {(name := data.draw(st.sampled_from(sorted(sizes)))): sizes[name] + 1}
    before, after = model.forecast(sizes), model.forecast(grown)
    for name_, attained in before.attained.items():
        assert after.attained[name_].ttft >= attained.ttft - ALMOST
        assert after.attained[name_].tpot >= attained.tpot - ALMOST
        assert after.room[name_] >= before.room[name_] - ALMOST


@settings(max_examples=120, deadline=None)
@given(services(), st.integers(1, 40), st.floats(1.0, 20.0))
def test_more_of_every_class_never_raises_what_any_attains(
    signals: ServiceSignals, replicas: int, factor: float
) -> None:
    sizes = {pool.name: replicas for pool in signals.pools}
    before = Forecaster(signals).forecast(sizes).attained
    after = Forecaster(times(signals, factor)).forecast(sizes).attained
    learned = Forecaster(signals).forecast(sizes, dict.fromkeys(Role, factor)).attained
    for name, attained in before.items():
        for other in (after[name], learned[name]):
            assert other.ttft <= attained.ttft + ALMOST
            assert other.tpot <= attained.tpot + ALMOST


@settings(max_examples=120, deadline=None)
@given(services(), st.integers(0, 40), st.floats(0.0, 1e4))
def test_every_figure_is_a_share_and_the_unloaded_fleet_attains_most(
    signals: ServiceSignals, replicas: int, factor: float
) -> None:
    model = Forecaster(times(signals, factor))
    found = model.forecast({pool.name: replicas for pool in signals.pools})
    best = model.unloaded()
    for name, attained in found.attained.items():
        for share in (attained.ttft, attained.tpot, attained.joint, found.room[name]):
            assert isfinite(share)
            assert 0.0 <= share <= 1.0
        if replicas:
            assert attained.joint <= best[name].joint + ALMOST


@given(st.integers(1, 64), st.floats(0.0, 5.0), st.floats(0.0, 200.0), st.floats(1.0, 2.0))
def test_lateness_falls_with_servers_and_patience_and_grows_with_load(
    servers: int, load: float, patience: float, more: float
) -> None:
    late = Line(servers, load).late_share(patience)
    assert 0.0 <= late <= 1.0
    assert Line(servers, load * more).late_share(patience) >= late - 1e-9
    assert Line(servers, load).late_share(patience * more) <= late + 1e-9
    one_more = Line(servers + 1, load * servers / (servers + 1)).late_share(patience * (servers + 1) / servers)
    assert one_more <= late + 1e-9


@given(st.floats(0.001, 0.1), st.floats(0.0, 0.001), st.floats(0.1, 20_000.0), st.floats(1.0, 3.0), st.integers(1, 16))
def test_a_population_grows_with_what_is_asked_of_it(
    gap_s: float, slope_s: float, tokens_per_s: float, more: float, pooled: int
) -> None:
    sharing = Sharing([gap_s + slope_s * m for m in range(1, 65)])
    light, heavy = sharing.population(tokens_per_s, pooled), sharing.population(tokens_per_s * more, pooled)
    assert heavy.mean_gap_s >= light.mean_gap_s - 1e-9
    for m in range(65):
        assert heavy.at_most(m) <= light.at_most(m) + 1e-9
    assert light.in_time(3.0) >= light.in_time(0.0)


@given(lengths(), st.integers(1, 12))
def test_points_keep_the_shares_the_bounds_and_the_mean(of: Lengths, per_bucket: int) -> None:
    found = points(of, per_bucket)
    assert abs(moment(found, 0) - 1.0) < 1e-9
    assert abs(moment(found, 1) - of.mean_tokens) <= 1e-6 * of.mean_tokens + 0.5 * of.buckets[0][1]
    for bound, _ in of.buckets:
        within = sum(share for tokens, share in found if tokens <= bound * (1 + 1e-12))
        assert within >= sum(share for upper, share in of.buckets if upper <= bound) - 1e-9
