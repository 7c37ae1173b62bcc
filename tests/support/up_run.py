"""`paceline up` as a child process: `up(folder, file, flags)` yields its `Run`, which knows every process of its own.

Each process of the run carries a mark in its environment, which is looked for. The run is gone when the block ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from openai import OpenAI

PATIENCE_S = 30.0  # for what takes a second or two on an idle machine
MARK = "PACELINE_TEST_RUN"


def wait_for(what: str, look: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)


class Run:
    """One `paceline up` on a free port; what it writes lies in the folder."""

    def __init__(self, folder: Path, file: Path, *flags: str) -> None:
        self._mark = f"{MARK}={uuid4()}"
        self.folder = folder
        self.url_file, self._out = folder / "url", folder / "out"
        name, value = self._mark.split("=")
        with self._out.open("w") as out:
            self.process = subprocess.Popen(
                (
                    sys.executable,
                    "-m",
                    "paceline_cli",
                    "up",
                    str(file),
                    "--port=0",
                    f"--url-file={self.url_file}",
                    *flags,
                ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=os.environ | {name: value, "TMPDIR": str(folder)},
            )

    @property
    def lines(self) -> list[str]:
        return self._out.read_text().splitlines()

    def said(self, word: str) -> bool:
        return any(line.startswith(word) for line in self.lines)

    def wait_ready(self, within_s: float = PATIENCE_S) -> OpenAI:
        wait_for("ready", lambda: self.url_file.exists() or self.process.poll() is not None, within_s)
        assert self.process.poll() is None, self.lines
        return OpenAI(base_url=f"{self.url_file.read_text().strip()}/v1", api_key="none", max_retries=0, timeout=20)

    def end(self, *signals: int) -> int:
        for number in signals:
            self.process.send_signal(number)
            if len(signals) > 1:
                wait_for("draining", lambda: self.said("draining"))
        return self.process.wait(PATIENCE_S)

    def pids(self, word: str = "") -> list[int]:
        """Processes of this run whose command has `word` in it; zombies have no environment."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdecimal() and self._mark.encode() in (entry / "environ").read_bytes():
                    command = (entry / "cmdline").read_bytes().decode()
                    found += [int(entry.name)] if word in command else []
        return found

    def left(self) -> list[object]:
        """Processes and folders that a run must not leave behind."""
        return [*self.pids(), *self.folder.glob("paceline-*"), *self.folder.glob("url*")]


@contextmanager
def up(folder: Path, file: Path, *flags: str) -> Iterator[Run]:
    run = Run(folder, file, *flags)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()
