"""A real vLLM on a CPU as a child process, from the environment of `make vllm`.

`serving(...)` yields the port of one with flags of a test's own, `launched(...)` one of a pool. It computes on one core
beside its HTTP server and the test. The child runs in its own session and is gone when the block ends.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from paceline_engine.launch import LaunchSpec, Role, engine_command

ROOT = Path(__file__).resolve().parents[2]
SCHEDULER = "--scheduler-cls=paceline_engine.vllm.scheduler.stall_free"
START_TIMEOUT_S = 240.0  # 20 s on an idle machine; the first start after an installation reads 6 GB
_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker inside the engine's process: no second one that spins
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # compiling the sampler would hold the first request up for half a minute
}
SMALL = (
    *("--served-model-name=m", "--dtype=bfloat16", "--enforce-eager", "--max-num-seqs=32"),
    "--kv-cache-memory-bytes=268435456",
)


@dataclass(frozen=True, slots=True)
class Environment:
    """What `make vllm` has made."""

    folder: Path
    models: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


def look() -> Environment | str:
    """The environment, or what is missing."""
    where = subprocess.run([ROOT / "images/vllm/build.sh", "where"], capture_output=True, text=True, check=False)
    if where.returncode:
        return "vLLM's environment is not made (7 GB, 4 min, once): make vllm"
    folder, models = where.stdout.split()
    return Environment(Path(folder), Path(models))


@cache
def find() -> Environment | str:
    """What `look` saw first: it does not change while tests run."""
    return look()


def found() -> Environment:
    """The environment, which a requirement has found already."""
    environment = find()
    assert isinstance(environment, Environment), environment
    return environment


class DidNotStart(Exception):
    """vLLM ended, or did not answer in time; the message ends with what it last said."""


@contextmanager
def serving(
    model: str = "qwen2-5m", *flags: str, scheduler: str = SCHEDULER, env: Mapping[str, str] | None = None
) -> Iterator[int]:
    """The port of a vLLM that serves `model` under the name m; an empty `scheduler` is vLLM's own."""
    port, chosen = free_port(), [scheduler] if scheduler else []
    start = [sys.executable, "-m", "paceline_engine.vllm", str(found().models / model), f"--port={port}"]
    with started([*start, "--host=127.0.0.1", "--max-model-len=8192", *SMALL, *chosen, *flags], port, env):
        yield port


def launch_spec(role: Role, **over: Any) -> LaunchSpec:
    """An engine of a service with prefill and decode apart, as a pool's is; its fields may be overridden."""
    kind: dict[str, Any] = {"default_ttft_s": 1.0, "default_tpot_s": 0.1, "disaggregated": True, "kv_lease_s": 6.0}
    places = {"ports": (free_port(),), "side_channel_host": "127.0.0.1", "side_channel_port": free_port()}
    model = f"file://{found().models / 'qwen2-5m'}"
    return LaunchSpec("VLLM", "s", role, role, model, "m", 8192, "default", **(kind | places | over))


@contextmanager
def launched(spec: LaunchSpec, token: str, *flags: str) -> Iterator[Started]:
    """An engine by the very command that `up` and the operator start it with, and what a CPU needs beside it."""
    command = engine_command(replace(spec, extra_args=(*SMALL, *flags)))
    ours = {"PACELINE_TOKEN": token, "UCX_TLS": "tcp", "UCX_NET_DEVICES": "lo"}
    with started(command.argv, spec.ports[0], {**command.env, **ours}) as engine:
        yield engine


def free_port() -> int:
    """One below those that the kernel gives to connections: none can take it before the engine has loaded."""
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(frozen=True, slots=True)
class Started:
    """A vLLM that serves; `log` is what it says."""

    port: int
    child: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """At once, with all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait(10)


@contextmanager
def started(command: Sequence[str], port: int, env: Mapping[str, str] | None = None) -> Iterator[Started]:
    """One child process until the block ends."""
    path = f"{found().folder / 'bin'}:{os.environ.get('PATH', '')}"
    with tempfile.TemporaryDirectory(prefix="paceline-vllm-") as folder:
        log = Path(folder, "log")
        with log.open("wb") as out:
            child = subprocess.Popen(
                command,
                env={**os.environ, **_ENV, "PATH": path, "TMPDIR": folder, **(env or {})},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _await_health(child, port, log)
            yield Started(port, child, log)
        finally:
            _end(child)


def _await_health(child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise DidNotStart(f"exit code {child.poll()}:\n{log.read_text(errors='replace')[-4000:]}")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask, then kill its whole session: the engine is a child of the server."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(10)
