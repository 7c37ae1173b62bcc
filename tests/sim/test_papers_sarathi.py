"""Sarathi-Serve's experiments: the search, the lengths, the machines, and the orders that the paper is about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from engines import BATCH, make_replica, make_request
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline_planner.papers.sarathi_ablation import KINDS, NO_LIMIT_S, system
from paceline_planner.papers.sarathi_bubbles import ORCA_128, UNIFORM, bubble_ratio
from paceline_planner.papers.sarathi_machines import FALCON, FALCON_TP8, LLAMA, ORCA, SARATHI, VLLM, YI, table
from paceline_planner.papers.sarathi_pipeline import decode_s
from paceline_planner.papers.sarathi_stalls import emitted
from paceline_planner.papers.sarathi_steps import prompt_s
from paceline_planner.papers.sarathi_trial import Arxiv, Case, Load, Search, Trial, find, run, search

NOWHERE = Path("no-trace-is-read")
ARXIV = Load("arxiv", NOWHERE, 64, NO_LIMIT_S)


def make_trial(rate_rps: float, *, holds: bool) -> Trial:
    return Trial(rate_rps, 0.0, 0.0, holds)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.05, 20.0), st.floats(0.5, 2.0))
def test_the_search_ends_just_below_the_highest_rate_that_holds(limit: float, guess: float) -> None:
    found = search(lambda rate: make_trial(rate, holds=rate <= limit), guess, 0.03)
    assert limit / 1.03 <= found.rate_rps <= limit
    rates = [t.rate_rps for t in found.trials]
    assert rates == sorted(set(rates))


def test_a_load_that_never_holds_has_no_capacity() -> None:
    assert search(lambda rate: make_trial(rate, holds=False), 1.0, 0.03).rate_rps == 0.0


def test_summaries_have_the_published_lengths() -> None:
    rng, source = Random(7), Arxiv()
    prompts, outputs = np.array([source.draw(rng) for _ in range(30_000)]).T
    assert (prompts + outputs).max() <= 16384
    for of, p50, p90, deviation in ((prompts, 7059, 12985, 3638), (outputs, 208, 371, 265)):
        assert np.median(of) == pytest.approx(p50, rel=0.03)
        assert np.quantile(of, 0.9) == pytest.approx(p90, rel=0.03)
        assert of.std() == pytest.approx(deviation, rel=0.08)


@pytest.mark.parametrize(
    ("tokens", "chunk", "measured_ms", "off"),
    [
        pytest.param(4095, 2048, 794, 0.03, id="chunks of 2048, which set the board's factor"),
        pytest.param(16383, 2048, 3652, 0.03, id="the same, long"),
        pytest.param(4095, 512, 922, 0.05, id="chunks of 512, held out"),
        pytest.param(4095, 16384, 775, 0.05, id="a whole prompt, held out"),
    ],
)
def test_prompts_of_yi_take_what_figure_14_shows(tokens: int, chunk: int, measured_ms: float, off: float) -> None:
    assert prompt_s((tokens, chunk)) == pytest.approx(1e-3 * measured_ms, rel=off)


def test_decodes_of_falcon_take_what_figure_13_shows() -> None:
    assert decode_s(FALCON_TP8, 8) == pytest.approx(0.19, rel=0.02)  # sets the all-reduce between machines
    assert decode_s(FALCON, 8) == pytest.approx(0.085, rel=0.15)
    assert decode_s(FALCON, 128) == pytest.approx(0.15, rel=0.15)


def test_a_step_never_gets_faster_with_more_work() -> None:
    for deployment in (YI, LLAMA, FALCON):
        of = table(deployment)
        prefills = [of.seconds4(n, n * n / 2, 0, 0) for n in (1, 128, 512, 2048, 8192)]
        decodes = [of.seconds4(0, 0.0, b, 1024 * b) for b in (1, 8, 32, 128)]
        assert prefills == sorted(prefills)
        assert decodes == sorted(decodes)


def test_chunked_only_takes_turns_and_mixes_nothing() -> None:
    replica = make_replica("chunked-only")
    for i in range(3):
        replica.submit(make_request(f"r{i}", prompt_tokens=1000, max_tokens=40, objective=BATCH))
    now, kinds = 0.0, []
    while (seconds := replica.begin(now)) is not None:
        assert replica.batch is not None
        assert not (replica.batch.decodes and replica.batch.chunks)
        assert replica.batch.prefill_tokens <= 512
        kinds.append("d" if replica.batch.decodes else "p")
        now += seconds
        replica.finish(now)
    assert "".join(kinds).startswith("pp" + "dp" * 4 + "d")
    assert replica.counters.finished == 3


def test_table_4_has_the_order_of_the_paper() -> None:
    trials = {kind: run(Case(YI, system(kind, "arxiv"), True, ARXIV, early=False), 0.5, 1) for kind in KINDS}
    hybrid, chunked, both = (trials[kind] for kind in KINDS)
    assert hybrid.median_ttft_s < both.median_ttft_s < chunked.median_ttft_s
    assert both.p99_tbt_s < chunked.p99_tbt_s < hybrid.p99_tbt_s


def test_sarathi_serves_more_than_vllm_within_the_strict_objective() -> None:
    load = Load("arxiv", NOWHERE, 96)
    found = {s.name: find(Search(Case(YI, s, False, load), 0.2, 1, 0.2)).rate_rps for s in (VLLM, SARATHI)}
    assert found["Sarathi"] > 1.2 * found["vLLM v0"] > 0


def test_uniform_micro_batches_leave_few_bubbles_and_orcas_many() -> None:
    load = Load("arxiv", NOWHERE, 80)
    uniform, orca = (bubble_ratio(load, 40, (LLAMA, s, 1)) for s in (UNIFORM, ORCA_128))
    assert uniform < 0.1
    assert orca > 2 * uniform


def test_answers_pause_for_seconds_under_orca_and_vllm_and_not_under_sarathi() -> None:
    load = Load("arxiv", NOWHERE, 40, NO_LIMIT_S)
    pauses = [
        max(np.diff(emitted((Case(YI, s, True, load, early=False), 1))))
        for s in (ORCA, VLLM, replace(SARATHI, budget=1536))
    ]
    assert min(pauses[:2]) > 2.0
    assert pauses[2] < 1.0
