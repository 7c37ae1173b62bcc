"""Workloads: the generators reach the published statistics, arrivals have the rate and burstiness asked for."""

from __future__ import annotations

import statistics
from itertools import islice, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_planner import prompts
from paceline_planner.traces import TraceRequest
from paceline_planner.workloads import (
    SYNTHETIC,
    Empirical,
    Fixed,
    WorkloadError,
    at_rate,
    clipped,
    gamma_arrivals,
    mean_rate_rps,
    parse_lengths,
    poisson_arrivals,
    synthesise,
    until,
)

# mean, p50 and p90 as published; None where nothing is (LongBench: means only)
PUBLISHED = {
    "chat": ((759, 680, 1543), (186, 76, 507)),  # DistServe's ShareGPT up to 2048 tokens
    "code": ((171.3, 146, 278), (98.2, 79, 194)),  # HumanEval
    "summarisation": ((1738.3, None, None), (90.7, None, None)),  # LongBench
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_synthetic_workload_has_the_published_lengths(name: str) -> None:
    rng = Random(1)
    drawn = [SYNTHETIC[name].draw(rng) for _ in range(30_000)]
    for side, published in enumerate(PUBLISHED[name]):
        values = [pair[side] for pair in drawn]
        tenths = statistics.quantiles(values, n=10)
        found = (statistics.fmean(values), statistics.median(values), tenths[8])
        for value, target in zip(found, published, strict=True):
            assert target is None or value == pytest.approx(target, rel=0.05)


@pytest.mark.parametrize("name", SYNTHETIC)
def test_no_synthetic_request_exceeds_its_cut(name: str) -> None:
    rng = Random(2)
    pairs = [SYNTHETIC[name].draw(rng) for _ in range(20_000)]
    assert min(min(pair) for pair in pairs) >= 1
    assert max(sum(pair) for pair in pairs) <= SYNTHETIC[name].total_tokens


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_arrivals_have_the_rate_and_the_variation(cv: float) -> None:
    times = list(islice(gamma_arrivals(20.0, cv, Random(3)), 20_000))
    gaps = [after - before for before, after in pairwise(times)]
    assert 1 / statistics.fmean(gaps) == pytest.approx(20, rel=0.08)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.08)


@given(st.integers(), st.floats(0.1, 1000))
def test_the_same_seed_sends_the_same_requests_at_any_rate(seed: int, rate: float) -> None:
    def lengths(rps: float) -> list[tuple[int, int]]:
        arrivals = islice(poisson_arrivals(rps, Random(seed)), 5)
        return [(r.prompt_tokens, r.output_tokens) for r in synthesise(SYNTHETIC["chat"], arrivals, Random(seed))]

    assert lengths(rate) == lengths(1.0)


@given(st.lists(st.floats(0, 1e4), min_size=2, unique=True), st.floats(0.1, 100))
def test_a_stretched_trace_has_the_rate_and_keeps_its_shape(times: list[float], rate: float) -> None:
    trace = [TraceRequest(at, 1, 1) for at in sorted(times)]
    stretched = at_rate(trace, rate)
    assert mean_rate_rps(stretched) == pytest.approx(rate)
    factor = mean_rate_rps(trace) / rate
    assert [r.arrival_s for r in stretched] == pytest.approx([r.arrival_s * factor for r in trace])


@pytest.mark.parametrize("trace", [[], [TraceRequest(0, 1, 1)], [TraceRequest(0, 1, 1)] * 3])
def test_a_trace_without_time_between_arrivals_has_no_rate(trace: list[TraceRequest]) -> None:
    with pytest.raises(WorkloadError, match="too few arrivals"):
        at_rate(trace, 1.0)


def test_a_window_ends_before_its_duration() -> None:
    trace = [TraceRequest(at, 1, 1) for at in (0.0, 0.9, 1.0, 0.5)]
    assert [r.arrival_s for r in until(trace, 1.0)] == [0.0, 0.9]


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(2, 10**5))
def test_a_clipped_request_fits_the_context_and_keeps_a_token_of_each(prompt: int, output: int, context: int) -> None:
    cut = clipped(TraceRequest(0.0, prompt, output), context)
    assert cut.prompt_tokens + cut.output_tokens <= context
    assert min(cut.prompt_tokens, cut.output_tokens) >= 1
    if prompt + output <= context:
        assert cut == TraceRequest(0.0, prompt, output)


def test_lengths_are_parsed() -> None:
    assert parse_lengths("fixed:512,64") == Fixed(512, 64)
    assert parse_lengths("code") is SYNTHETIC["code"]
    assert Empirical([(3, 4)]).draw(Random(0)) == (3, 4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("poem", "choose chat, code, summarisation or fixed"),
        ("fixed:512", "write for example fixed:512,64"),
        ("fixed:512,x", "write for example"),
        ("fixed:512,0", "below 1"),
    ],
)
def test_a_workload_that_is_none_is_refused(spec: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        parse_lengths(spec)


@pytest.mark.parametrize(("rate", "cv"), [(0.0, 1.0), (-1.0, 1.0), (float("inf"), 1.0), (1.0, 0.0)])
def test_a_rate_that_is_none_is_refused(rate: float, cv: float) -> None:
    with pytest.raises(WorkloadError, match="above 0"):
        next(gamma_arrivals(rate, cv, Random(0)))


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 3000), st.lists(st.integers(0, 10**6), max_size=4))
def test_prompts_have_their_length_and_ids_in_range(seed: int, number: int, tokens: int, blocks: list[int]) -> None:
    ids = prompts.token_ids(seed, number, tokens, blocks)
    assert len(ids) == tokens
    assert ids.min() >= prompts.FIRST_ID
    assert ids.max() < prompts.FIRST_ID + prompts.IDS
    assert (ids == prompts.token_ids(seed, number, tokens, blocks)).all()


def test_only_equal_blocks_share_their_tokens() -> None:
    one, two = prompts.token_ids(7, 0, 1200, (5, 6)), prompts.token_ids(7, 1, 1500, (5, 9))
    assert (one[:512] == two[:512]).all()
    assert (one[512:] != two[512:1200]).mean() > 0.99
    assert (one[:512] != prompts.token_ids(8, 0, 512, (5,))).mean() > 0.99
    assert prompts.words(7, 0, 9, (5,)) == prompts.words(7, 1, 9, (5,))
    assert len(prompts.words(7, 0, 9).split()) == 9
