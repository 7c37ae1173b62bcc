"""The load generator and `paceline replay` against a small server of completions on loopback, over real HTTP."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pytest
import uvloop
from paceline_api.outcomes import Outcome, error_body
from paceline_cli import replay as command
from paceline_cli.workload_flags import read_outputs
from paceline_engine.clock import Clock
from paceline_engine.http1 import ClientPool, Exchange, serve
from paceline_planner.aggregate import CONNECTION_LOST, Record
from paceline_planner.load import Offered, OpenLoop, Sender
from paceline_planner.replay import Options, Workload, replay
from paceline_planner.report import Report
from paceline_planner.target import ReplayError, Wanted
from paceline_planner.traces import TraceRequest
from paceline_planner.workloads import Fixed

T = TypeVar("T")
Json = dict[str, Any]


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def event(value: Json | str) -> bytes:
    return b"data: " + (value.encode() if isinstance(value, str) else orjson.dumps(value)) + b"\n\n"


@dataclass
class Engine:
    """Answers completions: the first token after `first_s`, one each `gap_s`, or what `answer` does instead."""

    first_s: float = 0.01
    gap_s: float = 0.002
    answer: Callable[[Exchange], None] | None = None
    metrics: Callable[[Engine], str] = lambda engine: ""
    received: list[Json] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)
    classes: list[bytes | None] = field(default_factory=list)
    completed: int = 0
    gone: int = 0

    def handle(self, exchange: Exchange) -> None:
        if exchange.path == "/metrics":
            exchange.respond(200, self.metrics(self).encode(), content_type=b"text/plain")
        elif exchange.path == "/v1/models":
            exchange.respond(200, orjson.dumps({"data": [{"id": "m", "max_model_len": 100}]}))
        else:
            self.received.append(orjson.loads(exchange.body))
            self.arrived_s.append(exchange.received_at)
            self.classes.append(exchange.header(b"x-slo-class"))
            exchange.on_gone = self._leave
            (self.answer or self._stream)(exchange)

    def _leave(self) -> None:
        self.gone += 1

    def _stream(self, exchange: Exchange) -> None:
        body = self.received[-1]
        chat = exchange.path.endswith("chat/completions")
        exchange.start(200, [(b"content-type", b"text/event-stream"), (b"x-paceline-simulated", b"1")])
        if chat:
            exchange.write(event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}))
        loop = asyncio.get_running_loop()

        def token(left: int) -> None:
            if exchange.gone:
                return
            choice: Json = {"delta": {"content": "a"}} if chat else {"text": "a"}
            exchange.write(event({"choices": [choice | {"finish_reason": None if left > 1 else "length"}]}))
            if left > 1:
                loop.call_later(self.gap_s, token, left - 1)
                return
            prompt = 7 if chat else len(body["prompt"])
            usage = {"prompt_tokens": prompt, "completion_tokens": body["max_tokens"]}
            exchange.write(event({"choices": [], "usage": usage}) + event("[DONE]"))
            self.completed += 1
            exchange.end()

        loop.call_later(self.first_s, token, body["max_tokens"])


def router_metrics(engine: Engine, *, lateness_s: float = 0.0005, scale: float = 1.0) -> str:
    return f"""\
