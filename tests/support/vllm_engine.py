"""A real vLLM on a CPU as a child process, from the environment of `make vllm`: `serving(...)` yields its port.

It computes on one core beside its HTTP server and the test, with prefix caching only where a test asks for it. The
child runs in its own session and is gone when the block ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCHEDULER = "--scheduler-cls=paceline_engine.vllm.scheduler.stall_free"
START_TIMEOUT_S = 240.0  # 20 s on an idle machine; the first start after an installation reads 6 GB
_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker inside the engine's process: no second one that spins
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
_FLAGS = (
    *("--served-model-name=m", "--host=127.0.0.1", "--dtype=bfloat16", "--enforce-eager", "--max-model-len=8192"),
    *("--kv-cache-memory-bytes=268435456", "--max-num-seqs=32"),
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
    environment = found()
    with tempfile.TemporaryDirectory(prefix="paceline-vllm-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        log = Path(folder, "log")
        chosen = [scheduler] if scheduler else []
        command = [sys.executable, "-m", "paceline_engine.vllm", str(environment.models / model), f"--port={port}"]
        path = f"{environment.folder / 'bin'}:{os.environ.get('PATH', '')}"
        with log.open("wb") as out:
            child = subprocess.Popen(
                [*command, *_FLAGS, *chosen, *flags],
                env={**os.environ, **_ENV, "PATH": path, "TMPDIR": folder, **(env or {})},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                _await_health(child, port, log)
                yield port
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
