"""The clients of examples/vllm.sh: some questions to a served model, and what a long prompt does to a running answer.

    vllm_client.py ask URL
    vllm_client.py gaps URL --file FILE --model DIR --out DIR     leaves gaps.png and gaps.json in DIR

`gaps` starts vLLM's own scheduler beside the fleet at URL, which is that of FILE, with the threads and KV space that
`paceline up` gives an engine of it here, and asks both in turn. Both are seen from a client, ours through the router.
Wall seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
from paceline_cli.machine import CannotRun, check_machine, fit_cpu, fit_model, free_ports
from paceline_cli.on_cpu import CPU
from paceline_cli.up import make_plan, read_service
from paceline_cli.vllm_here import Program

QUESTIONS = ("What is the capital of France?", "Why is the sky blue? Answer in one sentence.", "Name three colours.")
RUNNING = "Tell me a long story about a fox and a bear."
TEXT = Path(__file__).parents[1] / "LICENSE"
LONG_CHARACTERS = 5000  # some 1,000 tokens
ANSWER_TOKENS, BEFORE = 90, 20  # of the running answer, in all and before the long prompt arrives
ROUNDS = 3
START_TIMEOUT_S = 300.0
STOCK, OURS = "stock vLLM", "Paceline"


@dataclass(slots=True)
class Answer:
    """Text as it arrives, and when each piece of it did."""

    sent_s: float = field(default_factory=time.perf_counter)
    text: str = ""
    times_s: list[float] = field(default_factory=list)
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # after BEFORE pieces

    @property
    def ttft_s(self) -> float:
        return self.times_s[0] - self.sent_s


@dataclass(frozen=True, slots=True)
class Round:
    """A running answer under a long prompt: when its pieces came after that prompt was sent, and the prompt's TTFT."""

    times_s: tuple[float, ...]
    long_ttft_s: float

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """(end, length) of the gaps that overlap the prefill."""
        pairs = zip(self.times_s, self.times_s[1:], strict=False)
        return [(b, b - a) for a, b in pairs if b >= 0 and a <= self.long_ttft_s]


