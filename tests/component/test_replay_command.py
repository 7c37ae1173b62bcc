"""`paceline replay` against a small server of completions, over real HTTP: what it says of it, and its command line."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest
from certificates import make_certificate
from completions_double import Engine, Json, router_metrics, run
from paceline_api.config import TLSConfig
from paceline_cli import replay as command
from paceline_cli.workload_flags import read_outputs
from paceline_engine.http1 import Exchange, serve
from paceline_planner.replay import Options, Workload, replay
from paceline_planner.report import Report
from paceline_planner.target import ReplayError, Wanted
from paceline_planner.traces import TraceRequest
from paceline_planner.workloads import Fixed
from paceline_router.certificate import Certificate


async def measure(engine: Engine, **options: Any) -> Json:
    server = await serve(engine.handle, "127.0.0.1", 0)
    defaults: Json = {"workload": Workload("fixed:20,4", Fixed(20, 4)), "rates_rps": [50.0], "duration_s": 0.5}
    try:
        report = await replay(Options(f"http://127.0.0.1:{server.port}", **(defaults | options)), asyncio.Event())
        value = orjson.loads(report.to_json())
        assert isinstance(value, dict)
        return value
    finally:
        await server.close()


def test_a_paceline_router_says_limits_gpus_and_lateness_and_counts_the_same() -> None:
    engine = Engine(metrics=router_metrics)
    report = run(measure(engine))
    [figures] = report["classes"]
    assert (figures["name"], figures["ttft_limit_ms"], figures["target_percent"]) == ("interactive", 400, 95)
    assert (report["simulated"], report["gpus"]) == (True, 3)
    assert report["lateness"]["engine_p99_ms"] == 0.5
    assert report["reconciliation"]["matches"]
    assert report["reconciliation"]["router_arrivals"] == report["arrivals"] == len(engine.received) > 10
    assert report["outcomes"]["completed"] == report["arrivals"]
    assert set(engine.classes) == {None}


@pytest.mark.parametrize(("key", "says"), [("sk", ""), (None, "put it into PACELINE_API_KEY")], ids=["a key", "none"])
def test_a_router_with_a_certificate_and_keys(
    key: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "pki"
    certificate = Certificate(TLSConfig.model_validate(make_certificate(made)))
    monkeypatch.setenv("SSL_CERT_FILE", str(made / "ca.crt"))
    engine = Engine(metrics=router_metrics)

    def handle(exchange: Exchange) -> None:
        if exchange.header(b"authorization") == b"Bearer sk":
            engine.handle(exchange)
        else:
            exchange.respond(401)

    async def test() -> Json:
        server = await serve(handle, "127.0.0.1", 0, tls=certificate.context)
        workload = Workload("fixed:20,4", Fixed(20, 4))
        options = Options(f"https://localhost:{server.port}", workload, [50.0], 0.2, api_key=key)
        try:
            value = orjson.loads((await replay(options, asyncio.Event())).to_json())
            assert isinstance(value, dict)
            return value
        finally:
            await server.close()

    if says:
        with pytest.raises(ReplayError, match=says):
            run(test())
    else:
        report = run(test())
        assert report["outcomes"]["completed"] == report["arrivals"] == len(engine.received) > 0


def test_late_engines_make_the_report_invalid() -> None:
    report = run(measure(Engine(metrics=lambda engine: router_metrics(engine, lateness_s=0.03))))
    assert not report["valid"]
    assert "an engine ran 30.0 ms late" in report["invalid_reason"]


def test_a_router_that_is_gone_after_the_run_is_not_reconciled() -> None:
    report = run(measure(Engine(metrics=lambda engine: "" if engine.received else router_metrics(engine))))
    assert report["reconciliation"] is None
    assert "do not say how late" in report["invalid_reason"]
    assert report["arrivals"] == report["outcomes"]["completed"]


def test_several_rates_give_a_curve_and_send_the_same_text() -> None:
    engine = Engine()
    wanted = Wanted(ttft_s=1.0, tpot_s=1.0, gpus=2)
    report = run(measure(engine, rates_rps=[80.0, 20.0], wanted=wanted))
    assert [point["rate_rps"] for point in report["curve"]] == [20, 80]
    assert [point["attainment_percent"] for point in report["curve"]] == [100, 100]
    assert sum(point["arrivals"] for point in report["curve"]) == len(engine.received)
    slow = report["curve"][0]["arrivals"]
    assert engine.received[0]["prompt"] == engine.received[slow]["prompt"]


@pytest.mark.parametrize(
    ("metrics", "wanted", "message"),
    [
        pytest.param(False, Wanted(), "publishes no objectives; give --ttft-ms", id="a foreign server needs limits"),
        pytest.param(True, Wanted(class_name="x"), "no class 'x'; choose --class from interactive", id="unknown class"),
        pytest.param(True, Wanted(ttft_s=1), "leave out --ttft-ms", id="a router's own limits hold"),
        pytest.param(True, Wanted(time_scale=2), "runs at time scale 1", id="the clock is the fleet's"),
        pytest.param(True, Wanted(model="x"), "no model 'x'; it lists m", id="unknown model"),
    ],
)
def test_what_does_not_fit_the_server_is_said_before_anything_is_sent(
    metrics: bool, wanted: Wanted, message: str
) -> None:
    engine = Engine(metrics=router_metrics) if metrics else Engine()
    with pytest.raises(ReplayError, match=message):
        run(measure(engine, wanted=wanted))
    assert not engine.received


def test_clipping_fits_requests_to_the_models_context() -> None:
    engine = Engine(metrics=router_metrics)
    run(measure(engine, clip=True, workload=Workload("long", [TraceRequest(0, 500, 30)]), rates_rps=[None]))
    assert (len(engine.received[0]["prompt"]), engine.received[0]["max_tokens"]) == (70, 30)


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    return parser.parse_args(["replay", *argv])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param(["--synthetic", "chat"], "give --rate", id="a synthetic workload needs a rate"),
        pytest.param(["--synthetic", "poem", "--rate", "1"], "no workload 'poem'", id="an unknown workload"),
        pytest.param(["--trace", "absent.csv"], "absent.csv: No such file", id="a trace that is not there"),
        pytest.param(["--synthetic", "code", "--rate", "1", "--url", "ftp://x"], "not http://HOST", id="FTP"),
        pytest.param(["--synthetic", "code", "--rate", "1", "--url", "127.0.0.1:1"], "does not answer", id="no server"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(parse(*argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_the_command_writes_table_json_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "t.jsonl"
    lines = (orjson.dumps({"arrival_s": i / 20, "prompt_tokens": 9, "output_tokens": 2}) for i in range(10))
    trace.write_bytes(b"\n".join(lines))

    async def main() -> int:
        engine = Engine(metrics=router_metrics)
        server = await serve(engine.handle, "127.0.0.1", 0)
        json = tmp_path / "out" / "report.json"
        args = parse("--url", f"http://127.0.0.1:{server.port}", "--trace", str(trace), "--json", str(json))
        report = await command._measure(command._options(args))
        await server.close()
        json.parent.mkdir()
        for path, write in read_outputs(args):
            write(report, path)
        return report.headline.arrivals

    assert run(main()) == 10
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json", "report.png"]


def test_ctrl_c_reports_what_was_done_and_marks_it() -> None:
    async def main() -> Report:
        engine = Engine(metrics=router_metrics)
        server = await serve(engine.handle, "127.0.0.1", 0)
        args = parse("--url", f"http://127.0.0.1:{server.port}", "--synthetic", "fixed:9,2", "--rate", "50")
        asyncio.get_running_loop().call_later(1.0, os.kill, os.getpid(), signal.SIGINT)
        report = await command._measure(command._options(args))
        await server.close()
        return report

    report = run(main())
    assert report.interrupted
    assert 5 < report.headline.arrivals < 100
    assert report.headline.duration_s < 2
    assert "interrupted" in report.faults[0]
