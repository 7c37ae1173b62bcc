"""The process of simulated engines: what it says when it cannot start, that it announces itself, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from engine_peer import TOKEN, TRUSTED
from paceline_engine import drain
from paceline_engine.http1 import ClientError, ClientPool, fetch
from sim_engine import engines, run
from waiting import until

SIM = (sys.executable, "-m", "paceline_engine.sim")
FLAGS = ("--model=llama-3.1-8b", "--table=a100-sxm-80gb", "--served-name=m", "--max-model-len=4096")


@contextmanager
def sim(tmp_path: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """A running process and its URLs; it is gone afterwards."""
    announce = tmp_path / "urls.json"
    env = {**os.environ, "PACELINE_TOKEN": TOKEN}
    process = subprocess.Popen([*SIM, *FLAGS, f"--announce={announce}", *flags], env=env, stderr=subprocess.PIPE)
    try:
        for _ in range(1000):
            if announce.exists() or process.poll() is not None:
                break
            process_wait(process, 0.01)
        assert announce.exists(), process.communicate()[1]
        yield process, json.loads(announce.read_text())
    finally:
        process.kill()
        process.communicate()


def process_wait(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return


def pool_of(url: str) -> ClientPool:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return ClientPool(host, int(port))


def body(**over: object) -> bytes:
    return orjson.dumps({"prompt": [1] * 50, "max_tokens": 60, "ignore_eos": True, "stream": True, **over})


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        pytest.param(("--table=nope",), "no step-time table 'nope'; there are: a100-sxm-80gb", id="unknown table"),
        pytest.param(("--model=nope",), "no step-time table for nope", id="a model without a table"),
        pytest.param(("--tensor=3",), "there are: tensor 1, tensor 2", id="a tensor parallelism without a table"),
        pytest.param(("--prior-table=nope",), "no step-time table 'nope'", id="unknown prior"),
        pytest.param(("--policy=nope",), "choose from", id="unknown policy"),
        pytest.param(("--bogus",), "--help", id="unknown flag"),
        pytest.param(("--kv-blocks=10",), "lower it to 160", id="a context that the KV cache cannot hold"),
        pytest.param(("--max-model-len=140000",), "exceeds the 131072 tokens", id="a context beyond the model's"),
        pytest.param(("--ports=1,2",), "2 ports for 1 replicas", id="more ports than replicas"),
        pytest.param(("--ports=http",), "must be numbers", id="a port that is no number"),
        pytest.param(("--noise=nan",), "--noise must be 0 or more", id="noise that is no number"),
        pytest.param(("--time-scale=0",), "--time-scale must be", id="time that stands still"),
        pytest.param(("--announce=/nowhere/urls",), "folder that exists", id="a file that cannot be written"),
    ],
)
def test_what_cannot_work_is_one_line_that_says_what_to_change(
    flags: tuple[str, ...], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from paceline_engine.sim.__main__ import main

    assert main([*FLAGS, *flags]) == 1
    cause = capfd.readouterr().err.strip().splitlines()
    assert len(cause) == 1
    assert says in cause[0]


def test_a_port_in_use_is_named_and_no_engine_keeps_listening(tmp_path: Path) -> None:
    async def work() -> None:
        async with engines(("--role=mixed",)) as (taken,):
            port = taken.engine.port
            process = await asyncio.create_subprocess_exec(
                *SIM, *FLAGS, "--replicas=2", f"--ports=0,{port}", stderr=asyncio.subprocess.PIPE
            )
            _, err = await process.communicate()
            assert process.returncode == 1
            (line,) = err.decode().strip().splitlines()
            assert f"cannot listen on 127.0.0.1:{port}" in line
            assert "give --ports another port" in line

    run(work)


def test_sigterm_lets_streams_end_refuses_new_requests_and_exits_with_0(tmp_path: Path) -> None:
    async def work() -> None:
        with sim(tmp_path, "--replicas=2") as (process, urls):
            assert list(urls) == ["mixed-0", "mixed-1"]
            first, second = (pool_of(url) for url in urls.values())
            long = body(max_tokens=400)
            stream = asyncio.ensure_future(fetch(first, b"POST", b"/v1/completions", (), long, timeout_s=20))
            await _until_running(first)
            process.send_signal(signal.SIGTERM)
            await _until_status(second, b"/readyz", 503)
            refused = await fetch(second, b"POST", b"/v1/completions", (), body(), timeout_s=5)
            assert refused.status == 503
            assert (await stream).body.endswith(b"data: [DONE]\n\n")
            assert await asyncio.to_thread(process.wait, 10) == 0

    run(work)


def test_what_outlasts_the_drain_ends_with_an_error_event(tmp_path: Path) -> None:
    async def work() -> None:
        with sim(tmp_path, "--drain-timeout-s=0.2") as (process, urls):
            pool = pool_of(urls["mixed-0"])
            stream = asyncio.ensure_future(
                fetch(pool, b"POST", b"/v1/completions", (), body(max_tokens=4000), timeout_s=20)
            )
            await _until_running(pool)
            process.send_signal(signal.SIGTERM)
            last = (await stream).body.strip().split(b"\n\n")[-1]
            assert b"shut down before the answer was complete" in last
            assert b"[DONE]" not in last
            assert await asyncio.to_thread(process.wait, 10) == 0

    run(work)


def test_a_second_signal_does_not_wait_for_anyone(tmp_path: Path) -> None:
    async def work() -> None:
        with sim(tmp_path, "--replicas=3") as (process, urls):
            pool = pool_of(urls["mixed-2"])
            stream = asyncio.ensure_future(
                fetch(pool, b"POST", b"/v1/completions", (), body(max_tokens=4000), timeout_s=20)
            )
            await _until_running(pool)
            process.send_signal(signal.SIGINT)
            await _until_status(pool, b"/readyz", 503)
            process.send_signal(signal.SIGINT)
            assert b"shut down before the answer" in (await stream).body
            assert await asyncio.to_thread(process.wait, 10) == 0

    run(work)


def test_an_engine_that_loads_is_announced_but_not_ready(tmp_path: Path) -> None:
    async def work() -> None:
        with sim(tmp_path, "--startup-s=1.5") as (_process, urls):
            pool = pool_of(urls["mixed-0"])
            assert (await fetch(pool, b"GET", b"/readyz", timeout_s=5)).status == 503
            await _until_status(pool, b"/readyz", 200)

    run(work)


def test_the_drain_hook_returns_when_streams_have_ended() -> None:
    async def work() -> None:
        async with engines(("--role=mixed",)) as (client,):
            stream = asyncio.ensure_future(client.post("/v1/completions", body(max_tokens=2000)))
            await until(lambda: client.engine.running == 1)
            ended = await drain.drain("127.0.0.1", client.engine.port, token=TOKEN, notice_s=0, timeout_s=10)
            assert ended == "drained"
            assert client.engine.in_progress == 0
            assert (await stream).status == 200
            assert (await client.post("/v1/completions", body(), TRUSTED)).status == 503

    run(work)


def test_the_drain_hook_gives_up_after_its_timeout_and_bears_an_engine_that_is_gone() -> None:
    async def work() -> None:
        async with engines(("--role=mixed",)) as (client,):
            stream = asyncio.ensure_future(client.post("/v1/completions", body(max_tokens=4000)))
            await until(lambda: client.engine.running == 1)
            port = client.engine.port
            assert await drain.drain("127.0.0.1", port, token=TOKEN, notice_s=0, timeout_s=0.1) == "timeout"
            stream.cancel()
        assert (await drain.drain("127.0.0.1", port, token=TOKEN, notice_s=0, timeout_s=1)).startswith("gone")

    run(work)


async def _until_running(pool: ClientPool) -> None:
    async with asyncio.timeout(10):
        while True:
            if drain.left_requests((await fetch(pool, b"GET", b"/metrics", timeout_s=5)).body):
                return
            await asyncio.sleep(0.01)


async def _until_status(pool: ClientPool, path: bytes, status: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                if (await fetch(pool, b"GET", path, timeout_s=5)).status == status:
                    return
            except ClientError:
                pass
            await asyncio.sleep(0.01)
