"""Two classes on one engine: interactive questions at 30 ms a token beside a batch of long prompts at 250 ms.

A request is good when its first token and its mean pace keep the limits of its class. Rates are shares of what vLLM
completes of each class alone when all comes at once on this machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from engine_load import Class, Job, Served, arrivals, capacity, offer
from engine_sides import NO_CACHE, Side, engines
from engine_verdicts import Verdict, ratio
from gaps import prompt
from rich.console import Console
from rich.table import Table

INTERACTIVE = Class("interactive", 0.4, 0.030)
BATCH = Class("batch", 10.0, 0.250)
CLASSES = (INTERACTIVE, BATCH)
BUDGETS = (64, 128, 256, 512)
ROUNDS = 6
SECONDS = 6.0
SHARES = (0.3, 0.6)  # of the capacity for that class alone
PROMPTS, OUTPUTS = ((60, 300), (2000, 4000)), (24, 32)


@dataclass(frozen=True, slots=True)
class Round:
    """One side's answers in one round."""

    served: tuple[Served, ...]

    def good(self, kind: Class | None = None) -> int:
        return sum(s.good for s in self.served if kind in (None, s.job.kind))


def _job(index: int, at_s: float, rng: Random) -> Job:
    ids = prompt(rng.randrange(1 << 30), rng.randint(*PROMPTS[index]))
    return Job(at_s, ids, OUTPUTS[index], CLASSES[index])


def run(rounds: int, console: Console) -> dict[str, list[Round]]:
    with engines(NO_CACHE) as both:
        sides = [Side("ours", both.ours), *both.fixed(BUDGETS)]
        rng = Random(0)
        counts = (32, 6)
        rates = [
            share * asyncio.run(capacity(sides[1], [_job(i, 0.0, rng) for _ in range(counts[i])]))
            for i, share in enumerate(SHARES)
        ]
        console.print(f"classes: {rates[0]:.1f} interactive and {rates[1]:.2f} batch requests/s")
        seen: dict[str, list[Round]] = {side.name: [] for side in sides}
        for k in range(rounds):
            rng = Random(k)
            jobs = [_job(i, at_s, rng) for i, rate in enumerate(rates) for at_s in arrivals(rate, 0.0, SECONDS, rng)]
            for side in rng.sample(sides, len(sides)):
                seen[side.name].append(Round(tuple(asyncio.run(offer(side, jobs)))))
            console.print(f"classes: round {k + 1} of {rounds}")
    return seen


def goodput(rounds: Sequence[Round], kind: Class | None = None) -> float:
    """Good requests a second."""
    return sum(r.good(kind) for r in rounds) / (SECONDS * len(rounds))


def judge(seen: Mapping[str, list[Round]]) -> list[Verdict]:
    best = max((name for name in seen if name != "ours"), key=lambda name: goodput(seen[name]))
    return [ratio(f"both classes: goodput / {best}, the best there", seen["ours"], seen[best], goodput, 1.2)]


def show(seen: Mapping[str, list[Round]], console: Console) -> None:
    table = Table("side", "good/s", *(f"{kind.name} good" for kind in CLASSES), title="two classes on one engine")
    for name, rounds in seen.items():
        shares = [
            sum(r.good(kind) for r in rounds) / max(sum(s.job.kind is kind for r in rounds for s in r.served), 1)
            for kind in CLASSES
        ]
        table.add_row(name, f"{goodput(rounds):.1f}", *(f"{share:.0%}" for share in shares))
    console.print(table)


def as_json(seen: Mapping[str, list[Round]]) -> dict[str, Any]:
    kinds = {kind.name: partial(goodput, kind=kind) for kind in CLASSES}
    return {
        "all": {name: goodput(rounds) for name, rounds in seen.items()},
        **{kind: {name: of(rounds) for name, rounds in seen.items()} for kind, of in kinds.items()},
    }


def draw(seen: Mapping[str, list[Round]], out: Path) -> None:
    """Good requests a second, one class on the other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    below = [0.0] * len(seen)
    for kind in CLASSES:
        heights = [goodput(rounds, kind) for rounds in seen.values()]
        axes.bar(list(seen), heights, bottom=below, label=kind.name)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    axes.tick_params(axis="x", rotation=20)
    axes.set(ylabel="good requests a second", title="Two classes on one engine")
    axes.legend()
    figure.tight_layout()
    figure.savefig(out)
