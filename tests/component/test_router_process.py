"""`python -m paceline_router` as a process: starts, serves, drains on a signal, says in a line why it cannot run."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop
from engine_double import EngineDouble
from paceline_api.config import RouterConfig
from paceline_engine.http1 import ClientPool, fetch

BODY = b'{"prompt":[1,2,3],"max_tokens":3}'


def write_config(folder: Path, url: str) -> Path:
    config = RouterConfig.model_validate(
        {
            "service": "chat",
            "model": "m",
            "max_context_tokens": 4096,
            "default_class": "c",
            "classes": [{"name": "c", "ttft_s": 1, "tpot_s": 1}],
            "discovery": {"replicas": [{"name": "mixed0", "url": url, "role": "mixed", "pool": "p"}], "kind": "static"},
        }
    )
    path = folder / "router.json"
    path.write_text(config.to_json())
    return path


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_serves_then_drains_on_a_signal(tmp_path: Path, signum: signal.Signals) -> None:
    async def test() -> None:
        engine = await EngineDouble().start()
        config = write_config(tmp_path, engine.url)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "paceline_router", "--config", str(config), "--port", "0"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PACELINE_TOKEN": "t"},
        )
        try:
            async with asyncio.timeout(15):
                assert process.stdout is not None
                line = (await process.stdout.readline()).decode()
                pool = ClientPool("127.0.0.1", int(line.split("url=http://127.0.0.1:")[1].split()[0]))
                while (await fetch(pool, b"GET", b"/readyz", timeout_s=5)).status != 200:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.02)
                answer = await fetch(pool, b"POST", b"/v1/completions", (), BODY, timeout_s=5)
                assert answer.status == 200
                assert engine.asked[0].headers["x-paceline-token"] == "t"
                process.send_signal(signum)
                assert await process.wait() == 0
                pool.close()
        finally:
            if process.returncode is None:
                process.kill()
            await engine.stop()

    uvloop.run(test())


def run(*args: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "paceline_router", *args], capture_output=True, text=True, timeout=20)
    return done.returncode, done.stderr


def test_a_port_in_use_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, error = run("--config", str(write_config(tmp_path, "http://127.0.0.1:1")), "--port", str(port))
    assert code == 1
    assert error == (
        f"paceline_router: port {port} of 127.0.0.1 is in use; stop what listens there or choose another with --port\n"
    )


def test_a_configuration_that_cannot_be_used_is_a_line_a_problem(tmp_path: Path) -> None:
    code, error = run("--config", str(tmp_path / "none.json"))
    assert (code, error.count("\n")) == (1, 1)
    assert "none.json: cannot be read" in error


def test_a_time_scale_out_of_range_is_refused(tmp_path: Path) -> None:
    code, error = run("--config", str(write_config(tmp_path, "http://127.0.0.1:1")), "--time-scale", "0")
    assert (code, error.count("\n")) == (1, 1)
    assert "time scale" in error
