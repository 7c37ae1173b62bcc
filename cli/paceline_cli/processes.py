"""The child processes of `paceline up`: started in one process group, restarted after a crash, ended in an order.

`Group` owns them all: its guard (guard.py) ends every one when `up` itself is killed. `Child` is one of them: a child
that ends before it was ready the first time raises ChildDied; later it is started again after a delay that doubles from
1 s to 30 s. Invariant: after `Group.close()` no process of the group is left, and none is left waiting to be reaped.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Self

GUARD = Path(__file__).with_name("guard.py")
FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 30.0
SETTLED_S = 60.0  # a child that ran this long begins anew at the first delay
TAIL_LINES = 12
LONGEST_LINE = 2000


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and what it is called. `env` is added to the environment of `up`."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended, with the last lines that it printed. A negative `code` is a signal."""

    name: str
    code: int
    tail: tuple[str, ...]
    again_in_s: float = 0.0

    @property
    def how(self) -> str:
        return f"was ended by {signal.Signals(-self.code).name}" if self.code < 0 else f"ended with code {self.code}"

    @property
    def last_line(self) -> str:
        """What a program that failed ends with is its error."""
        return next((line for line in reversed(self.tail) if line.strip()), "it printed nothing")


class ChildDied(Exception):
    """A child ended before it was ready for the first time."""

    def __init__(self, ended: Ended) -> None:
        self.ended = ended
        super().__init__(f"{ended.name} {ended.how}: {ended.last_line}")


def next_delay_s(previous_s: float, lived_s: float) -> float:
    """Wait before a crashed child is started again; `previous_s` is 0 the first time."""
    if not previous_s or lived_s >= SETTLED_S:
        return FIRST_DELAY_S
    return min(2 * previous_s, LONGEST_DELAY_S)


class Group:
    """The process group of one run and its folder; an async context manager. One pipe ties both to this process.

    `env` is added to the environment of every child; what children write for a while goes into the folder too.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.folder = Path(tempfile.mkdtemp(prefix="paceline-"))
        self._guard: asyncio.subprocess.Process | None = None
        self._children: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Self:
        self._guard = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(GUARD), str(self.folder)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            process_group=0,  # not a session of its own: only processes of one session can share a group
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def spawn(self, command: Command) -> asyncio.subprocess.Process:
        """Starts the command in the group, its output in one pipe. Raises OSError."""
        assert self._guard is not None
        process = await asyncio.create_subprocess_exec(
            *command.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(self.folder), **self._env, **command.env},
            process_group=self._guard.pid,
        )
        self._children = [c for c in self._children if c.returncode is None] + [process]
        return process

    async def close(self) -> None:
        """Ends at once whatever still runs and removes the folder."""
        if self._guard is None:
            return
        guard, self._guard = self._guard, None
        with suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)
        for process in (*self._children, guard):
            await process.wait()
        rmtree(self.folder, ignore_errors=True)


class Child:
    """One command kept running. `on_crash` is told of each crash, `on_line` of each line that the child prints."""

    def __init__(
        self,
        command: Command,
        group: Group,
        on_crash: Callable[[Ended], None],
        on_line: Callable[[str, str], None] = lambda name, line: None,
    ) -> None:
        self.command = command
        self.was_ready = False  # set by whoever probes it
        self.crashes = 0
        self._group = group
        self._on_crash = on_crash
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Of the running process; None while there is none."""
        process = self._process
        return process.pid if process and process.returncode is None else None

    async def run(self) -> None:
        """Runs until `stop`; raises ChildDied if it ends before `was_ready`."""
        delay_s = 0.0
        while not self._stopping.is_set():
            began_s = time.monotonic()
            code, tail = await self._run_once()
            if self._stopping.is_set():
                return
            delay_s = next_delay_s(delay_s, time.monotonic() - began_s)
            ended = Ended(self.command.name, code, tail, delay_s)
            if not self.was_ready:
                raise ChildDied(ended)
            self.crashes += 1
            self._on_crash(ended)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    async def _run_once(self) -> tuple[int, tuple[str, ...]]:
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        try:
            process = self._process = await self._group.spawn(self.command)
        except OSError as e:
            return 127, (f"{self.command.argv[0]} cannot be started: {e.strerror}",)
        assert process.stdout is not None
        if self._stopping.is_set():  # since before there was a process to ask
            process.terminate()
        reading = asyncio.create_task(self._read(process.stdout, tail))
        code = await process.wait()
        with suppress(TimeoutError):  # a grandchild may hold the pipe open
            await asyncio.wait_for(reading, 1.0)
        return code, tuple(tail)

    async def _read(self, stream: asyncio.StreamReader, tail: deque[str]) -> None:
        """Splits the output into lines, each bounded: a child cannot fill the memory of `up`."""

        def keep(line: bytes) -> None:
            tail.append(line[:LONGEST_LINE].decode(errors="replace").rstrip())
            self._on_line(self.command.name, tail[-1])

        rest = b""
        while data := await stream.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                keep(line)
        if rest:
            keep(rest)

    def retire(self) -> None:
        """From now on its end is no crash."""
        self._stopping.set()

    async def stop(self, within_s: float) -> bool:
        """Asks the child to drain and end; False if that took too long and it was killed, or if it failed."""
        self.retire()
        process = self._process
        if process is None or process.returncode is not None:
            return True
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            return await asyncio.wait_for(process.wait(), within_s) in (0, -signal.SIGTERM)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            return False
