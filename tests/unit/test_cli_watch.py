"""What `up` reads from a router's metrics, and how a row follows from it."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_cli.display import LiveDisplay, PlainDisplay, line, percent
from paceline_cli.watch import WINDOW_S, Counts, Objective, Row, Snapshot, Window, read_metrics
from rich.console import Console

EXPOSITION = """\
# HELP paceline_requests_received_total Requests received.
# TYPE paceline_requests_received_total counter
paceline_requests_received_total{llmservice="chat",slo_class="interactive"} 10.0
paceline_slo_decided_total{llmservice="chat",result="good",slo_class="interactive"} 6.0
paceline_slo_decided_total{llmservice="chat",result="ttft",slo_class="interactive"} 1.0
paceline_slo_decided_total{llmservice="chat",result="unserved",slo_class="interactive"} 1.0
paceline_slo_limit_seconds{llmservice="chat",objective="ttft",slo_class="interactive"} 0.4
paceline_slo_limit_seconds{llmservice="chat",objective="tpot",slo_class="interactive"} 0.04
paceline_slo_target_ratio{llmservice="chat",slo_class="interactive"} 0.95
paceline_requests_in_flight{llmservice="chat",role="prefill"} 1.0
paceline_requests_in_flight{llmservice="chat",role="decode"} 2.0
paceline_ready_replicas{llmservice="chat",role="prefill"} 2.0
paceline_ready_replicas{llmservice="chat",role="decode"} 1.0
paceline_ttft_seconds_bucket{le="0.4",llmservice="chat",slo_class="interactive"} 6.0
"""
GOAL = Objective(0.4, 0.04, 0.95)


def snapshot(at_s: float, arrivals: int, good: int, decided: int) -> Snapshot:
    return Snapshot(at_s, {"interactive": Counts(arrivals, good, decided)}, {"interactive": GOAL}, 0, 0)


def test_a_scrape_becomes_a_snapshot() -> None:
    expected = Snapshot(5.0, {"interactive": Counts(10, 6, 8)}, {"interactive": GOAL}, in_flight=3, ready_replicas=3)
    assert read_metrics(EXPOSITION, 5.0) == expected


def test_a_scrape_without_paceline_s_metrics_is_an_empty_snapshot() -> None:
    assert read_metrics("up 1\n", 0.0) == Snapshot(0.0, {}, {}, 0, 0)


@pytest.mark.parametrize(
    ("before", "now", "recent"),
    [
        pytest.param([], (0.0, 4, 3, 4), Counts(4, 3, 4), id="the first look counts all"),
        pytest.param([(0.0, 4, 3, 4)], (10.0, 9, 5, 8), Counts(5, 2, 4), id="later ones what is new"),
        pytest.param(
            [(0.0, 4, 3, 4), (50.0, 6, 4, 5)], (100.0, 9, 5, 8), Counts(5, 2, 4), id="the last minute and a little"
        ),
        pytest.param(
            [(0.0, 4, 3, 4), (50.0, 6, 4, 5)], (111.0, 9, 5, 8), Counts(3, 1, 3), id="but not what is older than that"
        ),
        pytest.param([(0.0, 40, 30, 40)], (10.0, 2, 1, 1), Counts(2, 1, 1), id="a restarted router counts anew"),
    ],
)
def test_window(before: list[tuple[float, int, int, int]], now: tuple[float, int, int, int], recent: Counts) -> None:
    window = Window()
    for old in before:
        window.add(snapshot(*old))
    (row,) = window.add(snapshot(*now))
    assert row.recent == recent
    assert row.total == Counts(*now[1:])


@given(st.lists(st.tuples(st.floats(0.1, 40), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=60))
def test_a_window_stays_short_and_never_counts_more_than_all(steps: list[tuple[float, int, int]]) -> None:
    window, at_s, total = Window(), 0.0, Counts()
    for pause_s, good, missed in steps:
        at_s += pause_s
        total = Counts(total.arrivals + good + missed, total.good + good, total.decided + good + missed)
        (row,) = window.add(snapshot(at_s, total.arrivals, total.good, total.decided))
        assert 0 <= row.recent.good <= row.recent.decided <= row.total.decided
        assert len(window.snapshots) <= WINDOW_S / 0.1 + 2
        assert all(s.at_s > at_s - WINDOW_S for s in list(window.snapshots)[1:])


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "-"), (1.0, "100.0"), (0.9996, "99.9"), (0.95, "95.0"), (0.29, "29.0"), (0.0, "0.0")],
)
def test_percent_never_rounds_up(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_a_line_can_be_read_back() -> None:
    fields = {"url": "http://[::1]:80", "cause": 'it said "no"', "gpus": 3, "none": ""}
    assert line("ready", fields.items()) == r'ready url=http://[::1]:80 cause="it said \"no\"" gpus=3 none=""'


def test_plain_lines_come_only_when_something_changed() -> None:
    out = io.StringIO()
    display = PlainDisplay(out)
    idle, busy = Row("a", GOAL, Counts(), Counts()), Row("a", GOAL, Counts(2, 1, 2), Counts(4, 3, 4))
    counts = "good=3 decided=4 arrivals=4 in_flight=1"
    display.starting({"router": (0, 1)})
    display.starting({"router": (0, 1)})
    display.starting({"router": (1, 1)})
    for row in (idle, busy, busy):
        display.attainment([row], 1)
    assert out.getvalue().splitlines() == [
        "starting process=router ready=0/1",
        "starting process=router ready=1/1",
        f"attainment slo_class=a last_minute_percent=50.0 percent=75.0 target_percent=95 {counts}",
    ]


def test_the_live_table_fits_80_columns_and_takes_no_markup_from_outside() -> None:
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, width=80, force_terminal=True, no_color=True), "chat (SIMULATED)")
    row = Row("interactive", GOAL, Counts(100, 95, 99), Counts(12000, 11999, 11999))
    display.attainment([row], 7)
    display.event("crashed", last_line="[red]loud[/red]")
    display.close()
    assert "…" not in out.getvalue()
    assert "[red]loud[/red]" in out.getvalue()
    assert "SIMULATED" in out.getvalue()