async def stream(client: httpx.AsyncClient, answer: Answer, message: str, tokens: int, *, to_the_end: bool) -> Answer:
    """A chat answer; `to_the_end` goes on after the model would have ended it."""
    body = {
        "model": (await client.get("/v1/models")).json()["data"][0]["id"],
        "messages": [{"role": "user", "content": message}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": to_the_end,
    }
    answer.sent_s = time.perf_counter()
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            pieces = [choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"]]
            if any(pieces):
                answer.text += "".join(pieces)
                answer.times_s.append(time.perf_counter())
                if len(answer.times_s) == BEFORE:
                    answer.settled.set()
    return answer


def connect(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=120, trust_env=False)


async def ask(url: str) -> None:
    async with connect(url) as client:
        for question in QUESTIONS:
            answer = await stream(client, Answer(), question, 48, to_the_end=False)
            print(f"> {question}\n{answer.text.strip()}\n  ({answer.ttft_s:.2f} s to the first token)")


async def measure(url: str, seed: int) -> Round:
    """A long prompt arrives while an answer runs; another one each round, or its prefix would be cached."""
    text = TEXT.read_text(encoding="utf-8")[1000 * seed : 1000 * seed + LONG_CHARACTERS]
    running = Answer()
    async with connect(url) as client, asyncio.TaskGroup() as tasks:
        tasks.create_task(stream(client, running, RUNNING, ANSWER_TOKENS, to_the_end=True))
        await running.settled.wait()
        long = await stream(client, Answer(), f"{seed}. Summarise: {text}", 1, to_the_end=True)
    return Round(tuple(t - long.sent_s for t in running.times_s), long.ttft_s)


def same_as_ours(file: Path, model: str) -> tuple[Program, CPU]:
    """What `paceline up FILE --engine vllm --model file://MODEL` runs, and what it gives an engine of this machine."""
    service, folder = fit_model(read_service(str(file), "vllm", f"file://{model}"))
    program = check_machine(service, 1.0)
    assert program is not None
    return program, fit_cpu(service, make_plan(service, str(file)), program, folder)[1]


@contextmanager
def stock_vllm(program: Program, cpu: CPU, model: str, log: Path) -> Iterator[str]:
    """The URL of vLLM as it is."""
    (port,) = free_ports(1)
    command = [str(program.file), "serve", model, f"--port={port}", "--host=127.0.0.1", *cpu.flags]
    env = {**os.environ, **cpu.env, "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as out:
        child = subprocess.Popen(command, env=env, stdout=out, stderr=out)
        try:
            _await_health(child, url := f"http://127.0.0.1:{port}", log)
            yield url
        finally:
            child.terminate()
            child.wait(60)


def _await_health(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and child.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    sys.exit(f"stock vLLM did not start; all it said: {log}")


def compare(url: str, program: Program, cpu: CPU, model: str, log: Path) -> dict[str, list[Round]]:
    rounds: dict[str, list[Round]] = {STOCK: [], OURS: []}
    with stock_vllm(program, cpu, model, log) as stock:
        for seed in range(-1, ROUNDS):  # the first is for caches and step-time models to get warm
            for name, at in ((STOCK, stock), (OURS, url)):
                seen = asyncio.run(measure(at, seed + 1))
                if seed >= 0:
                    rounds[name].append(seen)
    return rounds


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def show(rounds: dict[str, list[Round]]) -> None:
    for name, seen in rounds.items():
        gaps = [1e3 * gap for one in seen for _, gap in one.gaps]
        ttft = quantile([one.long_ttft_s for one in seen], 0.5)
        figures = f"median {quantile(gaps, 0.5):.0f} ms, p95 {quantile(gaps, 0.95):.0f} ms, longest {max(gaps):.0f} ms"
        print(f"{name:>10}: gaps of the running answer under the long prompt: {figures}; its first token: {ttft:.1f} s")


def draw(rounds: dict[str, list[Round]], threads: int, out: Path) -> None:
    """Each piece of the running answers: when it came, and how long nothing had come before it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    for (name, seen), colour in zip(rounds.items(), ("tab:red", "tab:blue"), strict=True):
        for i, one in enumerate(seen):
            ends, before = one.times_s[1:], one.times_s
            gaps = [1e3 * (b - a) for a, b in zip(before, ends, strict=False)]
            axes.plot(ends, gaps, ".", ms=4, color=colour, label=f"{name}, {len(seen)} answers" if i == 0 else None)
    axes.axvline(0, color="grey", lw=1)
    axes.annotate("the long prompt arrives ", (0, 0.97), xycoords=("data", "axes fraction"), ha="right", va="top")
    axes.set(yscale="log", xlabel="s after a prompt of some 1,000 tokens arrived", ylabel="gap before a token (ms)")
    axes.set_title(f"An answer while a long prompt is computed; threads each: {threads}")
    axes.legend()
    figure.tight_layout()
    figure.savefig(out)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ask", "gaps"))
    parser.add_argument("url")
    parser.add_argument("--file", type=Path, help="of the fleet at URL (gaps)")
    parser.add_argument("--model", help="the folder of its model (gaps)")
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    args = parser.parse_args(argv)
    if args.what == "ask":
        asyncio.run(ask(args.url))
        return
    if not (args.file and args.model):
        parser.error("gaps needs --file and --model")
    try:
        program, cpu = same_as_ours(args.file, args.model)
    except CannotRun as e:
        sys.exit("\n".join(e.lines))
    rounds = compare(args.url, program, cpu, args.model, args.out / "stock.log")
    show(rounds)
    draw(rounds, cpu.threads, args.out / "gaps.png")
    document = {name: [asdict(one) for one in seen] for name, seen in rounds.items()}
    (args.out / "gaps.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    print(f"figure {args.out / 'gaps.png'}")


if __name__ == "__main__":
    main()
