"""The gaps between the tokens of streams that run while long prompts arrive, measured by a client on the same machine.

A gap counts if it overlaps the time from sending a long prompt to its first token. Times are wall seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SETTLED_TOKENS = 40  # of every stream, before a long prompt is sent


@dataclass(slots=True)
class Stream:
    """One answer as it arrives: when each event came, and the text."""

    sent_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    text: str = ""
    error: str = ""  # what it ended with, instead of an end
    complete: bool = False
    status: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ttft_s(self) -> float:
        return self.times_s[0] - self.sent_s


@dataclass(frozen=True, slots=True)
class Measured:
    """`gaps_s` overlap a long prompt's prefill, `quiet_s` do not."""

    gaps_s: tuple[float, ...]
    quiet_s: tuple[float, ...]
    long_ttft_s: tuple[float, ...]
    tokens_per_s: float


def together(runs: Sequence[Measured]) -> Measured:
    """Several measurements of one side as one; its throughput is their mean."""
    return Measured(
        tuple(gap for run in runs for gap in run.gaps_s),
        tuple(gap for run in runs for gap in run.quiet_s),
        tuple(ttft for run in runs for ttft in run.long_ttft_s),
        sum(run.tokens_per_s for run in runs) / len(runs),
    )


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def prompt(seed: int, tokens: int, vocabulary: int = 8000) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(10, vocabulary) for _ in range(tokens)]


async def complete(port: int, stream: Stream, headers: Mapping[str, str] | None = None, /, **body: Any) -> Stream:
    """Streams /v1/completions into `stream`, greedily unless the body says otherwise."""
    content = json.dumps({"model": "m", "temperature": 0, "stream": True, **body}).encode()
    lines = [f"content-length: {len(content)}", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    head = "POST /v1/completions HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\nconnection: close\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        stream.sent_s = time.perf_counter()
        writer.write(head.encode() + "\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        stream.status = int((await reader.readline()).split()[1])
        async for line in reader:
            stream.complete |= line.startswith(b"data: [DONE]")
            if line.startswith(b"data: {"):
                stream.times_s.append(time.perf_counter())
                if len(stream.times_s) == SETTLED_TOKENS:
                    stream.settled.set()
                event = json.loads(line[6:])
                stream.error = event.get("error", {}).get("message", "")
                choices = event.get("choices")
                stream.text += choices[0]["text"] if choices else ""
    finally:
        writer.close()
    return stream


async def measure(
    port: int,
    *,
    long_tokens: int,
    rounds: int,
    streams: int = 1,
    seed: int = 0,
    headers: Mapping[str, str] | None = None,
    longs: int = 1,
    **extra: Any,
) -> Measured:
    """`rounds` times: streams with these headers settle, so many long prompts without them arrive in turn, all end.

    `extra` is in the body of them all.
    """
    gaps: list[float] = []
    quiet: list[float] = []
    ttft: list[float] = []
    tokens, seconds = 0, 0.0
    for k in range(rounds):
        running = [Stream() for _ in range(streams)]
        base = seed + 1000 * k
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    complete(port, s, headers, prompt=prompt(base + i, 64), max_tokens=4000, ignore_eos=True, **extra)
                )
                for i, s in enumerate(running)
            ]
            for s in running:
                await s.settled.wait()
            prompts = []
            for j in range(longs):
                ids = prompt(base + 999 - j, long_tokens)
                prompts.append(await complete(port, Stream(), prompt=ids, max_tokens=1, **extra))
                await asyncio.sleep(0.2)
            for task in tasks:
                task.cancel()
        ttft += [long.ttft_s for long in prompts]
        for s in running:
            for a, b in zip(s.times_s[10:], s.times_s[11:], strict=False):
                beside = any(b >= long.sent_s and a <= long.times_s[0] for long in prompts)
                (gaps if beside else quiet).append(b - a)
            tokens += len(s.times_s)
        seconds += max(s.times_s[-1] for s in running) - running[0].sent_s
    return Measured(tuple(gaps), tuple(quiet), tuple(ttft), (tokens + rounds * longs * long_tokens) / seconds)
