"""`paceline simulate`: the file's fleet on a virtual clock, replay's report, and what-ifs that mean something."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from factories_api import make_class, make_service
from paceline_api.validate import load_service
from paceline_cli.__main__ import main
from paceline_planner import figure
from paceline_planner.plan import Plan, plan
from paceline_planner.replay import Workload
from paceline_planner.sim.fleet import Fleet
from paceline_planner.sim.members import Members, StartUp
from paceline_planner.simulate import (
    Offered,
    SimulateError,
    declared,
    fleet_spec,
    pool_specs,
    simulate,
)
from paceline_planner.workloads import parse_lengths
from paceline_router.scaling.views import Hint
from paceline_router.waiting import Rule

ROOT = Path(__file__).resolve().parents[2]
CHAT = ROOT / "examples" / "chat.yaml"
LOAD = ("--synthetic", "chat", "--rate", "4", "--duration", "30")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all else here."""
    for name in ("write_png", "write_html"):
        monkeypatch.setattr(figure, name, lambda report, path: path.touch())


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
        (("--autoscale", "--replicas", "prefill=1", "--replicas", "decode=1"), "every pool has a fixed size"),
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
        report = simulate(replace(fleet_spec(service, planned, engine), router_policy=router), offered)
        assert report.runs[0].outcomes["completed"] == report.runs[0].arrivals


def test_classes_have_their_turns_in_the_simulated_waiting_room_too() -> None:
    slo = {"defaultClass": "a", "classes": [make_class("a"), make_class("b", priority=7)]}
    service = make_service(slo=slo, router={"waitingRoom": "Enabled"})
    planned = plan(service)
    assert isinstance(planned, Plan)
    assert fleet_spec(service, planned).waiting == {"a": Rule(0), "b": Rule(7)}


def events(report: dict[str, Any]) -> list[str]:
    return [event["what"] for event in report["curve"][0]["events"]]


def test_a_decode_replica_that_dies_loses_its_requests_until_another_is_ready(tmp_path: Path) -> None:
    report = run(*LOAD, "--fail", "decode-0@10", "--start-s", "5", out=tmp_path / "a.json")
    lost = report["curve"][0]["failed_legs"]["lost"]
    assert report["outcomes"]["upstream_failed"] > 0 < report["outcomes"]["no_endpoint"]
    assert lost >= report["outcomes"]["upstream_failed"]
    assert sum(report["outcomes"].values()) == report["arrivals"]
    died, ready = events(report)
    assert died == "decode-0 died"
    assert ready.startswith("decode-new-0 is ready, ")
    assert report == run(*LOAD, "--fail", "decode-0@10", "--start-s", "5", out=tmp_path / "b.json")


def test_what_does_not_return_costs_more_than_what_does(tmp_path: Path) -> None:
    failed = (*LOAD, "--fail", "decode@10", "--start-s", "5")
    returned = run(*failed, out=tmp_path / "a.json")["outcomes"]["completed"]
    gone = run(*failed, "--no-return", out=tmp_path / "b.json")
    assert gone["outcomes"]["completed"] < returned
    assert events(gone) == ["decode-0 died"]


def test_a_pool_of_prefill_replicas_that_dies_leaves_decode_replicas_to_compute_prompts(tmp_path: Path) -> None:
    report = run(*LOAD, "--fail", "prefill@10", "--no-return", out=tmp_path / "r.json")
    assert events(report) == ["prefill-0 died", "prefill-1 died"]
    assert report["outcomes"]["completed"] == report["arrivals"]


def test_kv_transfers_that_fail_are_made_up_for_and_counted(tmp_path: Path) -> None:
    report = run(*LOAD, "--kv-failures", "0.2", "--routers", "3", out=tmp_path / "r.json")
    assert report["outcomes"]["completed"] == report["arrivals"]
    assert report["curve"][0]["failed_legs"]["errored"] > 0.1 * report["arrivals"]
    assert report["classes"][0]["ttft_ms"]["p99"] > 4000  # kvTransfer.timeoutMs is 5000


