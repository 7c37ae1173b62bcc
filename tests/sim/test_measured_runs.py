"""The simulator against real runs on A100s: DistServe's engine and vLLM of 2023, with the same arrivals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from paceline_engine.step_time import HostTerm
from paceline_engine.tables import load_table
from paceline_planner.papers import measured_machines as machines
from paceline_planner.papers.measured_holdout import cost, hold_out
from paceline_planner.papers.measured_runs import (
    FILE,
    Comparison,
    Latency,
    MeasuredRun,
    distance,
    errors,
    fleet,
    read_runs,
    replay,
)
from paceline_planner.sim.rides import Job

ANOTHER_VERSION = "vllm 11 at 2/s"


@pytest.fixture(scope="module")
def comparisons(traces: Path) -> list[Comparison]:
    return [replay(run) for run in read_runs(traces / FILE)]


@pytest.mark.requires("traces")
def test_attainment_is_that_of_the_real_runs(comparisons: list[Comparison]) -> None:
    assert len(comparisons) == 11
    assert errors(comparisons).mean_points <= 2.0
    for c in comparisons:
        assert max(map(abs, c.errors_points)) <= 8.0, c.run.name


@pytest.mark.requires("traces")
def test_latencies_are_those_of_the_real_runs(comparisons: list[Comparison]) -> None:
    for c in comparisons:
        for name, ratio in c.ratios.items():
            assert ratio == pytest.approx(1.0, abs=0.10), (c.run.name, name)
        assert c.distances["ttft"] <= 0.10, c.run.name


@pytest.mark.requires("traces")
def test_runs_that_no_constant_was_read_from_are_no_worse(comparisons: list[Comparison]) -> None:
    held_out = ("distserve 2111 at 4.5/s", "distserve 2111 at 7.5/s", ANOTHER_VERSION)
    kept = errors([c for c in comparisons if c.run.name in held_out])
    assert kept.mean_points <= 2.0
    assert kept.max_points <= 6.0


@pytest.mark.requires("traces")
def test_a_runs_version_of_vllm_shows_in_its_batches(comparisons: list[Comparison]) -> None:
    assert {c.run.name for c in comparisons if c.run.packs} == {ANOTHER_VERSION}


@pytest.mark.parametrize(
    ("second_prompt", "second_first_token_s", "packs"),
    [
        pytest.param(800, 0.3004, False, id="prompts of nearly one length are put together by both versions"),
        pytest.param(500, 0.3004, True, id="300 tokens of padding in one batch: the earlier version, without padding"),
        pytest.param(500, 0.3304, False, id="first tokens 30 ms apart are two batches"),
    ],
)
def test_only_a_version_without_padding_puts_unlike_prompts_together(
    second_prompt: int, second_first_token_s: float, packs: bool
) -> None:
    jobs = (Job(0.0, 900, 5, "chat"), Job(0.1, second_prompt, 5, "chat"))
    measured = (Latency(0.3, 0.03), Latency(second_first_token_s - 0.1, 0.03))
    assert MeasuredRun("vllm", "11", 1.0, jobs, measured).packs is packs


def test_the_earlier_version_takes_the_published_time_for_a_prompt_and_the_later_one_less() -> None:
    published = replace(load_table("a100-sxm-80gb.distserve-vllm", "opt-13b", 1), host=HostTerm())
    later, earlier = (
        fleet("vllm", "11", packs=packs).engines[0].spec.machine.table.seconds4(1000, 5e5, 0, 0)
        for packs in (False, True)
    )
    assert earlier == pytest.approx(published.seconds4(1000, 5e5, 0, 0))
    assert later == pytest.approx(machines.VLLM_2023.prefill_ratio * earlier)


def test_each_further_stage_brings_its_gpus_memory_and_no_more_weights() -> None:
    for model, tensor, stages, published in (
        ("opt-13b", 1, 2, 163_008),
        ("opt-13b", 2, 2, 356_752),
        ("opt-66b", 2, 2, 78_512),
    ):
        table = load_table("a100-sxm-80gb.distserve", model, tensor)
        assert machines.kv_tokens(table, stages) == pytest.approx(published, rel=5e-3)


def test_a_run_left_out_is_replayed_with_the_constants_that_the_others_were_made_with() -> None:
    truth = replace(machines.VLLM_2023, host=HostTerm(sequence_s=0.00043), prefill_ratio=0.89)
    runs = []
    for rate in (1.0, 2.0):
        jobs = tuple(Job(i / rate, 300 + 20 * i, 40 + i, "chat") for i in range(12))
        blank = MeasuredRun("vllm", "11", rate, jobs, (Latency(0.1, 0.03),) * len(jobs))
        runs.append(replace(blank, measured=replay(blank, constants=machines.Constants(vllm=truth)).simulated))
    for held in hold_out(runs):
        assert held.constants.vllm.host == truth.host
        assert held.constants.vllm.prefill_ratio == truth.prefill_ratio
        assert cost(held.comparison) == 0.0


def test_a_machine_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="deepspeed"):
        fleet("deepspeed", "11")
    with pytest.raises(ValueError, match="configuration 12"):
        fleet("vllm", "12")


def test_the_distance_of_distributions_is_their_largest_gap() -> None:
    assert distance([1, 2, 3, 4], [1, 2, 3, 4]) == 0.0
    assert distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    assert distance([1, 2], [3, 4]) == 1.0


def test_a_file_of_runs_is_read_by_run_and_in_order_of_issue(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    head = "system,cfg_ptp_ppp_dtp_dpp,rate_rps,n,prompt_len,output_len,issue_s,ttft_ms,tpot_ms,latency_ms"
    file.write_text(
        f"{head}\nvllm,11,2,1,9,4,0.0,50,10,80\nvllm,11,1,2,7,3,1.5,40,20,80\nvllm,11,1,2,8,2,0.5,30,25,55\n"
    )
    slow, fast = read_runs(file)
    assert (slow.name, fast.name) == ("vllm 11 at 1/s", "vllm 11 at 2/s")
    assert [(j.arrival_s, j.prompt_tokens, j.output_tokens) for j in slow.jobs] == [(0.5, 8, 2), (1.5, 7, 3)]
    assert slow.measured == (Latency(0.03, 0.025), Latency(0.04, 0.02))