paceline_slo_limit_seconds{{slo_class="interactive",objective="ttft"}} 0.4
paceline_slo_limit_seconds{{slo_class="interactive",objective="tpot"}} 0.04
paceline_slo_limit_seconds{{slo_class="interactive",objective="stall"}} 0.12
paceline_slo_target_ratio{{slo_class="interactive"}} 0.95
paceline_gpus{{role="prefill"}} 2
paceline_gpus{{role="decode"}} 1
paceline_fleet_info{{simulated="1",time_scale="{scale}"}} 1
paceline_fleet_lateness_p99_seconds {lateness_s}
paceline_fleet_step_p50_seconds 0.02
# TYPE paceline_requests_received counter
paceline_requests_received_total{{slo_class="interactive"}} {len(engine.received) + 5}
# TYPE paceline_requests counter
paceline_requests_total{{slo_class="interactive",outcome="completed"}} {engine.completed + 5}
# TYPE paceline_slo_decided counter
paceline_slo_decided_total{{slo_class="interactive",result="good"}} {engine.completed + 5}
"""


def make_requests(n: int = 5, every_s: float = 0.01, prompt: int = 20, output: int = 4) -> list[TraceRequest]:
    return [TraceRequest(i * every_s, prompt, output) for i in range(n)]


async def offer(
    engine: Engine,
    requests: Sequence[TraceRequest],
    *,
    scale: float = 1.0,
    stop_after_s: float | None = None,
    **sender: Any,
) -> tuple[Offered, list[Record]]:
    server = await serve(engine.handle, "127.0.0.1", 0)
    pool = ClientPool("127.0.0.1", server.port)
    records: list[Record] = []
    stop = asyncio.Event()
    if stop_after_s is not None:
        asyncio.get_running_loop().call_later(stop_after_s, stop.set)
    try:
        loop = OpenLoop(
            pool, Sender("m", "interactive", **sender), Clock(scale), lambda record, now: records.append(record)
        )
        return await loop.run(requests, stop), records
    finally:
        pool.close()
        await asyncio.sleep(0.02)
        await server.close()


def test_a_stream_is_measured_by_its_first_token_its_gaps_and_its_usage() -> None:
    engine = Engine(first_s=0.05, gap_s=0.02)
    offered, [record] = run(offer(engine, make_requests(1, output=5)))
    assert (record.outcome, record.course.output_tokens, len(record.gaps_s)) == ("completed", 5, 4)
    assert record.course.ttft_s == pytest.approx(0.05, abs=0.02)
    assert record.course.tpot_s == pytest.approx(0.02, abs=0.008)
    assert offered.simulated
    assert not offered.interrupted


def test_the_role_event_of_a_chat_is_no_token() -> None:
    _, [record] = run(offer(Engine(first_s=0.05), make_requests(1), chat=True))
    assert record.course.ttft_s is not None
    assert record.course.ttft_s > 0.04
    assert (record.course.prompt_tokens, record.course.output_tokens) == (7, 4)


def test_requests_carry_exact_token_ids_and_the_class() -> None:
    engine = Engine()
    run(offer(engine, [TraceRequest(0, 700, 3, (8,)), TraceRequest(0, 600, 2, (8,))]))
    first, second = engine.received
    assert (len(first["prompt"]), first["max_tokens"], first["ignore_eos"], first["temperature"]) == (700, 3, True, 0)
    assert first["stream_options"] == {"include_usage": True}
    assert first["prompt"][:512] == second["prompt"][:512]
    assert first["prompt"][512:600] != second["prompt"][512:]
    assert engine.classes == [b"interactive"] * 2


def test_sending_does_not_wait_for_answers() -> None:
    engine = Engine(first_s=0.3)
    run(offer(engine, make_requests(10, every_s=0.02, output=1)))
    gaps = [after - before for before, after in itertools.pairwise(engine.arrived_s)]
    assert engine.arrived_s[-1] - engine.arrived_s[0] == pytest.approx(0.18, abs=0.03)
    assert max(gaps) < 0.1


def test_model_time_runs_with_the_scale() -> None:
    engine = Engine(first_s=0.05, gap_s=0.01)
    begun = time.monotonic()
    _, records = run(offer(engine, make_requests(3, every_s=1.0), scale=10.0))
    assert time.monotonic() - begun < 1.0
    assert records[0].course.ttft_s == pytest.approx(0.5, abs=0.2)


def respond(status: int, code: str = "") -> Callable[[Exchange], None]:
    body = orjson.dumps(error_body(code, "no")) if code else b"oops"
    return lambda exchange: exchange.respond(status, body)


def break_off(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/event-stream")])
    exchange.write(event({"choices": [{"text": "a", "finish_reason": None}]}))
    asyncio.get_running_loop().call_later(0.01, exchange.abort)


def end_early(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/event-stream")])
    exchange.write(event({"choices": [{"text": "a", "finish_reason": None}]}))
    exchange.end()


def fail_midway(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/event-stream")])
    exchange.write(event({"choices": [{"text": "a", "finish_reason": None}]}))
    exchange.write(event(error_body(Outcome.TIMED_OUT, "too late")) + event("[DONE]"))
    exchange.end()


def babble(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/event-stream")])
    exchange.write(b"data: {broken\n\n" + event("[DONE]"))
    exchange.end()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        pytest.param(respond(400, "rejected"), "rejected", id="a request that is too long is rejected"),
        pytest.param(respond(404, "model_not_found"), "rejected", id="OpenAI's own code of a 404 is rejected"),
        pytest.param(respond(429, "shed"), "shed", id="a 429 is shed"),
        pytest.param(respond(429), "shed", id="a 429 without a body is shed"),
        pytest.param(respond(503, "no_endpoint"), "no_endpoint", id="a 503 is no endpoint"),
        pytest.param(respond(502), "upstream_failed", id="a 502 is a failed engine"),
        pytest.param(respond(503, "upstream_failed"), "upstream_failed", id="the code outranks the status"),
        pytest.param(respond(504, "timed_out"), "timed_out", id="a 504 is timed out"),
        pytest.param(break_off, CONNECTION_LOST, id="a connection that breaks is lost"),
        pytest.param(end_early, "upstream_failed", id="a stream without its end has failed"),
        pytest.param(fail_midway, "timed_out", id="an error event gives the outcome"),
        pytest.param(babble, "upstream_failed", id="a stream that is no JSON has failed"),
    ],
)
def test_each_end_is_one_outcome(answer: Callable[[Exchange], None], outcome: str) -> None:
    offered, records = run(offer(Engine(answer=answer), make_requests(2)))
    assert [record.outcome for record in records] == [outcome] * 2
    assert offered.sent == 2


def test_an_answer_that_takes_too_long_times_out_and_its_connection_is_closed() -> None:
    engine = Engine(first_s=5.0)
    _, [record] = run(offer(engine, make_requests(1), timeout_s=0.1))
    assert record.outcome == "timed_out"
    assert engine.gone == 1


def test_a_server_that_is_not_there_loses_the_connection() -> None:
    async def main() -> list[Record]:
        server = await serve(Engine().handle, "127.0.0.1", 0)
        await server.close()
        records: list[Record] = []
        pool = ClientPool("127.0.0.1", server.port)
        loop = OpenLoop(pool, Sender("m", "c"), Clock(), lambda record, now: records.append(record))
        await loop.run(make_requests(1), asyncio.Event())
        return records

    assert [record.outcome for record in run(main())] == [CONNECTION_LOST]


def test_a_stopped_run_accounts_for_every_request_it_sent() -> None:
    engine = Engine(first_s=5.0)
    offered, records = run(offer(engine, make_requests(200, every_s=0.01), stop_after_s=0.3))
    assert offered.interrupted
    assert 0 < offered.sent == len(records) < 200
    assert {record.outcome for record in records} == {"client_gone"}


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
        pytest.param(["--synthetic", "code", "--rate", "1", "--url", "https://x"], "plain http", id="no TLS"),
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
        asyncio.get_running_loop().call_later(0.4, os.kill, os.getpid(), signal.SIGINT)
        report = await command._measure(command._options(args))
        await server.close()
        return report

    report = run(main())
    assert report.interrupted
    assert 5 < report.headline.arrivals < 100
    assert report.headline.duration_s < 2
    assert "interrupted" in report.faults[0]