def test_several_routers_share_the_load_and_know_less(tmp_path: Path) -> None:
    one = run(*LOAD, out=tmp_path / "a.json")
    three = run(*LOAD, "--routers", "3", out=tmp_path / "b.json")
    assert three["outcomes"]["completed"] == one["outcomes"]["completed"]
    assert three["classes"][0]["ttft_ms"] != one["classes"][0]["ttft_ms"]


def test_a_model_of_one_s_own_runs_by_its_config_and_the_report_says_how_sure_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16}
    config |= {"intermediate_size": 5632, "vocab_size": 32000, "max_position_embeddings": 16384}
    file = tmp_path / "rocket-1b" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps(config))
    own = run(*LOAD, "--model-config", str(file), out=tmp_path / "r.json")
    assert "rocket-1b on 1 × a100-sxm-80gb are a roofline's" in capsys.readouterr().err
    assert own["step_times"][0].startswith("roofline.a100-sxm-80gb, rocket-1b × 1: roofline: NVIDIA A100 data sheet")
    assert "median error prefill 5.3 %" in own["step_times"][0]
    known = run(*LOAD, out=tmp_path / "k.json")
    assert own["classes"][0]["tpot_ms"]["p50"] < known["classes"][0]["tpot_ms"]["p50"]
    assert "roofline" not in known["step_times"][0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "name the model's config.json"),
        ("[", "give a config.json as Hugging Face has it"),
        ('{"model_type": "mamba"}', "no roofline for model_type 'mamba'; there are: deepseek"),
        ('{"model_type": "llama"}', "config.json has no hidden_size"),
    ],
    ids=["no file", "not JSON", "an unknown family", "a key is missing"],
)
def test_a_config_that_says_too_little_is_told(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    assert main(["simulate", str(CHAT), *LOAD, "--model-config", str(file)]) == 2
    assert message in capsys.readouterr().err


def test_the_autoscaler_adds_replicas_under_load_and_says_why_and_what_it_cost(tmp_path: Path) -> None:
    load = ("--synthetic", "fixed:800,8", "--rate", "40", "--duration", "100", "--seed", "1")
    report = run(*load, "--autoscale", "--start-s", "20", out=tmp_path / "r.json")
    happened = events(report)
    assert any(what.startswith("prefill 2 → ") for what in happened)
    assert any("is ready" in what for what in happened)
    assert any("GPU-hours" in what for what in happened)
    assert 3 < report["gpus"] <= 8


def test_the_autoscaler_is_told_what_the_file_declares() -> None:
    service = load_service(CHAT, local=True)
    limited = service.model_copy(update={"spec": service.spec.model_copy(update={"max_gpus": 5})})
    workload = limited.spec.workload
    assert workload is not None
    found = declared(limited)
    assert found.max_gpus == 5
    assert found.prompt_hint == Hint(workload.prompt_tokens.mean, workload.prompt_tokens.p90)
    planned = plan(limited)
    assert isinstance(planned, Plan)
    spec = fleet_spec(limited, planned)
    fleet = Fleet(spec, 1, lambda ride: False)
    view = Members(fleet, pool_specs(limited, spec, StartUp(30.0)), Random(1), declared=found).view({}, 300.0)
    assert (view.max_gpus, view.prompt_hint, view.output_hint) == (5, found.prompt_hint, found.output_hint)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--fail", "decoder@10"), "there are: prefill, prefill-0, prefill-1, decode, decode-0"),
        (("--fail", "decode@99"), "name an earlier moment, or raise --duration"),
        (("--fail", "decode"), "write NAME@SECONDS, such as decode-0@60"),
    ],
    ids=["a replica that is not there", "a failure after the load", "a failure without a moment"],
)
def test_a_failure_that_cannot_be_is_told(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", str(CHAT), *LOAD, *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--kv-failures", "2"), ("--routers", "0"), ("--start-s", "-1")], ids=" ".join)
def test_a_number_out_of_range_is_a_usage_error(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["simulate", str(CHAT), *LOAD, *flags])
    assert f"argument {flags[0]}" in capsys.readouterr().err
