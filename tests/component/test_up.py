"""`paceline up` whole: router, simulated engines and the OpenAI client; a crash; and every way to end.

Whatever the end, no process of the run is left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import urllib.request
from pathlib import Path

import pytest
from openai import OpenAI
from paceline_cli.processes import Child, ChildDied, Command, Ended, Group
from paceline_cli.watch import read_metrics
from up_run import PATIENCE_S, Run, up, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples"


def make_file(folder: Path, **over: str) -> Path:
    """One simulated engine: the smallest fleet."""
    text = f"""
apiVersion: paceline.dev/v1alpha1
kind: LLMService
metadata: {{name: small}}
spec:
  model: {{uri: "hf://facebook/opt-13b", servedName: m, maxContextTokens: 2048}}
  slo: {{classes: [{{name: interactive, ttftMs: 400, tpotMs: 40}}]}}
  pools: [{{name: mixed, role: Mixed, replicas: 1, accelerator: a100-sxm-80gb}}]
  engine: {{runtime: Simulated, extraArgs: {over.get("extra_args", "[]")}}}
"""
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def complete(client: OpenAI, tokens: int, begun: threading.Event | None = None) -> int:
    """Completion tokens of one answer, streamed, `ignore_eos`; `begun` is set at its first."""
    stream = client.completions.create(
        model=client.models.list().data[0].id,
        prompt="Once upon a time",
        max_tokens=tokens,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    used = 0
    for chunk in stream:
        if begun:
            begun.set()
        used += chunk.usage.completion_tokens if chunk.usage else 0
    return used


def ready_replicas(run: Run) -> int | None:
    """As the router has it."""
    with urllib.request.urlopen(f"{run.url_file.read_text().strip()}/metrics", timeout=10) as page:
        return read_metrics(page.read().decode(), 0.0).ready_replicas


def test_a_fleet_serves_survives_a_crash_and_drains(tmp_path: Path) -> None:
    with up(tmp_path, EXAMPLES / "chat.yaml", "--time-scale", "4", "--log", str(tmp_path / "log")) as run:
        with run.wait_ready() as client:
            assert ready_replicas(run) == 3, "no prompt is computed elsewhere"
            message = {"role": "user", "content": "Say hello"}
            answer = client.chat.completions.create(model="llama-3.1-8b", messages=[message], max_tokens=8)  # type: ignore[list-item]  # a dict is one
            assert answer.usage is not None
            assert 1 <= answer.usage.completion_tokens <= 8

            (decode,) = run.pids("--role=decode")
            os.kill(decode, signal.SIGKILL)
            wait_for("recovered", lambda: run.said("recovered process=decode"))
            assert run.pids("--role=decode") not in ([], [decode])
            wait_for("the router knows it", lambda: ready_replicas(run) == 3)
            assert complete(client, 4) == 4

            got: list[int] = []
            begun = threading.Event()
            streaming = threading.Thread(target=lambda: got.append(complete(client, 200, begun)))
            streaming.start()
            assert begun.wait(PATIENCE_S)
            assert run.end(signal.SIGINT) == 0
            streaming.join()
            assert got == [200]
        assert run.left() == []
        told = run.lines
    assert any(x.startswith("ready url=http://127.0.0.1:") and " topology=Disaggregated gpus=3 " in x for x in told)
    assert any(x.startswith("curl http://127.0.0.1:") for x in told)
    assert [x for x in told if x.startswith("crashed")] == [
        next(x for x in told if x.startswith('crashed process=decode how="was ended by SIGKILL" restart_in_s=1 '))
    ]
    assert told[-1].startswith("stopped")
    assert "router: ready url=" in (tmp_path / "log").read_text()


def test_a_second_ctrl_c_forces(tmp_path: Path) -> None:
    with up(tmp_path, make_file(tmp_path)) as run, run.wait_ready() as client:
        broken: list[Exception] = []
        begun = threading.Event()

        def stream() -> None:
            try:
                complete(client, 2000, begun)  # some 50 s
            except Exception as e:  # whichever of httpx's and openai's fits a stream that was cut
                broken.append(e)

        streaming = threading.Thread(target=stream)
        streaming.start()
        assert begun.wait(PATIENCE_S)
        assert run.end(signal.SIGINT, signal.SIGINT) == 130
        streaming.join()
        assert broken
        assert run.left() == []


def test_kill_9_leaves_nothing(tmp_path: Path) -> None:
    with up(tmp_path, make_file(tmp_path)) as run:
        run.wait_ready().close()
        assert len(run.pids()) == 4  # up, guard, router, engine
        run.process.kill()
        run.process.wait()
        run.url_file.unlink()  # its URL is stale now, which the next run sees to
        wait_for("nothing left", lambda: not run.left())


def test_a_stop_before_it_is_ready(tmp_path: Path) -> None:
    with up(tmp_path, make_file(tmp_path, extra_args='["--startup-s=60"]')) as run:
        wait_for("starting", lambda: run.said("starting process=router ready=0/1"))
        assert run.end(signal.SIGTERM) == 130
        assert not run.said("ready")
        assert run.left() == []


def test_an_engine_that_dies_at_start(tmp_path: Path) -> None:
    with up(tmp_path, make_file(tmp_path, extra_args='["--no-such-flag"]')) as run:
        assert run.process.wait(PATIENCE_S) == 1
        told = run.lines[-1]
        assert told.startswith("paceline up: mixed ended with code 1: sim: unrecognized arguments: --no-such-flag")
        assert told.endswith("see all that is printed with --log FILE")
        assert run.left() == []


SHELL = "/bin/sh"


def unexpected(ended: Ended) -> None:
    pytest.fail(f"{ended}")


def run_child(script: str, *, was_ready: bool, crashes: int) -> tuple[list[Ended], list[str]]:
    """The first crashes of a shell script, and the lines that it printed."""

    async def work() -> tuple[list[Ended], list[str]]:
        ended: list[Ended] = []
        lines: list[str] = []
        enough = asyncio.Event()

        def on_crash(one: Ended) -> None:
            ended.append(one)
            if len(ended) == crashes:
                enough.set()

        async with Group({}) as group:
            command = Command("child", (SHELL, "-c", script), {})
            child = Child(command, group, on_crash, lambda name, line: lines.append(line))
            child.was_ready = was_ready
            running = asyncio.create_task(child.run())
            waiting = asyncio.create_task(enough.wait())
            await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            child.retire()
            await running
        return ended, lines

    return asyncio.run(work())


def test_a_crashed_child_is_started_again_later_and_later() -> None:
    ended, lines = run_child("echo once more; exit 3", was_ready=True, crashes=2)
    assert [(e.code, e.again_in_s) for e in ended] == [(3, 1.0), (3, 2.0)]
    assert lines == ["once more"] * 2


def test_a_child_that_was_never_ready_is_not_started_again() -> None:
    with pytest.raises(ChildDied, match="child ended with code 3: no luck"):
        run_child("echo no luck >&2; exit 3", was_ready=False, crashes=9)


def test_a_command_that_is_not_there_is_told_like_any_other_end() -> None:
    async def work() -> None:
        async with Group({}) as group:
            await Child(Command("child", ("/no/such/command",), {}), group, unexpected).run()

    with pytest.raises(ChildDied, match="/no/such/command cannot be started: No such file or directory"):
        asyncio.run(work())


def test_output_without_line_ends_is_bounded() -> None:
    _, lines = run_child("head -c 300000 /dev/zero | tr '\\0' x; exit 1", was_ready=True, crashes=1)
    assert max(map(len, lines)) <= 2000


def test_the_group_s_end_is_the_end_of_grandchildren_too() -> None:
    async def work() -> int:
        lines: asyncio.Queue[str] = asyncio.Queue()
        async with Group({}) as group:
            script = "sleep 60 & echo $!; wait"
            child = Child(
                Command("child", (SHELL, "-c", script), {}), group, unexpected, lambda _, x: lines.put_nowait(x)
            )
            running = asyncio.create_task(child.run())
            grandchild = int(await lines.get())
            child.retire()
        await running
        return grandchild

    stat = Path(f"/proc/{asyncio.run(work())}/stat")
    wait_for("its end", lambda: not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")
