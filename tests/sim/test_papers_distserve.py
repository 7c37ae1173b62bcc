"""What DistServe's experiments rest on: closed forms, generators, machines, searches whose answer is known."""

from __future__ import annotations

from pathlib import Path
from random import Random
from statistics import fmean

import pytest
from paceline_api.slo import SLOClass
from paceline_engine.tables import load_table
from paceline_planner.papers import distserve_cases as cases
from paceline_planner.papers import distserve_curves as curves
from paceline_planner.papers import distserve_lengths as lengths
from paceline_planner.papers import distserve_parallelism as parallelism
from paceline_planner.papers import distserve_steady as steady
from paceline_planner.papers.distserve_placements import SimulatorsMachines
from paceline_planner.papers.experiment import Finding, Points, crossing, ratio, within
from paceline_planner.papers.measured_machines import distserve_engines
from paceline_planner.search.instances import (
    Demand,
    NoInstance,
    Parallel,
    decode_goodput_rps,
    prefill_goodput_rps,
)
from paceline_planner.search.placement import (
    Cluster,
    Phase,
    Phases,
    high_affinity,
    low_affinity,
    phases,
    segments,
    simulate_pair,
)
from paceline_planner.search.splits import best_split
from paceline_planner.search.trial import NothingServes, highest_rate
from paceline_planner.sim.rides import EngineSpec
from paceline_planner.workloads import Fixed
from paceline_router.facts import Role

CHAT_13B, CHAT_66B = cases.CASES[:2]
EXAMPLE = SLOClass("paper", 0.4, 0.04, target_ratio=0.9)


def small_demand(slo: SLOClass = EXAMPLE) -> Demand:
    return Demand(Fixed(512, 16), slo, rule=200, seeds=(1,), transfer_in_tpot=True, most_rps_per_gpu=20.0)


@pytest.mark.parametrize(("threshold", "guess"), [(3.7, 1.0), (3.7, 3.0), (3.7, 40.0), (0.02, 1.0)])
def test_the_highest_rate_is_found_from_below_and_from_above(threshold: float, guess: float) -> None:
    tried: list[float] = []

    def meets(rate: float) -> bool:
        tried.append(rate)
        return rate <= threshold

    found = highest_rate(meets, guess, tolerance=0.02)
    assert found in tried
    assert threshold / 1.02 <= found <= threshold


def test_no_rate_at_all_is_zero_and_a_bound_ends_the_looking() -> None:
    assert highest_rate(lambda _: False, 1.0) == 0.0
    assert highest_rate(lambda _: True, 1.0, most_rps=8.0) == 8.0


@pytest.mark.parametrize("k", [1.2, 1.43, 1.74, 1.95])
def test_two_stages_overtake_tensor_parallelism_the_later_the_better_it_speeds_up(k: float) -> None:
    d = 0.1
    at = parallelism.overtaken_at(d, k)
    gap = parallelism.twice_the_tensor_ttft_s(d, k, at) - parallelism.two_stages_ttft_s(d, at)
    assert gap == pytest.approx(0.0, abs=1e-6)
    assert parallelism.overtaken_at(d, k - 0.1) < at < k / d
    assert parallelism.twice_the_tensor_ttft_s(d, k, 0.0) == pytest.approx(d / k)
    assert parallelism.two_stages_ttft_s(d, 0.0) == d


@pytest.mark.parametrize("parallel", [Parallel(2, 1), Parallel(1, 2)], ids=str)
def test_simulated_prefill_queues_as_the_closed_form_says(parallel: Parallel) -> None:
    d = parallelism.prefill_s("opt-13b", Parallel(1))
    k = d / parallelism.prefill_s("opt-13b", Parallel(2))
    rate = 0.7 / d
    tensor = parallel.pipeline == 1
    expected = parallelism.twice_the_tensor_ttft_s(d, k, rate) if tensor else parallelism.two_stages_ttft_s(d, rate)
    assert parallelism.mean_ttft_s(4000, ("opt-13b", parallel, rate)) == pytest.approx(expected, rel=0.05)


def test_segments_hold_the_papers_placements_and_never_more_than_a_node() -> None:
    small, large = segments(Cluster(4)), segments(Cluster(8, 3))
    assert (CHAT_13B.prefill, CHAT_13B.decode) in small
    assert (CHAT_66B.prefill, CHAT_66B.decode) in segments(Cluster(8))
    assert (Parallel(3, 3), Parallel(4, 3)) in large
    assert all(p.gpus + d.gpus <= 4 for p, d in small)
    assert all(p.gpus + d.gpus <= 24 for p, d in large)


