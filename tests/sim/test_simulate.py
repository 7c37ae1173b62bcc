"""`paceline simulate`: the file's fleet on a virtual clock, replay's report, and what-ifs that mean something."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paceline_api.validate import load_service
from paceline_cli.__main__ import main
from paceline_planner.plan import Plan, plan
from paceline_planner.replay import Workload
from paceline_planner.simulate import Offered, Policies, SimulateError, fleet_spec, simulate
from paceline_planner.workloads import parse_lengths

ROOT = Path(__file__).resolve().parents[2]
CHAT = ROOT / "examples" / "chat.yaml"
LOAD = ("--synthetic", "chat", "--rate", "4", "--duration", "30")


def run(*flags: str, out: Path) -> dict[str, Any]:
    assert main(["simulate", str(CHAT), *flags, "--json", str(out)]) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def test_a_report_says_simulated_counts_every_request_and_is_valid_on_its_virtual_clock(tmp_path: Path) -> None:
    report = run(*LOAD, out=tmp_path / "r.json")
    assert report["schema"] == "paceline.report/v1"
    assert (report["simulated"], report["valid"], report["lateness"]["virtual"]) == (True, True, True)
    assert report["outcomes"]["completed"] == report["arrivals"] > 60
    assert report["gpus"] == 3
    assert report["classes"][0]["itl_ms"]["p50"] > 5
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png", ".html"}


def test_the_same_seed_is_the_same_report_and_another_is_not(tmp_path: Path) -> None:
    one = run(*LOAD, "--seed", "3", out=tmp_path / "a.json")
    assert one == run(*LOAD, "--seed", "3", out=tmp_path / "b.json")
    assert one["classes"] != run(*LOAD, "--seed", "4", out=tmp_path / "c.json")["classes"]


def test_rates_run_on_all_cores_and_give_what_each_gives_alone(tmp_path: Path) -> None:
    alone = run(*LOAD, out=tmp_path / "a.json")
    curve = run("--synthetic", "chat", "--rates", "8,4", "--duration", "30", out=tmp_path / "b.json")["curve"]
    assert [point["rate_rps"] for point in curve] == [4, 8]
    assert curve[0]["classes"] == alone["classes"]


@pytest.mark.parametrize(
    ("flags", "figure", "rises"),
    [
        (("--load-factor", "3"), "ttft_ms", True),
        (("--replicas", "prefill=4"), "ttft_ms", False),
        (("--accelerator", "h100-sxm"), "tpot_ms", False),
    ],
    ids=[
        "three times the load waits longer for first tokens",
        "more prefill replicas wait less",
        "a faster GPU decodes faster",
    ],
)
def test_a_what_if_changes_the_figure_that_it_should(
    flags: tuple[str, ...], figure: str, rises: bool, tmp_path: Path
) -> None:
    before = run(*LOAD, out=tmp_path / "a.json")["classes"][0][figure]["p90"]
    after = run(*LOAD, *flags, out=tmp_path / "b.json")["classes"][0][figure]["p90"]
    assert (after > before) is rises


def test_another_objective_is_judged_by_it(tmp_path: Path) -> None:
    report = run(*LOAD, "--ttft-ms", "120", out=tmp_path / "r.json")
    assert report["classes"][0]["ttft_limit_ms"] == 120
    assert report["classes"][0]["attainment_percent"] < 99


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--accelerator", "h900"), "no accelerator 'h900'"),
        (("--replicas", "decoder=2"), "write POOL=N with a pool of prefill, decode"),
        (("--class", "batch"), "this service has interactive"),
        (("--tpot-ms", "1"), "TPOT 1 ms is below a lone decode step"),
        (("--json", "."), "is a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_flag_that_cannot_be_is_told_before_anything_runs(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(CHAT), *LOAD, *flags]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert all(line.startswith("paceline simulate: ") for line in captured.err.splitlines())
    assert captured.out == ""


def test_a_request_longer_than_the_context_is_rejected_and_a_clipped_one_served(tmp_path: Path) -> None:
    long = ("--synthetic", "fixed:20000,10", "--rate", "1", "--duration", "10")
    rejected = run(*long, out=tmp_path / "a.json")["outcomes"]
    assert rejected["rejected"] > 0 == rejected["completed"]
    clipped = run(*long, "--clip", out=tmp_path / "b.json")["outcomes"]
    assert clipped["completed"] > 0 == clipped["rejected"]


def test_a_pool_without_a_step_time_table_cannot_be_simulated() -> None:
    service = load_service(CHAT, local=True)
    planned = plan(service)
    assert isinstance(planned, Plan)
    untabled = replace(planned, pools=tuple(replace(pool, table="") for pool in planned.pools))
    with pytest.raises(SimulateError, match="no step-time table"):
        fleet_spec(service, untabled)


def test_each_engine_policy_and_router_policy_serves_the_workload() -> None:
    service = load_service(ROOT / "examples" / "mixed.yaml", local=True)
    planned = plan(service)
    assert isinstance(planned, Plan)
    offered = Offered(Workload("fixed", parse_lengths("fixed:300,20")), service.default_class_name, (2.0,), 10.0)
    for engine, router in (("sarathi", "random"), ("vllm-v1", "round-robin")):
        report = simulate(fleet_spec(service, planned, Policies(engine, router)), offered)
        assert report.runs[0].outcomes["completed"] == report.runs[0].arrivals
