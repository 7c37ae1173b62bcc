"""Runs commands and keeps long-lived programs by pid file, in a network namespace where one is named.

A program is orphaned at once (setsid), so the cluster outlives the process that started it. A pid counts as alive only
with the start time that was noted and while it is no zombie: a reused pid is never signalled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path


class CommandFailed(Exception):
    """A command's exit code was not 0; its words and what it said are in the message."""

    def __init__(self, argv: Sequence[str], code: int, said: str) -> None:
        super().__init__(f"{' '.join(argv)}: exit code {code}\n{said.strip()}")
        self.code = code
        self.said = said


def inside(netns: str) -> list[str]:
    # Not `ip netns exec`: that mounts a new /sys, which hides the cgroups from the kubelet.
    return ["nsenter", f"--net=/run/netns/{netns}"]


def run(
    *argv: str | Path,
    netns: str | None = None,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 120,
) -> str:
    """Standard output. CommandFailed with both outputs; subprocess.TimeoutExpired after timeout_s."""
    words = [str(word) for word in argv]
    done = subprocess.run(
        [*(inside(netns) if netns else []), *words],
        input=stdin if stdin is not None else "",
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise CommandFailed(words, done.returncode, done.stderr + done.stdout)
    return done.stdout


def start(argv: Sequence[str | Path], netns: str, log: Path, pid_file: Path, path: Path) -> None:
    """Starts argv as a daemon with `path` in front of PATH; its output is appended to `log`."""
    # The shell writes its own pid; exec keeps it through nsenter to the program.
    shell = ["setsid", "--fork", "sh", "-c", 'echo $$ > "$0.new"; mv "$0.new" "$0"; exec "$@"', str(pid_file)]
    pid_file.unlink(missing_ok=True)
    with log.open("ab") as output:
        subprocess.run(
            [*shell, *inside(netns), *(str(word) for word in argv)],
            env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
        )
    until(f"start of {argv[0]}", pid_file.exists, 10)
    pid = int(pid_file.read_text())
    pid_file.write_text(f"{pid} {_started(pid) or 0}")


def pid_of(pid_file: Path) -> int | None:
    """The program's pid while it lives."""
    try:
        pid, started = (int(word) for word in pid_file.read_text().split())
    except FileNotFoundError:
        return None
    return pid if _started(pid) == started else None


def _started(pid: int) -> int | None:
    """Start time in clock ticks since boot; None for a process that is gone or a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(fields[18])


def kill(pids: Iterable[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def naming(folder: Path) -> Iterator[tuple[int, str]]:
    """Pid and program of each live process with an argument that names something in `folder`."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(f"{folder}/" in word for word in words) and _started(int(entry.name)):
            yield int(entry.name), Path(words[0]).name


def until(what: str, holds: Callable[[], bool], timeout_s: float, pause_s: float = 0.05) -> None:
    """Waits until `holds()`. TimeoutError that names `what`."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(pause_s)


def succeeds(*argv: str | Path, netns: str | None = None, env: Mapping[str, str] | None = None) -> bool:
    try:
        run(*argv, netns=netns, env=env, timeout_s=20)
    except (CommandFailed, subprocess.TimeoutExpired):
        return False
    return True