def test_the_best_split_is_found_without_simulating_what_cannot_win() -> None:
    asked: list[tuple[int, int]] = []

    def simulate(prefills: int, decodes: int, bound: float) -> float:
        asked.append((prefills, decodes))
        return 0.95 * bound

    found = best_split(6, lambda n: 6.5 * n, lambda n: 10.0 * n, simulate)
    assert str(found[0]) == "3P2D"
    assert found[0].per_gpu_rps == pytest.approx(0.95 * 19.5 / 5)
    assert (1, 5) not in asked


def test_splits_of_which_a_phase_serves_nothing_are_not_tried() -> None:
    def simulate(prefills: int, decodes: int, bound: float) -> float:
        raise AssertionError("no split can serve")

    with pytest.raises(NothingServes, match="6 GPUs"):
        best_split(6, lambda n: 0.0, lambda n: 10.0 * n, simulate)


def test_pairs_of_which_a_phase_serves_nothing_are_not_tried() -> None:
    class Nobody:
        def instance(self, role: Role, parallel: Parallel) -> EngineSpec:
            raise AssertionError("no pair can serve")

    found = Phases((Phase(Parallel(1), 0.0), Phase(Parallel(2), 0.0)), (Phase(Parallel(1), 9.0),))
    with pytest.raises(NothingServes, match="no pair"):
        low_affinity(small_demand(), Nobody(), Cluster(3), found, rate_rps=30.0)


@pytest.mark.parametrize(
    ("model", "parallel", "why"),
    [
        pytest.param("opt-13b", Parallel(1, 3), "40 layers do not divide into 3", id="stages of unequal length"),
        pytest.param("opt-13b", Parallel(3), "40 heads", id="heads that the GPUs cannot share"),
        pytest.param("opt-66b", Parallel(1), "no step-time table", id="a shape that nobody timed"),
        pytest.param("opt-175b", Parallel(4), "leave no KV", id="weights that fill the GPUs"),
    ],
)
def test_an_instance_that_cannot_be_is_said_to_be_none(model: str, parallel: Parallel, why: str) -> None:
    with pytest.raises(NoInstance, match=why):
        SimulatorsMachines(model).instance(Role.PREFILL, parallel)


def test_a_search_passes_over_shapes_without_an_instance_and_over_nothing_else() -> None:
    real = SimulatorsMachines("opt-13b")
    assert [p.parallel for p in phases(small_demand(), real, [Parallel(1), Parallel(3)]).decode] == [Parallel(1)]

    class Broken:
        def instance(self, role: Role, parallel: Parallel) -> EngineSpec:
            raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        phases(small_demand(), Broken(), [Parallel(1)])


def test_the_search_finds_the_pair_that_simulation_says_is_best() -> None:
    machines = SimulatorsMachines("opt-13b")
    shapes = [Parallel(1), Parallel(2)]
    found = phases(small_demand(), machines, shapes)
    low = low_affinity(small_demand(), machines, Cluster(3), found, rate_rps=30.0)
    simulated = [
        simulate_pair(small_demand(), machines, p, d, 5.0).per_gpu_rps
        for p in shapes
        for d in shapes
        if p.gpus + d.gpus <= 3
    ]
    assert low.pair.per_gpu_rps == pytest.approx(max(simulated), rel=0.04)
    assert low.copies * low.pair.goodput_rps >= 30.0 > (low.copies - 1) * low.pair.goodput_rps
    high = high_affinity(found, rate_rps=30.0)
    assert high.prefills * high.prefill.goodput_rps >= 30.0
    assert high.prefill.per_gpu_rps == max(p.per_gpu_rps for p in found.prefill)


def test_an_objective_below_a_lone_step_is_served_by_nothing() -> None:
    with pytest.raises(NothingServes, match="prefill"):
        phases(small_demand(SLOClass("paper", 0.01, 0.04)), SimulatorsMachines("opt-13b"), [Parallel(1)])


def test_a_phase_alone_sustains_more_than_both_on_one_pair() -> None:
    machines, asked = SimulatorsMachines("opt-13b"), small_demand()
    prefill = prefill_goodput_rps(asked, machines.instance(Role.PREFILL, Parallel(1)))
    pair = simulate_pair(asked, machines, Parallel(1), Parallel(1), prefill)
    assert 0 < pair.goodput_rps <= 1.05 * prefill
    assert decode_goodput_rps(asked, machines.instance(Role.DECODE, Parallel(1))) >= 0.95 * pair.goodput_rps


def test_longbench_has_the_published_means_and_never_exceeds_the_context() -> None:
    rng, source = Random(7), lengths.LongBench()
    drawn = [source.draw(rng) for _ in range(40_000)]
    prompt, output = lengths.MEAN_TOKENS["summarisation"]
    assert fmean(p for p, _ in drawn) == pytest.approx(prompt, rel=0.01)
    assert fmean(o for _, o in drawn) == pytest.approx(output, rel=0.03)
    assert max(p + o for p, o in drawn) <= source.total_tokens


