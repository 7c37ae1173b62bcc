"""The forecast of a pool: textbook queues it must agree with, and what binds in services of known shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import exp, factorial
from random import Random
from statistics import fmean

import pytest
from paceline_api.slo import SLOClass
from paceline_engine.tables import load_table
from paceline_router.autoscale.machine import mean_fit
from paceline_router.autoscale.phases import AS_PREDICTED, Factors, Forecast, Forecaster
from paceline_router.autoscale.queueing import Line, Sharing, erlang_b
from paceline_router.autoscale.signals import (
    Attained,
    ClassSignals,
    EngineSignals,
    Lengths,
    PoolSignals,
    ServiceSignals,
)
from paceline_router.autoscale.workload import Context, points
from paceline_router.facts import Role

A100 = EngineSignals(load_table("a100-sxm-80gb", "llama-3.1-8b"))
DISAGGREGATED = {"prefill": Role.PREFILL, "decode": Role.DECODE}
CHAT_PROMPT = Lengths(770.0, ((128.0, 0.06), (256.0, 0.1), (512.0, 0.23), (1024.0, 0.32), (2048.0, 0.29)))
CHAT_OUTPUT = Lengths(186.0, ((16.0, 0.17), (64.0, 0.29), (128.0, 0.17), (256.0, 0.15), (512.0, 0.12), (1024.0, 0.1)))


def fixed(tokens: int) -> Lengths:
    bound = 1
    while bound < tokens:
        bound *= 2
    return Lengths(float(tokens), ((bound / 2, 0.0), (float(bound), 1.0)))


def make_class(rate_rps: float = 8.0, **over: object) -> ClassSignals:
    slo = SLOClass(**({"name": "interactive", "ttft_s": 0.4, "tpot_s": 0.04} | over))  # type: ignore[arg-type]  # a factory
    return ClassSignals(slo, rate_rps, CHAT_PROMPT, CHAT_OUTPUT)


def make_service(
    *classes: ClassSignals, roles: dict[str, Role] = DISAGGREGATED, engine: EngineSignals = A100
) -> ServiceSignals:
    pools = tuple(PoolSignals(name, role, 1, 1, 1, 1, 16, engine) for name, role in roles.items())
    return ServiceSignals(classes or (make_class(),), pools, 60.0)


@pytest.mark.parametrize(
    ("servers", "erlangs", "blocked"),
    [
        pytest.param(1, 1.0, 0.5, id="one server offered one erlang"),
        pytest.param(2, 1.0, 0.2, id="two servers offered one"),
        pytest.param(10, 5.0, 0.018385, id="ten servers offered five"),
        pytest.param(3, 0.0, 0.0, id="nobody comes"),
    ],
)
def test_erlang_b_is_the_textbook_s(servers: int, erlangs: float, blocked: float) -> None:
    assert erlang_b(servers, erlangs) == pytest.approx(blocked, rel=1e-4)


@pytest.mark.parametrize("patience", [0.1, 1.0, 5.0])
def test_lateness_is_between_a_queue_in_order_and_one_that_turns_the_late_away(patience: float) -> None:
    load = 0.7
    in_order = load * exp(-(1 - load) * patience)  # M/M/1
    turned_away = (1 - load) * in_order / (1 - load * in_order)  # Boots and Tijms, exact for M/M/1
    assert Line(1, load).late_share(patience) == pytest.approx((in_order * turned_away) ** 0.5)


def test_lateness_passes_through_saturation_without_a_step() -> None:
    below, at, above = (Line(4, load).late_share(20.0) for load in (1 - 1e-7, 1.0, 1 + 1e-7))
    assert below == pytest.approx(at, rel=1e-4)
    assert above == pytest.approx(at, rel=1e-4)
    assert Line(4, 50.0).late_share(20.0) == pytest.approx(0.98**0.5, rel=1e-3)


def test_a_machine_of_fixed_speed_has_mm1_s_population() -> None:
    sharing = Sharing([0.01 * m for m in range(1, 201)])
    population = sharing.population(50.0, 1)  # half of 100 tokens a second
    for m in range(6):
        assert population.at_most(m) == pytest.approx(1 - 0.5 ** (m + 1))


def test_a_machine_that_never_slows_down_has_a_poisson_population() -> None:
    population = Sharing([0.01] * 100).population(500.0, 1)
    assert population.at_most(2) == pytest.approx(exp(-5) * sum(5**m / factorial(m) for m in range(3)))
    assert population.mean_gap_s == pytest.approx(0.01)


def test_balanced_replicas_fluctuate_less() -> None:
    sharing = Sharing([0.02 + 0.0001 * m for m in range(1, 257)])
    alone, pooled = (sharing.population(3000.0, n) for n in (1, 8))
    usual = sharing.within(alone.mean_gap_s)
    assert pooled.at_most(1.2 * usual) > alone.at_most(1.2 * usual)
    assert pooled.at_most(0.8 * usual) < alone.at_most(0.8 * usual)


@pytest.mark.parametrize("tokens", [1, 20, 512, 4000])
def test_one_length_stays_within_its_bucket_and_keeps_its_mean(tokens: int) -> None:
    found = points(fixed(tokens), 8)
    assert sum(share * length for length, share in found) == pytest.approx(tokens)
    assert all(tokens / 2 <= length <= 2 * tokens for length, _ in found)


def test_without_traffic_nothing_is_missed() -> None:
    signals = make_service(make_class(0.0), make_class(0.0, name="batch"))
    forecast = Forecaster(signals).forecast({"prefill": 0, "decode": 0})
    assert {name: a.joint for name, a in forecast.attained.items()} == {"interactive": 1.0, "batch": 1.0}
    assert Forecaster(signals).unloaded()["interactive"].joint == 1.0


@pytest.mark.parametrize(
    ("over", "ttft", "tpot"),
    [
        pytest.param({}, (0.99, 1.0), (1.0, 1.0), id="limits above every prompt and every step: all"),
        pytest.param({"ttft_s": 0.02}, (0.0, 0.0), (1.0, 1.0), id="a TTFT limit below the shortest prompt: none"),
        pytest.param({"ttft_s": 0.08}, (0.4, 0.8), (1.0, 1.0), id="a TTFT limit amid the prompts: those below it"),
        pytest.param(
            {"ttft_s": 0.04, "ttft_s_per_1k_prompt_tokens": 0.1},
            (0.9, 1.0),
            (1.0, 1.0),
            id="limits that grow with them",
        ),
        pytest.param({"tpot_s": 0.01}, (0.99, 1.0), (0.0, 0.01), id="a TPOT limit below one step: only single tokens"),
    ],
)
def test_an_unloaded_fleet_attains_what_the_lengths_allow(
    over: dict[str, float], ttft: tuple[float, float], tpot: tuple[float, float]
) -> None:
    found = Forecaster(make_service(make_class(**over))).unloaded()["interactive"]
    assert ttft[0] <= found.ttft <= ttft[1]
    assert tpot[0] <= found.tpot <= tpot[1]


@pytest.mark.parametrize(
    ("service", "sizes", "binding"),
    [
        pytest.param(make_service(make_class(28.0)), {"prefill": 1, "decode": 4}, "ttft", id="too few prefill"),
        pytest.param(
            make_service(make_class(32.0, tpot_s=0.25)),
            {"prefill": 8, "decode": 1},
            "kv",
            id="no slot left on a replica",
        ),
        pytest.param(
            make_service(make_class(24.0, tpot_s=0.018)),
            {"prefill": 8, "decode": 1},
            "tpot",
            id="too large a decode batch",
        ),
        pytest.param(
            make_service(make_class(8.0), engine=replace(A100, kv_tokens=20_000)),
            {"prefill": 8, "decode": 1},
            "kv",
            id="little KV on a decode replica",
        ),
        pytest.param(
            make_service(make_class(11.0), roles={"mixed": Role.MIXED}),
            {"mixed": 1},
            "ttft",
            id="a mixed replica keeps TPOT",
        ),
    ],
)
def test_the_binding_objective_is_the_one_that_more_of_its_role_mends(
    service: ServiceSignals, sizes: dict[str, int], binding: str
) -> None:
    model = Forecaster(service)
    forecast = model.forecast(sizes)
    assert weakest(forecast) == binding
    assert forecast.attained["interactive"].joint < 0.9
    role = "mixed" if "mixed" in sizes else "prefill" if binding == "ttft" else "decode"
    assert model.forecast(sizes | {role: 2 * sizes[role]}).attained["interactive"].joint > 0.95


def attained(service: ServiceSignals, sizes: dict[str, int], factors: Factors = AS_PREDICTED) -> Mapping[str, Attained]:
    return Forecaster(service).forecast(sizes, factors).attained


def weakest(forecast: Forecast) -> str:
    """What most requests miss; KV that they wait for is a part of the TTFT."""
    attained, room = forecast.attained["interactive"], forecast.room["interactive"]
    parts = {"ttft": attained.ttft / room, "tpot": attained.tpot, "kv": room}
    return min(parts, key=lambda part: parts[part])


@pytest.mark.parametrize("missing", ["prefill", "decode"])
def test_a_role_without_replicas_attains_nothing(missing: str) -> None:
    sizes = {"prefill": 4, "decode": 4} | {missing: 0}
    assert attained(make_service(), sizes)["interactive"].joint == 0.0


def test_a_factor_is_a_load_that_only_its_role_sees() -> None:
    sizes = {"prefill": 2, "decode": 1}
    usual = attained(make_service(make_class(20.0)), sizes)["interactive"]
    doubled = attained(make_service(make_class(20.0)), sizes, {Role.PREFILL: 2.0})["interactive"]
    assert doubled.ttft < usual.ttft - 0.1
    assert doubled.tpot == usual.tpot
    everywhere = dict.fromkeys(Role, 2.0)
    assert attained(make_service(make_class(20.0)), sizes, everywhere) == attained(
        make_service(make_class(40.0)), sizes
    )


def test_pools_of_one_role_and_engine_are_one_pool() -> None:
    two = make_service(make_class(20.0), roles={"a": Role.PREFILL, "b": Role.PREFILL, "decode": Role.DECODE})
    one = make_service(make_class(20.0), roles={"a": Role.PREFILL, "decode": Role.DECODE})
    assert attained(two, {"a": 1, "b": 2, "decode": 1}) == attained(one, {"a": 3, "decode": 1})


def test_unlike_pools_of_one_role_share_its_load_by_capacity() -> None:
    service = make_service(make_class(20.0), roles={"a": Role.PREFILL, "b": Role.PREFILL, "decode": Role.DECODE})
    slow = replace(service.pools[1], engine=replace(A100, mixed_scale=2.0))
    unlike = Forecaster(replace(service, pools=(service.pools[0], slow, service.pools[2])))
    found = unlike.forecast({"a": 2, "b": 2, "decode": 1})
    three = Forecaster(service).forecast({"a": 3, "b": 0, "decode": 1})
    assert found.utilisation[Role.PREFILL] == pytest.approx(three.utilisation[Role.PREFILL], rel=0.05)


def test_a_class_with_time_waits_for_one_without_and_not_the_other_way_round() -> None:
    both = make_service(make_class(10.0), make_class(14.0, name="batch", ttft_s=30.0, tpot_s=0.25))
    found = attained(both, {"prefill": 2, "decode": 2})
    one_queue = attained(make_service(make_class(24.0)), {"prefill": 2, "decode": 2})
    assert found["batch"].joint > 0.99
    assert found["interactive"].ttft > one_queue["interactive"].ttft


def test_short_answers_feel_a_fluctuating_batch_more_than_long_ones() -> None:
    classes = (
        replace(make_class(5.0, name="short", tpot_s=0.019), output=fixed(4)),
        replace(make_class(20.0, name="long", tpot_s=0.019), output=fixed(200)),
    )
    found = attained(make_service(*classes), {"prefill": 16, "decode": 1})
    assert 0.5 < found["short"].tpot < found["long"].tpot - 0.01


def test_mixed_replicas_keep_their_pace_at_the_cost_of_the_first_token() -> None:
    service = make_service(make_class(11.0), roles={"mixed": Role.MIXED})
    found = Forecaster(service).forecast({"mixed": 1})
    assert found.attained["interactive"].tpot > 0.99
    assert found.attained["interactive"].ttft < 0.8
    assert found.utilisation[Role.MIXED] > 0.85


def test_a_saturated_pool_attains_next_to_nothing_and_less_the_more_it_is_asked() -> None:
    found = [
        attained(make_service(make_class(rate)), {"prefill": 64, "decode": 1})["interactive"] for rate in (40.0, 80.0)
    ]
    assert 0.0 < found[1].ttft < found[0].ttft < 0.01


@pytest.mark.parametrize(
    ("deviation", "fits"),
    [
        pytest.param(0.0, 11.5, id="of one size: half of one does not fit, on average"),
        pytest.param(1000.0, 12.0, id="exponential: as many as on average fit"),
    ],
)
def test_so_many_requests_fit_as_a_renewal_process_counts(deviation: float, fits: float) -> None:
    assert mean_fit(12_000.0, Context(1000.0, deviation)) == pytest.approx(fits)


def test_what_fits_is_what_a_random_sequence_of_requests_fills() -> None:
    rng = Random(1)
    counts = []
    for _ in range(4000):
        left, count = 17_000.0, 0
        while (left := left - rng.gammavariate(1.6, 850.0)) >= 0.0:
            count += 1
        counts.append(count)
    assert mean_fit(17_000.0, Context(1.6 * 850.0, 1.6**0.5 * 850.0)) == pytest.approx(fmean(counts), rel=0.01)
