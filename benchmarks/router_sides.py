"""The routers that `router.py` compares, as processes on one core, beside the engines and the client on the other.

Rivals come from PyPI by requirements/rivals.txt, into an environment in the cache, named by that file and by Python's
version: nothing is made twice. Invariant: whatever was started has ended when the context is left.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from router_engines import MODEL

HERE = Path(__file__).parent
LOCK = HERE.parent / "requirements" / "rivals.txt"
ROUTER_CORE, OTHER_CORE = 0, 1
START_S = 30.0
NEW, OLD = "vllm-router", "sglang-router"


@dataclass(frozen=True, slots=True)
class Side:
    """A router, or none: then `port` is an engine's own."""

    name: str
    port: int
    pid: int = 0


def environment() -> Path:
    """With both rivals in it."""
    tag = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline" / "rivals" / tag
    if not (folder / ".made").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip: list[str | Path] = [
            folder / "bin" / "pip",
            "install",
            "--quiet",
            "--no-cache-dir",
            "--no-deps",
            "--only-binary",
            ":all:",
        ]
        subprocess.run([*pip, "--require-hashes", "-r", LOCK], check=True)
        (folder / ".made").touch()
    return folder


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process so far; 0 for none."""
    if not pid:
        return 0.0
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def resident_mib(pid: int) -> float:
    """What a process holds in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def started(argv: Sequence[str | Path], core: int, log: Path) -> Iterator[subprocess.Popen[str]]:
    """A process on one core."""
    with log.open("w") as errors:
        pinned = ["taskset", "-c", str(core), *map(str, argv)]
        process = subprocess.Popen(pinned, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def engines(count: int, folder: Path) -> Iterator[tuple[int, list[int]]]:
    """Their process and their ports."""
    argv: list[str | Path] = [sys.executable, HERE / "router_engines.py", str(count)]
    with started(argv, OTHER_CORE, folder / "engines.log") as process:
        assert process.stdout is not None
        yield process.pid, json.loads(process.stdout.readline())


@contextmanager
def sides(ports: Sequence[int], ours: str, theirs: Mapping[str, Sequence[str]], folder: Path) -> Iterator[list[Side]]:
    """Ours under a policy, and of the rivals those named, with their options; all in front of the same engines."""
    with ExitStack() as stack:
        made = [_ours(ports, ours, stack, folder)]
        for name, options in theirs.items():
            made.append(_rival(name, options, ports, stack, folder))
        yield made


def _ours(ports: Sequence[int], policy: str, stack: ExitStack, folder: Path) -> Side:
    replicas = [
        {"name": f"mixed-{i}", "url": f"http://127.0.0.1:{port}", "role": "mixed", "pool": "mixed"}
        for i, port in enumerate(ports)
    ]
    config = {
        "service": "bench",
        "model": MODEL,
        "max_context_tokens": 16384,
        "default_class": "interactive",
        "classes": [{"name": "interactive", "ttft_s": 1.0, "tpot_s": 0.1}],
        "policy": policy,
        "discovery": {"kind": "static", "replicas": replicas},
    }
    file = folder / f"{policy}.json"
    file.write_text(json.dumps(config))
    port = _free_port()
    argv: list[str | Path] = [sys.executable, "-m", "paceline_router", "--config", file, "--port", str(port)]
    process = stack.enter_context(started(argv, ROUTER_CORE, folder / "ours.log"))
    return _ready(Side("ours", port, process.pid), folder / "ours.log")


def _rival(name: str, options: Sequence[str], ports: Sequence[int], stack: ExitStack, folder: Path) -> Side:
    port, module = _free_port(), name.replace("-", "_")
    argv: list[str | Path] = [
        environment() / "bin" / "python",
        "-m",
        f"{module}.launch_router",
        "--host",
        "127.0.0.1",
        *options,
    ]
    argv += ["--port", str(port), "--prometheus-port", str(_free_port()), "--log-level", "error"]
    argv += ["--worker-urls", *(f"http://127.0.0.1:{engine}" for engine in ports)]
    log = folder / f"{name}.log"
    process = stack.enter_context(started(argv, ROUTER_CORE, log))
    return _ready(Side(name, port, process.pid), log)


def _ready(side: Side, log: Path) -> Side:
    """Once it has answered a request."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}).encode()
    url, until = f"http://127.0.0.1:{side.port}/v1/chat/completions", time.monotonic() + START_S
    while True:
        try:
            request = urllib.request.Request(url, body, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=2.0):
                return side
        except OSError as error:
            if time.monotonic() > until:
                raise RuntimeError(f"{side.name} does not serve: {error}; {log.read_text()[-500:]}") from error
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def scratch() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)
