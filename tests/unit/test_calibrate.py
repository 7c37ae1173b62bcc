"""`paceline calibrate` without an engine: which steps it plans, what it reads out of pages and files, what it fits."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.catalog import MODELS
from paceline_cli.__main__ import main
from paceline_engine.step_time import StepShape, StepTable
from paceline_engine.tables import load_table, parse
from paceline_planner.calibrate import CalibrateError
from paceline_planner.calibrate.acquaint import usage
from paceline_planner.calibrate.csv_points import COLUMNS, read_points
from paceline_planner.calibrate.experiment import FULL, KV_SHARE, QUICK, Effort, Engine, batches, lone_prompts
from paceline_planner.calibrate.observe import decode_s, in_one_step, joint_s, prompt_s, timed_as_one_step
from paceline_planner.calibrate.page import Page, read
from paceline_planner.calibrate.table import Machine, calibrate
from paceline_planner.fit.grid import Point

TRUE = load_table("a100-sxm-80gb", "llama-3.1-8b")
MACHINE = Machine("mine", MODELS["llama-3.1-8b"], 1, 443_520, "a test")


def measured(phase: str, tokens: int = 0, prefix: int = 0, decodes: int = 0, context: int = 0) -> Point:
    """A step that took exactly what the true table says."""
    point = Point(phase, tokens, prefix, decodes, context, 1.0)
    return replace(point, seconds=TRUE.seconds(point.shape))


def grid(largest_prompt: int = 2048, largest_batch: int = 64) -> list[Point]:
    sizes = [n for n in (128, 256, 512, 1024, 2048, 4096) if n <= largest_prompt]
    decodes = [b for b in (1, 2, 4, 8, 16, 32, 64, 128) if b <= largest_batch]
    return [
        *(measured("prefill", n, prefix) for n in sizes for prefix in (0, 4096)),
        *(measured("decode", decodes=b, context=c) for b in decodes for c in (128, 1024, 4096)),
        *(measured("mixed", n - b, 0, b, 256) for n in sizes[1:4:2] for b in (1, 8, 32) if b in decodes),
    ]


def page(**over: Any) -> Page:
    values: dict[str, Any] = {"running": 0, "waiting": 0, "kv_tokens": 160, "prefix_hits": 0.0}
    values |= {"prompts": 0, "prompts_s": 0.0, "gaps": 0, "gaps_s": 0.0}
    return Page(**values | over)


# --- the plan

engines = st.builds(
    Engine,
    kv_tokens=st.integers(1_000, 3_000_000),
    context_tokens=st.integers(256, 200_000),
    step_tokens=st.integers(128, 16_384),
    decodes=st.integers(1, 256),
)


@given(engines, st.sampled_from([FULL, QUICK]), st.floats(500.0, 200_000.0))
def test_every_planned_point_fits_the_engine(engine: Engine, effort: Effort, rate: float) -> None:
    for lone in lone_prompts(engine):
        assert lone.tokens <= engine.step_tokens
        assert lone.tokens + lone.prefix + 1 <= engine.context_tokens
        assert lone.tokens + lone.prefix <= 2 * KV_SHARE * engine.kv_tokens
    for batch in batches(engine, effort, rate):
        held = batch.decodes * (batch.context + batch.max_tokens) + sum(batch.joining)
        assert 0 < held <= engine.kv_tokens
        assert batch.context + batch.max_tokens <= engine.context_tokens
        assert batch.decodes <= engine.decodes
        assert all(0 < n <= engine.step_tokens - batch.decodes for n in batch.joining)
        assert all((n + batch.decodes) % 128 == 0 for n in batch.joining)


@given(engines, st.sampled_from([FULL, QUICK]), st.floats(500.0, 200_000.0))
def test_filling_the_batches_takes_about_the_time_that_it_may(engine: Engine, effort: Effort, rate: float) -> None:
    planned = batches(engine, effort, rate)
    shortest = sum(b.decodes * b.context for b in planned if b.context <= 128)
    filled = sum(b.decodes * b.context for b in planned) - shortest
    assert filled / rate <= 1.5 * effort.batch_prefill_s


def test_a_large_engine_is_measured_up_to_256_decodes_and_4096_tokens_of_context() -> None:
    planned = batches(Engine(443_520, 131_072, 2048, 256), FULL, 17_000.0)
    assert {b.decodes for b in planned} == {1, 2, 4, 8, 16, 32, 64, 128, 256}
    assert max(b.context for b in planned) == 4096
    assert next(b.joining for b in planned if b.decodes == 8) == (248, 1016)


# --- what an engine counts


def test_a_step_of_decodes_is_the_median_over_the_looks_so_that_a_stall_is_no_step() -> None:
    looks = [page(gaps=8 * k, gaps_s=8 * k * 0.012 + (0.05 if k > 2 else 0.0)) for k in range(6)]
    assert decode_s(looks) == pytest.approx(0.012)
    assert decode_s([page(), page()]) is None


def test_looks_between_which_the_machine_was_held_up_are_not_counted() -> None:
    looks = [page(), page(gaps=8, gaps_s=0.1), page(gaps=16, gaps_s=0.9, slips=1), page(gaps=24, gaps_s=1.9, slips=1)]
    assert decode_s(looks) == pytest.approx(0.1 / 8)
    assert decode_s(looks[1:]) is None  # nor the one after: a slip stretches the gap that follows
    assert decode_s([*looks, page(gaps=32, gaps_s=2.1, slips=1)]) == pytest.approx((0.1 + 0.2) / 16)
    assert joint_s(looks[1], looks[2], 8, 0.012) is None


def test_a_joint_step_is_what_the_gaps_hold_beyond_those_of_decodes_alone() -> None:
    after = page(gaps=4 * 6, gaps_s=4 * (5 * 0.012 + 0.040))
    assert joint_s(page(), after, 4, 0.012) == pytest.approx(0.040)


@pytest.mark.parametrize(
    ("steps", "joint"),
    [
        pytest.param(0, 0.04, id="no step between the looks"),
        pytest.param(100, 0.04, id="so many steps that their own spread hides it"),
        pytest.param(6, 0.011, id="a step that took less than decodes alone"),
    ],
)
def test_there_is_no_joint_step_where_it_cannot_be_told(steps: int, joint: float) -> None:
    after = page(gaps=4 * steps, gaps_s=4 * ((steps - 1) * 0.012 + joint))
    assert joint_s(page(), after, 4, 0.012) is None


@pytest.mark.parametrize(
    ("gaps", "whole"),
    [
        pytest.param([0.012] * 5 + [0.060], True, id="one long gap"),
        pytest.param([0.012] * 5 + [0.013, 0.060], True, id="a little spread before it"),
        pytest.param([0.012] * 5 + [0.035, 0.037], False, id="two halves"),
        pytest.param([0.012] * 5 + [0.060, 0.040], False, id="a large piece and a middling one"),
        pytest.param([0.012] * 7, False, id="no gap that stands out"),
    ],
)
def test_a_prompt_was_computed_in_one_step_if_it_delayed_the_streams_once(gaps: Sequence[float], whole: bool) -> None:
    times = 1.0 + np.cumsum([0.0, *gaps])
    assert in_one_step([times, times + 1e-4], sent_s=1.05, first_token_s=float(times[-1])) is whole


@pytest.mark.parametrize(
    ("prompts", "prompts_s", "whole"),
    [
        pytest.param(1, 0.041, True, id="as long as its joint step"),
        pytest.param(1, 0.052, False, id="a decode step longer: two pieces, or scheduled ahead"),
        pytest.param(2, 0.041, False, id="another prompt as well"),
        pytest.param(0, 0.0, False, id="not counted"),
    ],
)
def test_an_engine_says_that_a_prompt_took_one_step(prompts: int, prompts_s: float, whole: bool) -> None:
    after = page(prompts=prompts, prompts_s=prompts_s)
    assert timed_as_one_step(page(), after, 0.040, 0.012) is whole


PAGE = """\
vllm:num_requests_running{engine="0"} 2
vllm:num_requests_waiting{engine="0"} 1
vllm:cache_config_info{block_size="16",num_gpu_blocks="10"} 1
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{engine="0"} 64
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"} 4
vllm:time_to_first_token_seconds_count{engine="0"} 4
vllm:time_to_first_token_seconds_sum{engine="0"} 0.5
# TYPE vllm:request_queue_time_seconds histogram
vllm:request_queue_time_seconds_bucket{engine="0",le="+Inf"} 4
vllm:request_queue_time_seconds_count{engine="0"} 4
vllm:request_queue_time_seconds_sum{engine="0"} 0.1
"""
PREFILL_TIME = """\
# TYPE vllm:request_prefill_time_seconds histogram
vllm:request_prefill_time_seconds_bucket{engine="0",le="+Inf"} 3
vllm:request_prefill_time_seconds_count{engine="0"} 3
vllm:request_prefill_time_seconds_sum{engine="0"} 0.33
"""


def test_prompts_cost_their_first_token_less_the_queue_or_what_the_engine_says_itself() -> None:
    simulated, real = read(PAGE, "u"), read(PAGE + PREFILL_TIME, "u")
    assert (simulated.requests, simulated.kv_tokens, simulated.prefix_hits) == (3, 160, 64.0)
    assert simulated.prompts == 4
    assert simulated.prompts_s == pytest.approx(0.4)
    assert (real.prompts, real.prompts_s) == (3, 0.33)
    assert real.slips == 0


def test_steps_that_a_simulated_engines_machine_held_up_are_those_beyond_50_ms() -> None:
    late = "paceline_sim_lateness_seconds"
    buckets = f'{late}_bucket{{le="0.05"}} 90\n{late}_bucket{{le="+Inf"}} 93\n{late}_count 93\n{late}_sum 1\n'
    assert read(f"{PAGE}# TYPE {late} histogram\n{buckets}", "u").slips == 3


@pytest.mark.parametrize(
    ("cached", "after", "seconds"),
    [
        pytest.param(0, {}, 0.1, id="a fresh prompt"),
        pytest.param(64, {"prefix_hits": 64.0}, 0.1, id="just the prefix was cached"),
        pytest.param(64, {}, None, id="the prefix was not cached"),
        pytest.param(0, {"prefix_hits": 16.0}, None, id="a fresh prompt was cached"),
        pytest.param(0, {"prefix_hits": None}, 0.1, id="a fresh prompt, nothing known of the cache"),
        pytest.param(64, {"prefix_hits": None}, None, id="a prefix, nothing known of the cache"),
        pytest.param(0, {"slips": 1}, None, id="the machine was held up"),
    ],
)
def test_a_prompt_counts_when_just_its_prefix_was_cached(cached: int, after: dict[str, Any], seconds: float) -> None:
    assert prompt_s(page(), page(**{"prompts": 1, "prompts_s": 0.1} | after), cached) == seconds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", "has no vllm:num_requests_running", id="another server"),
        pytest.param('paceline_fleet_info{simulated="1"} 1\n', "is a router", id="a router"),
        pytest.param(PAGE + 'vllm:num_requests_running{engine="1"} 0\n', "several engines", id="data parallelism"),
        pytest.param("vllm:num_requests_running oops\n", "not Prometheus' text format", id="not a number"),
    ],
)
def test_a_page_that_is_not_one_engines_says_what_to_give_instead(text: str, says: str) -> None:
    with pytest.raises(CalibrateError, match=says):
        read(text, "http://h:1")


@pytest.mark.parametrize(
    ("body", "counted"),
    [
        (b'data: {"usage": {"prompt_tokens": 32, "completion_tokens": 4}}\n\ndata: [DONE]\n\n', (32, 4)),
        (b'data: {"choices": []}\n\ndata: [DONE]\n\n', None),
        (b'data: {"usage": 3}\n\n', None),
        (b"data: oops\n\n", None),
    ],
    ids=["usage", "no usage", "another usage", "no JSON"],
)
def test_tokens_are_those_of_the_streams_usage(body: bytes, counted: tuple[int, int] | None) -> None:
    assert usage(body) == counted


# --- the fit


def off(table: StepTable, shape: StepShape) -> float:
    return abs(table.seconds(shape) / TRUE.seconds(shape) - 1.0)


def test_a_table_fitted_to_exact_steps_predicts_those_that_were_not_measured() -> None:
    table = calibrate(grid(), MACHINE).table
    shapes = [
        StepShape(n, n * (prefix + n / 2), b, b * c)
        for n in (0, 200, 700, 1500)
        for prefix in (0, 2000)
        for b, c in ((0, 0), (3, 500), (24, 900), (48, 2500))
        if n or b
    ]
    assert max(off(table, shape) for shape in shapes) < 0.03


@given(st.integers(0, 10_000), st.sampled_from([512, 1024, 2048, 4096]), st.sampled_from([2, 8, 32, 128]))
def test_knots_end_where_the_measurements_do_and_the_last_slope_goes_on(more: int, prompt: int, batch: int) -> None:
    table = calibrate(grid(prompt, batch), MACHINE).table
    assert table.linear[-1][0] == prompt
    assert table.decode[-1][0] == batch
    assert table.seconds(StepShape(prompt + more, 0.0, 0, 0)) >= table.seconds(StepShape(prompt, 0.0, 0, 0))
    if more > 100:
        assert off(table, StepShape(prompt + more, 0.0, 0, 0)) < 0.25


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        pytest.param(lambda p: p.phase == "decode", "0 lengths of lone prompts", id="no prompts"),
        pytest.param(lambda p: p.phase == "prefill", "2 batch sizes", id="no decodes"),
        pytest.param(lambda p: p.phase == "prefill" or p.decodes == 1, "2 batch sizes", id="one batch size"),
        pytest.param(lambda p: p.phase == "prefill" or p.context == 128, "2 contexts", id="one context"),
    ],
)
def test_too_few_kinds_of_steps_are_not_fitted(keep: Any, says: str) -> None:
    with pytest.raises(CalibrateError, match=says):
        calibrate([p for p in grid() if keep(p)], MACHINE)


def test_the_file_is_a_table_document_whose_errors_are_those_of_the_written_constants() -> None:
    found = calibrate([p for p in grid() if p.phase != "mixed"], MACHINE)
    document = json.loads(found.content)
    (entry,) = document["entries"]
    assert parse(document, entry) == found.table
    assert (entry["model"], entry["tensor"], entry["kv_tokens"]) == ("llama-3.1-8b", 1, 443_520)
    assert set(entry["error"]) == {"prefill", "decode"}
    worst = max(abs(c.error) for c in found.compared if c.point.phase == "decode")
    assert entry["error"]["decode"]["max"] == pytest.approx(worst, abs=1e-4)


# --- from a file


def write_csv(path: Path, rows: Sequence[Sequence[object]], columns: Sequence[str] = COLUMNS) -> Path:
    with path.open("w", newline="") as lines:
        csv.writer(lines).writerows([columns, *rows])
    return path


def rows_of(points: Sequence[Point]) -> list[list[object]]:
    return [
        [p.phase, p.prefill_tokens or "", p.prefix_tokens, p.decodes or "", p.context, 1e3 * p.seconds] for p in points
    ]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        pytest.param(["prefill", "many", 0, "", "", 1], ":2: .*write whole numbers", id="a word for a number"),
        pytest.param(["warm-up", 1, 0, "", "", 1], "'warm-up' is none of prefill", id="an unknown phase"),
        pytest.param(["prefill", 128, 0, "", "", ""], "latency_ms more than 0", id="no latency"),
        pytest.param(["prefill", 128, 0, "", "", "inf"], "latency_ms more than 0", id="an endless step"),
        pytest.param(["decode", 128, 0, 8, 100, 1], "needs decode_batch and no n_prefill", id="a decode with a prompt"),
        pytest.param(["mixed", 128, 0, "", "", 1], "needs n_prefill_tokens and decode", id="a mixed step of prompts"),
        pytest.param(["decode", "", 0, -8, 100, 1], "0 or more", id="a negative batch"),
    ],
)
def test_a_row_that_is_no_step_is_named_by_its_line(row: Sequence[object], says: str, tmp_path: Path) -> None:
    with pytest.raises(CalibrateError, match=says):
        read_points(write_csv(tmp_path / "steps.csv", [row]))


def test_steps_of_two_machines_are_not_mixed(tmp_path: Path) -> None:
    rows = [["a100", *rows_of([p])[0]] for p in grid()[:1]] + [["h100", *rows_of([p])[0]] for p in grid()[1:2]]
    with pytest.raises(CalibrateError, match="2 machines"):
        read_points(write_csv(tmp_path / "steps.csv", rows, ("gpu", *COLUMNS)))


def test_from_a_csv_the_command_writes_a_table_that_names_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, out = write_csv(tmp_path / "steps.csv", rows_of(grid())), tmp_path / "t.json"
    assert main(["calibrate", f"--from={steps}", "--model=llama-3.1-8b", "--gpu=h100-sxm", f"--out={out}"]) == 0
    document = json.loads(out.read_bytes())
    table = parse(document, document["entries"][0])
    assert "steps.csv" in table.source
    assert table.kv_tokens == load_table("h100-sxm", "llama-3.1-8b").kv_tokens
    assert off(table, StepShape(0, 0.0, 12, 12 * 600)) < 0.02
    assert f"wrote {out}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        pytest.param(["--model=gpt-nope", "--gpu=h100-sxm"], "the catalogue has no model", id="an unknown model"),
        pytest.param(["--model=llama-3.1-8b", "--gpu=mine"], "give --kv-tokens", id="a GPU of unknown memory"),
        pytest.param(["--model=opt-175b", "--gpu=l40s"], "raise --tensor", id="a model that does not fit"),
        pytest.param(["--model=opt-13b", "--gpu=l40s", "--tensor=0"], "--tensor must be", id="no GPU at all"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_no_file(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, out = write_csv(tmp_path / "steps.csv", rows_of(grid())), tmp_path / "t.json"
    assert main(["calibrate", f"--from={steps}", f"--out={out}", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not out.exists()


def test_a_missing_csv_and_a_missing_folder_are_one_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model=llama-3.1-8b", "--gpu=h100-sxm"]
    assert main(["calibrate", f"--from={tmp_path / 'nope.csv'}", f"--out={tmp_path / 't.json'}", *model]) == 2
    assert main(["calibrate", f"--from={tmp_path / 'x.csv'}", f"--out={tmp_path / 'no' / 't.json'}", *model]) == 2
    missing, folder = capsys.readouterr().err.splitlines()
    assert "nope.csv" in missing
    assert "a folder that exists" in folder