def test_a_model_without_a_fit_is_the_roofline_as_much_slower_as_the_engine() -> None:
    fit = load_table("a100-sxm-80gb.distserve", "opt-66b", 4)
    assert cases.anchored_table(fit.name, "opt-66b", 4, 1).linear == fit.linear
    ours = cases.anchored_table("a100-sxm-80gb.distserve", "opt-175b", 8, 1)
    vllm = cases.anchored_table("a100-sxm-80gb.distserve-vllm", "opt-175b", 8, 1)
    assert vllm.seconds4(1024, 1024**2 / 2, 0, 0) > 1.3 * ours.seconds4(1024, 1024**2 / 2, 0, 0)
    for (tensor, stages), published in (((8, 1), 59_520), ((3, 3), 76_192), ((4, 3), 126_160)):
        tokens = cases.anchored_table("a100-sxm-80gb.distserve", "opt-175b", tensor, stages).kv_tokens
        assert tokens == pytest.approx(published, rel=0.03)


def test_each_gpu_of_a_decode_instance_copies_its_own_part_of_the_kv() -> None:
    one, four = (distserve_engines("opt-66b", (4, 1), d)[1].spec.machine for d in ((2, 1), (2, 2)))
    assert four.kv_bytes_per_s == 2 * one.kv_bytes_per_s


def test_points_that_a_plot_does_not_show_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / cases.DIGITISED
    file.parent.mkdir()
    file.write_text("figure,system,x,attainment_pct\nA,vLLM,2,80.5\nA,vLLM,1,90\nA,DistServe,1,\n")
    assert cases.digitised(tmp_path) == {("A", "vLLM"): ((1.0, 90.0), (2.0, 80.5))}


def test_a_crossing_is_interpolated_and_needs_both_sides() -> None:
    falling = ((1.0, 95.0), (2.0, 85.0), (3.0, 80.0))
    assert crossing(falling, 90.0) == pytest.approx(1.5)
    assert crossing(falling, 96.0) is None
    assert crossing(falling, 70.0) is None


@pytest.mark.parametrize(
    ("limit", "least", "most"),
    [
        pytest.param(1.3, 1.3 / 1.05, 1.3, id="between two of the rates, where a curve falls at once"),
        pytest.param(9.0, 9.0 / 1.05, 9.0, id="above them all"),
        pytest.param(0.1, 0.1 / 1.05, 0.1, id="below them all"),
        pytest.param(0.0, 0.0, 0.0, id="nowhere"),
    ],
)
def test_a_steady_capacity_is_found_between_the_rates_of_the_curve(limit: float, least: float, most: float) -> None:
    asked: list[float] = []

    def at(rate: float) -> tuple[float, bool]:
        asked.append(rate)
        return (100.0, False) if rate <= limit else (0.0, True)

    found = steady.curve_and_capacity(at, (0.25, 1.0, 2.0, 2.5))
    assert least <= found.capacity_rps <= most
    assert len(asked) == len(set(asked)) == len(found.points)
    assert {0.25, 1.0, 2.0, 2.5} <= {rate for rate, _ in found.points}
    assert found.void == {rate for rate in asked if rate > limit}


def test_a_steady_capacity_is_below_the_first_rate_that_misses() -> None:
    wobbles = {0.25: 95.0, 1.0: 89.0, 2.0: 91.0}
    found = steady.curve_and_capacity(lambda rate: (wobbles.get(rate, 80.0), False), (0.25, 1.0, 2.0))
    assert found.capacity_rps == 0.25
    assert found.most_good_rps == pytest.approx(1.82)


def test_a_ratio_that_does_not_exist_is_no_figure_and_misses_where_it_is_judged() -> None:
    falling, flat = ((1.0, 95.0), (2.0, 85.0)), ((1.0, 95.0), (2.0, 94.0))
    sweeps: dict[cases.System, curves.Sweep] = {
        "vLLM": curves.Sweep(falling, falling, (), (falling,)),
        "DistServe": curves.Sweep(flat, flat, (), (flat,)),
    }
    published: Points = ((1.0, 95.0),)
    found = curves.judge(CHAT_13B, sweeps, {"vLLM": published, "DistServe": published})[0]
    assert found.ours is None
    assert not found.held
    assert "does not cross" in found.note
    assert Finding("shown only", 2.0, ratio(1.0, 0.0)).held
    assert not within("judged", 2.0, ratio(1.0, 0.0), 0.2).held
    assert within("judged", 2.0, ratio(4.2, 2.0), 0.2).held
