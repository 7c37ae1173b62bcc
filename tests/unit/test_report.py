"""Reports: DESIGN §1's figures from made-up requests, the schema, validity, the curve, and what is drawn of them."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.outcomes import Outcome
from paceline_api.slo import Course, SLOClass
from paceline_planner.aggregate import OUTCOMES, GapHistogram, Record, worst_quartile_percent
from paceline_planner.figure import draw, render_html, write_png
from paceline_planner.fleet import Fleet, MetricsError, parse_fleet, reconcile
from paceline_planner.report import Report, Run, RunTally, crossing
from paceline_planner.report_table import render_table
from paceline_planner.validity import Lateness, Reconciliation
from rich.console import Console

SLO = SLOClass("chat", ttft_s=0.4, tpot_s=0.04, target_ratio=0.9)
ON_TIME = Lateness(0.001, 0.001, 0.02)


def make_record(
    ttft_s: float | None = 0.1,
    tpot_s: float = 0.02,
    *,
    tokens: int = 11,
    prompt: int = 100,
    outcome: Outcome | None = Outcome.COMPLETED,
    end_s: float | None = None,
    gap_s: float | None = None,
    lost: bool = False,
) -> Record:
    """A request that arrives at 0, streams `tokens` and ends, or ends at `end_s` before its first token."""
    first = ttft_s
    end = end_s if first is None or outcome is None else first + (tokens - 1) * tpot_s
    course = Course(0.0, prompt, max_tokens=tokens, first_token_s=first, end_s=end, outcome=outcome)
    course.output_tokens = 0 if first is None else tokens
    gaps = [] if first is None else [gap_s or tpot_s] + [tpot_s] * (tokens - 2)
    return Record("chat", course, gaps, lost)


def make_run(*records: Record, rate: float = 2.0, now: float = 0.0, gpus: int | None = 4, **over: Any) -> Run:
    tally = RunTally({"chat": SLO})
    for record in records:
        tally.add(record, now)
    arguments: dict[str, Any] = {"lateness": ON_TIME, "simulated": False}
    return tally.run(rate, 10.0, gpus=gpus, **(arguments | over))


def make_runs(*attainments: int) -> list[Run]:
    """Runs at 1, 2, 3 … requests/s with these percentages of good requests."""
    return [
        make_run(*[make_record()] * good, *[make_record(ttft_s=1.0)] * (100 - good), rate=float(rate))
        for rate, good in enumerate(attainments, start=1)
    ]


GOOD, LATE = make_record(), make_record(ttft_s=0.5)


@pytest.mark.parametrize(
    ("record", "now", "decided", "good", "undecided", "left_out"),
    [
        pytest.param(GOOD, 0, 1, 1, 0, 0, id="within both limits is good"),
        pytest.param(LATE, 0, 1, 0, 0, 0, id="a late first token is not"),
        pytest.param(make_record(tpot_s=0.05), 0, 1, 0, 0, 0, id="nor are slow tokens"),
        pytest.param(make_record(tokens=1), 0, 1, 1, 0, 0, id="with one token TPOT holds"),
        pytest.param(make_record(None, outcome=Outcome.SHED, end_s=0), 0, 1, 0, 0, 0, id="shed counts against"),
        pytest.param(make_record(None, outcome=Outcome.TIMED_OUT, end_s=9), 9, 1, 0, 0, 0, id="timed out counts too"),
        pytest.param(
            make_record(outcome=Outcome.UPSTREAM_FAILED, lost=True),
            0,
            1,
            0,
            0,
            0,
            id="a lost connection counts against",
        ),
        pytest.param(make_record(None, outcome=Outcome.REJECTED, end_s=0), 0, 0, 0, 0, 1, id="rejected is left out"),
        pytest.param(
            make_record(None, outcome=Outcome.CLIENT_GONE, end_s=0.1),
            0.1,
            0,
            0,
            0,
            1,
            id="a client gone in time is left out",
        ),
        pytest.param(
            make_record(None, outcome=Outcome.CLIENT_GONE, end_s=0.9),
            0.9,
            1,
            0,
            0,
            0,
            id="one gone after its deadline counts",
        ),
        pytest.param(make_record(None, outcome=None), 0.3, 0, 0, 1, 0, id="one still waiting is undecided"),
        pytest.param(make_record(None, outcome=None), 0.5, 1, 0, 0, 0, id="until its limit has passed"),
    ],
)
def test_each_request_is_decided_undecided_or_left_out(
    record: Record, now: float, decided: int, good: int, undecided: int, left_out: int
) -> None:
    [figures] = make_run(record, now=now).classes
    assert (figures.decided, figures.good, figures.undecided, figures.left_out) == (decided, good, undecided, left_out)


def test_the_figures_of_a_class() -> None:
    records = [GOOD] * 6 + [LATE] * 2 + [make_record(None, outcome=Outcome.SHED, end_s=0)] * 2
    [figures] = make_run(*records).classes
    assert figures.attainment_percent == 60
    assert (figures.goodput_rps, figures.goodput_rps_per_gpu) == (0.6, 0.15)
    assert figures.good_output_tokens_per_s == pytest.approx(6.6)
    assert figures.ttft_ms is not None
    assert (figures.ttft_ms.p50, figures.ttft_ms.p99) == pytest.approx((100, 500))
    assert figures.tpot_ms is not None
    assert figures.tpot_ms.p90 == pytest.approx(20)
    assert figures.itl_ms is not None
    assert figures.itl_ms.p50 == pytest.approx(20, rel=0.006)


def test_shedding_never_raises_attainment() -> None:
    served = make_run(GOOD, GOOD, LATE).attainment_percent
    shed = make_run(GOOD, GOOD, make_record(None, outcome=Outcome.SHED, end_s=0)).attainment_percent
    assert served == shed


def test_long_gaps_are_counted_by_request() -> None:
    [figures] = make_run(make_record(gap_s=0.21), make_record(gap_s=0.19), GOOD, GOOD).classes
    assert figures.gap_over_5_tpot_percent == 25


def test_the_worst_quartile_is_found_by_prompt_length() -> None:
    records = [make_record(prompt=p, ttft_s=0.5 if p > 80 else 0.1) for p in range(1, 101)]
    [figures] = make_run(*records).classes
    assert (figures.attainment_percent, figures.attainment_worst_quartile_percent) == (80, 20)


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1))
def test_the_worst_quartile_is_never_above_the_whole(pairs: list[tuple[int, bool]]) -> None:
    worst = worst_quartile_percent([p for p, _ in pairs], [good for _, good in pairs])
    assert worst is not None
    assert worst <= 100 * sum(good for _, good in pairs) / len(pairs) + 1e-9
    assert worst_quartile_percent([7] * len(pairs), [good for _, good in pairs]) == pytest.approx(
        100 * sum(good for _, good in pairs) / len(pairs)
    )


@given(st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=300))
def test_gap_percentiles_are_within_half_a_percent(gaps: list[float]) -> None:
    histogram = GapHistogram()
    histogram.add(gaps[:7])
    histogram.add(gaps[7:])
    found = histogram.percentiles_ms()
    assert found is not None
    exact = np.percentile(gaps, (50, 90, 99), method="inverted_cdf")
    assert (found.p50, found.p90, found.p99) == pytest.approx(tuple(1e3 * exact), rel=0.0051)


@given(
    st.lists(
        st.builds(
            make_record,
            st.one_of(st.none(), st.floats(0.01, 1)),
            st.floats(0.001, 0.1),
            outcome=st.sampled_from([None, *Outcome]).filter(lambda o: o is not Outcome.COMPLETED),
            end_s=st.floats(0, 2),
            lost=st.booleans(),
        )
        | st.builds(make_record, st.floats(0.01, 1), st.floats(0.001, 0.1), tokens=st.integers(1, 9))
    ),
    st.floats(0, 3),
)
def test_arrivals_are_the_sum_of_outcomes(records: list[Record], now: float) -> None:
    value = orjson.loads(Report([make_run(*records, now=now)], "w").to_json())
    assert value["arrivals"] == len(records) == sum(value["outcomes"].values())
    assert sum(c["decided"] + c["undecided"] + c["left_out"] for c in value["classes"]) == len(records)


def test_the_schema() -> None:
    value = orjson.loads(Report([make_run(GOOD, LATE)], "fixed:100,11", time_scale=2.0, seed=3).to_json())
    header = {"schema", "simulated", "valid", "time_scale", "seed", "gpus", "duration_s"}
    assert header | {"arrivals", "outcomes", "classes", "curve"} <= set(value)
    assert (value["schema"], value["time_scale"], value["seed"], value["gpus"]) == ("paceline.report/v1", 2, 3, 4)
    assert list(value["outcomes"]) == list(OUTCOMES)
    [figures] = value["classes"]
    counts = ["name", "arrivals", "decided", "undecided", "good"]
    shares = ["attainment_percent", "attainment_worst_quartile_percent", "gap_over_5_tpot_percent"]
    rates = ["goodput_rps", "goodput_rps_per_gpu", "good_output_tokens_per_s"]
    assert set(counts + shares + rates) <= set(figures)
    assert all(set(figures[name]) == {"p50", "p90", "p99"} for name in ("ttft_ms", "tpot_ms", "itl_ms"))
    assert value["curve"][0]["rate_rps"] == 2


def test_a_run_without_requests_has_nulls_and_is_not_valid(tmp_path: Path) -> None:
    report = Report([make_run(gpus=None)], "none")
    value = orjson.loads(report.to_json())
    assert (value["valid"], value["arrivals"], value["classes"]) == (False, 0, [])
    write_png(report, tmp_path / "empty.png")
    assert "INVALID" in render_html(report)


@pytest.mark.parametrize(
    ("lateness", "simulated", "fault"),
    [
        pytest.param(Lateness(0.0019, 0.0019, 0.01), True, None, id="2 ms are allowed"),
        pytest.param(Lateness(0.0021, 0.001, 0.01), True, "the client ran 2.1 ms late", id="more is not"),
        pytest.param(Lateness(0.004, 0.0041, 0.05), True, None, id="a tenth of a long step is allowed"),
        pytest.param(Lateness(0.001, 0.0041, 0.03), True, "an engine ran 4.1 ms late", id="late engines"),
        pytest.param(Lateness(0.001, None, None), True, "do not say how late", id="simulated engines must say"),
        pytest.param(Lateness(0.001, None, None), False, None, id="real ones need not"),
        pytest.param(Lateness(math.nan, 0.001, 0.01), True, "the client ran nan ms late", id="no number is no proof"),
        pytest.param(Lateness(virtual=True), True, None, id="a virtual clock is never late"),
    ],
)
def test_a_late_run_is_not_valid(lateness: Lateness, simulated: bool, fault: str | None) -> None:
    faults = make_run(GOOD, lateness=lateness, simulated=simulated).faults
    assert len(faults) == (fault is not None)
    assert fault is None or fault in faults[0]


@pytest.mark.parametrize(
    ("attainments", "level", "rate"),
    [
        pytest.param((100, 95, 85), 90, 2.5, id="between two rates"),
        pytest.param((100, 90, 80), 90, 2.0, id="on a rate"),
        pytest.param((100, 80, 95, 60), 90, 1.5, id="the first fall counts"),
        pytest.param((100, 99, 95), 90, None, id="never reached"),
        pytest.param((80, 95, 60), 90, None, id="below from the start"),
    ],
)
def test_a_crossing_is_interpolated(attainments: tuple[int, ...], level: float, rate: float | None) -> None:
    found = crossing(make_runs(*attainments), level)
    assert found.rate_rps == (rate if rate is None else pytest.approx(rate))
    assert found.goodput_rps_per_gpu == (None if rate is None else pytest.approx(rate * level / 100 / 4))


def test_a_fleet_that_grows_with_the_rate_is_divided_by_its_own_gpus_at_each() -> None:
    few, many = (replace(run, gpus=gpus) for run, gpus in zip(make_runs(100, 80), (4.0, 8.0), strict=True))
    assert crossing([few, many], 90).goodput_rps_per_gpu == pytest.approx(1.5 * 0.9 / 6)
    drawn = draw(Report([few, many], "w")).axes[1]
    good = next(line for line in drawn.get_lines() if line.get_label() == "good")
    assert np.asarray(good.get_ydata()) == pytest.approx([few.goodput_rps / 4, many.goodput_rps / 8])


@pytest.mark.parametrize(
    ("attainments", "rate"),
    [
        pytest.param((100, 95, 85, 70), 2, id="the highest rate that meets the target"),
        pytest.param((100, 85, 95), 1, id="together with all lower ones"),
        pytest.param((80, 70), 1, id="else the lowest"),
    ],
)
def test_the_headline_of_several_rates(attainments: tuple[int, ...], rate: float) -> None:
    assert Report(make_runs(*attainments), "w").headline.rate_rps == rate


def test_table_and_page_say_what_holds() -> None:
    late = make_run(GOOD, LATE, rate=4.0, lateness=Lateness(0.005, 0.001, 0.01), simulated=True, interrupted=True)
    counted = Reconciliation(3, 2, {"completed": 2}, {"good": 1, "ttft": 1})
    report = Report([make_run(GOOD, simulated=True, reconciliation=counted), late], "chat <&>")
    console = Console(file=io.StringIO(), width=120)
    console.print(render_table(report))
    assert isinstance(console.file, io.StringIO)
    text, page = console.file.getvalue(), render_html(report)
    for shown in (text, page):
        assert all(label in shown for label in ("SIMULATED", "INVALID", "INTERRUPTED", "90 % crossing", "DIFFERENT"))
    assert "chat &lt;&amp;&gt;" in page
    assert "<script" not in page
    assert page.count("<svg") == 1


PAGE = """\
paceline_slo_limit_seconds{slo_class="a",objective="ttft"} 0.4
paceline_slo_limit_seconds{slo_class="a",objective="tpot"} 0.04
paceline_slo_limit_seconds{slo_class="b",objective="ttft"} 4
paceline_slo_limit_seconds{slo_class="b",objective="tpot"} 0.1
paceline_slo_limit_seconds{slo_class="b",objective="stall"} 0.5
paceline_slo_limit_seconds{slo_class="half",objective="ttft"} 4
paceline_slo_target_ratio{slo_class="b"} 0.99
paceline_gpus{role="prefill"} 2
paceline_gpus{role="decode"} 1
paceline_fleet_info{simulated="1",time_scale="2",default_class="b"} 1
paceline_fleet_lateness_p99_seconds 0.0004
paceline_fleet_step_p50_seconds NaN
paceline_requests_received_total{slo_class="a"} 3
paceline_requests_received_total{slo_class="b"} 4
paceline_requests_total{slo_class="a",outcome="completed"} 3
paceline_requests_total{slo_class="b",outcome="completed"} 2
paceline_requests_total{slo_class="b",outcome="shed"} 2
paceline_slo_decided_total{slo_class="a",result="good"} 3
"""


def test_a_routers_metrics_describe_its_fleet() -> None:
    fleet = parse_fleet(PAGE)
    assert fleet.slos == {"a": SLOClass("a", 0.4, 0.04, 0.9), "b": SLOClass("b", 4, 0.1, 0.99, 0.5)}
    assert (fleet.default_class, fleet.gpus, fleet.simulated, fleet.time_scale) == ("b", 3, True, 2)
    assert (fleet.lateness_p99_s, fleet.step_p50_s) == (0.0004, None)
    assert (fleet.received, dict(fleet.outcomes)) == (7, {"completed": 5, "shed": 2})


def test_another_servers_metrics_are_an_empty_fleet() -> None:
    assert parse_fleet('vllm:num_requests_running{engine="0"} 3\n') == Fleet()
    with pytest.raises(MetricsError, match="not Prometheus"):
        parse_fleet("<html>\n")


def test_reconciliation_takes_the_difference_of_two_readings() -> None:
    before, after = Fleet(received=5, outcomes={"completed": 5}), parse_fleet(PAGE)
    check = reconcile(2, before, after)
    assert (check.router_arrivals, check.router_outcomes, check.matches) == (2, {"shed": 2}, True)
    assert not reconcile(3, before, after).matches
