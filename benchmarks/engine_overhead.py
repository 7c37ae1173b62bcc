"""What scheduling costs with 256 requests running: the time in `schedule` and `update_from_output`, ours beyond vLLM's.

All but four decode while long prompts come; a step is from one result to the next. Steps that hold a chunk of a prompt,
in which our scheduler has most to do, and those without one are judged apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

from engine_sides import NO_CACHE, Side, engines, slo_headers
from engine_verdicts import Verdict, ratio
from gaps import Stream, complete, prompt
from rich.console import Console
from rich.table import Table

RUNNING, LONGS = 252, 3
LONG_TOKENS, OUTPUT = 3000, 400
ROUNDS = 5
LIMIT_MS = 250.0
FULL_S = 60.0  # until all run


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds a step, of steps with a prompt and without."""

    mixed_s: float
    mixed_scheduling_s: float
    decode_s: float
    decode_scheduling_s: float


def run(rounds: int, console: Console) -> dict[str, list[Round]]:
    with engines(NO_CACHE, "--max-num-seqs=256", "--kv-cache-memory-bytes=402653184") as both:
        sides = [Side("ours", both.ours, slo_headers(tpot_ms=LIMIT_MS, stall_ms=LIMIT_MS)), both.fixed(())[0]]
        seen: dict[str, list[Round]] = {side.name: [] for side in sides}
        for k in range(rounds):
            for side in Random(k).sample(sides, len(sides)):
                seen[side.name].append(asyncio.run(_ask(side, seed=1000 * k)))
            console.print(f"overhead: round {k + 1} of {rounds}")
    return seen


async def _ask(side: Side, seed: int) -> Round:
    engine, before = side.engine, side.engine.count()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(
                complete(
                    engine.port,
                    Stream(),
                    side.headers,
                    prompt=prompt(seed + k, 64),
                    max_tokens=OUTPUT,
                    ignore_eos=True,
                    stream=False,
                    **side.body,
                )
            )
            for k in range(RUNNING)
        ]
        async with asyncio.timeout(FULL_S):
            while not (steps := engine.steps(before)) or steps[-1].requests < RUNNING:  # noqa: ASYNC110 (a file)
                await asyncio.sleep(0.1)
        full = before + len(steps)
        for k in range(LONGS):
            await complete(engine.port, Stream(), prompt=prompt(seed + 900 + k, LONG_TOKENS), max_tokens=1, **side.body)
        for task in tasks:
            task.cancel()
    pairs = [(a, b) for a, b in pairwise(engine.steps(full)) if b.requests >= RUNNING]
    mixed = [(a, b) for a, b in pairs if b.prefill_tokens]
    decode = [(a, b) for a, b in pairs if not b.prefill_tokens]
    return Round(*_means(mixed), *_means(decode))


def _means(pairs: Sequence[Any]) -> tuple[float, float]:
    """Seconds of a step, and of its scheduling."""
    if not pairs:
        return 0.0, 0.0
    return mean(b.ended_s - a.ended_s for a, b in pairs), mean(b.scheduling_s + b.updating_s for _, b in pairs)


def judge(seen: Mapping[str, list[Round]]) -> list[Verdict]:
    ours, own = seen["ours"], seen["vLLM's default"]
    verdicts = []
    for kind, step, scheduling in (
        ("with a prompt", "mixed_s", "mixed_scheduling_s"),
        ("of decodes", "decode_s", "decode_scheduling_s"),
    ):
        extra = [getattr(a, scheduling) - getattr(b, scheduling) for a, b in zip(ours, own, strict=True)]
        name = f"scheduling beyond vLLM's own / step {kind}, {RUNNING} running"
        verdicts.append(ratio(name, extra, [getattr(r, step) for r in ours], sum, 0.03, at_most=True))
    return verdicts


def show(seen: Mapping[str, list[Round]], console: Console) -> None:
    columns = ("side", "step with a prompt ms", "its scheduling ms", "step without ms", "its scheduling ms")
    table = Table(*columns, title=f"scheduling of {RUNNING} requests")
    for name, rounds in seen.items():
        table.add_row(name, *(f"{1e3 * mean(getattr(r, f) for r in rounds):.2f}" for f in Round.__slots__))
    console.print(table)


def as_json(seen: Mapping[str, list[Round]]) -> dict[str, Any]:
    return {
        name: {field: 1e3 * mean(getattr(r, field) for r in rounds) for field in Round.__slots__}
        for name, rounds in seen.items()
    }


def draw(seen: Mapping[str, list[Round]], out: Path) -> None:
    """Milliseconds of scheduling, round by round."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name, rounds in seen.items():
        axes.plot([1e3 * r.mixed_scheduling_s for r in rounds], marker="o", label=name)
    axes.set(xlabel="round", ylabel="scheduling of a step with a prompt (ms)", title=f"{RUNNING} requests running")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(out)
