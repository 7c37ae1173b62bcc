"""`paceline calibrate` against live engines: how near its table comes to the machine, and what it will not measure."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import orjson
import pytest
from paceline_cli.__main__ import main
from paceline_engine.http1 import ClientPool, Exchange, serve
from paceline_engine.step_time import StepShape, StepTable
from paceline_engine.tables import load_table, parse
from paceline_planner.calibrate import CalibrateError
from paceline_planner.calibrate.acquaint import Acquaintance, acquaint
from paceline_planner.calibrate.link import Link
from sim_engine import engines, run
from waiting import until

MODEL, GPU = "llama-3.1-8b", "a100-sxm-80gb"
TIME_SCALE = 4  # so slow that 32 streams at once are no strain on a busy machine


@contextmanager
def sim(folder: Path) -> Iterator[str]:
    """The URL of a simulated engine with noise and stalls, in a process of its own."""
    announce = folder / "urls.json"
    flags = [f"--model={MODEL}", f"--table={GPU}", f"--time-scale={TIME_SCALE}", f"--announce={announce}"]
    process = subprocess.Popen([sys.executable, "-m", "paceline_engine.sim", *flags], stderr=subprocess.PIPE)
    try:
        give_up = monotonic() + 30
        while not announce.exists():
            assert process.poll() is None, process.communicate()[1]
            assert monotonic() < give_up
            sleep(0.02)
        (url,) = json.loads(announce.read_text()).values()
        yield url
    finally:
        process.kill()
        process.communicate()


def command(url: str, out: Path) -> list[str]:
    return ["calibrate", f"--url={url}", f"--model={MODEL}", "--gpu=mine", f"--out={out}", "--quick"]


def shapes() -> dict[str, list[StepShape]]:
    """Steps on whole tiles that `--quick` does not measure, within and somewhat beyond what it does."""
    prompts = [(n, prefix) for n in (384, 640, 1280, 1920) for prefix in (0, 1024, 6144)]
    decodes = [(b, c) for b in (3, 6, 12, 24, 48) for c in (256, 700, 2000, 3000)]
    pairs = {(n, prefix): n * (prefix + n / 2) for n, prefix in prompts}
    return {
        "prefill": [StepShape(n, pairs[n, prefix], 0, 0) for n, prefix in prompts],
        "decode": [StepShape(0, 0.0, b, b * c) for b, c in decodes],
        "mixed": [StepShape(n, pairs[n, prefix], b, b * c) for n, prefix in prompts for b, c in decodes],
    }


def test_the_table_of_a_live_engine_predicts_steps_that_were_not_measured(tmp_path: Path) -> None:
    out, true = tmp_path / "t.json", load_table(GPU, MODEL)
    with sim(tmp_path) as url:
        assert main(command(url, out)) == 0
    document = json.loads(out.read_bytes())
    found: StepTable = parse(document, document["entries"][0])
    assert found.kv_tokens == true.kv_tokens
    assert "on a simulated engine" in found.source
    assert set(found.error) == {"prefill", "decode", "mixed"}
    for phase, steps in shapes().items():
        off = [abs(found.seconds(step) / true.seconds(step) - 1.0) for step in steps]
        assert np.median(off) < 0.05, phase
        assert np.quantile(off, 0.9) < 0.10, phase


def test_ctrl_c_ends_with_130_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    with sim(tmp_path) as url:
        calibrating = subprocess.Popen(
            [sys.executable, "-m", "paceline_cli", *command(url, out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with pytest.raises(subprocess.TimeoutExpired):
            calibrating.wait(3.0)
        calibrating.send_signal(signal.SIGINT)
        _, said = calibrating.communicate(timeout=20)
    assert (calibrating.returncode, said) == (130, b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["urls.json"]


def test_nobody_at_the_url_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("http://127.0.0.1:9", tmp_path / "t.json")) == 2
    assert main(command("https://127.0.0.1:9", tmp_path / "t.json")) == 2
    assert main(command("ftp://127.0.0.1", tmp_path / "t.json")) == 2
    plain, secure, scheme = capsys.readouterr().err.splitlines()
    assert plain.startswith("paceline calibrate: http://127.0.0.1:9 does not answer")
    assert secure.startswith("paceline calibrate: https://127.0.0.1:9 does not answer")
    assert "not http://HOST:PORT or https://HOST:PORT" in scheme
    assert not (tmp_path / "t.json").exists()


def test_an_engine_tells_what_it_holds_and_its_schedulers_budget() -> None:
    async def work() -> None:
        async with engines(("--policy=sarathi", "--token-budget=256")) as (engine,):
            with closing(ClientPool("127.0.0.1", engine.engine.port)) as pool:
                met = await acquaint(Link(pool, 1), "m")
        assert met == Acquaintance(kv_tokens=443_520, context_tokens=4096, step_tokens=256, simulated=True)

    run(work)


async def refusal(port: int) -> str:
    with closing(ClientPool("127.0.0.1", port)) as pool, pytest.raises(CalibrateError) as refused:
        await acquaint(Link(pool, 1), None)
    return str(refused.value)


def test_an_engine_that_serves_others_is_not_measured() -> None:
    async def work() -> None:
        async with engines(()) as (engine,):
            body = {"prompt": [1] * 50, "max_tokens": 3000, "ignore_eos": True}
            busy = asyncio.create_task(engine.complete(**body))
            await until(lambda: engine.engine.running == 1)
            assert "serves other requests" in await refusal(engine.engine.port)
            busy.cancel()
            await asyncio.gather(busy, return_exceptions=True)

    run(work)


VLLM_PAGE = b"""\
vllm:num_requests_running 0
vllm:num_requests_waiting 0
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1
"""


def says_two_tokens(exchange: Exchange) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 32, "completion_tokens": 2}}
    exchange.respond(200, b"data: " + orjson.dumps(usage) + b"\n\n", content_type=b"text/event-stream")


def refuses_ids(exchange: Exchange) -> None:
    exchange.respond(400, b'{"error": "prompt must be\\na string"}')


def counts_right(exchange: Exchange) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 32, "completion_tokens": 4}}
    exchange.respond(200, b"data: " + orjson.dumps(usage) + b"\n\n", content_type=b"text/event-stream")


@pytest.mark.parametrize(
    ("page", "complete", "says"),
    [
        pytest.param(b"", refuses_ids, "has no vllm:num_requests_running", id="no vLLM metrics"),
        pytest.param(VLLM_PAGE.splitlines()[0], refuses_ids, "has no vllm:cache_config_info", id="no KV blocks"),
        pytest.param(VLLM_PAGE, refuses_ids, r"refuses a prompt of token ids (400", id="texts only"),
        pytest.param(VLLM_PAGE, says_two_tokens, "counts 32 tokens in and 2 out", id="an end of its own"),
        pytest.param(VLLM_PAGE, counts_right, "does not time prompts and tokens", id="no times"),
    ],
)
def test_a_foreign_server_is_refused_in_one_line(
    page: bytes, complete: Callable[[Exchange], None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline_planner.calibrate.link._SETTLE_S", 0.1)

    def handle(exchange: Exchange) -> None:
        if exchange.path == "/metrics":
            exchange.respond(200, page, content_type=b"text/plain")
        elif exchange.path == "/v1/models":
            exchange.respond(200, b'{"data": [{"id": "m"}]}')
        else:
            complete(exchange)

    async def work() -> None:
        server = await serve(handle, "127.0.0.1", 0)
        said = await refusal(server.port)
        assert says in said
        assert "\n" not in said
        await server.drain(1)

    run(work)
