"""A load that shifts: short prompts first, then short questions behind long prefixes that the engine has cached.

A prompt token behind 7,000 others costs ten times what one of a short prompt costs, so the budget that is best for the
one half misses the stall limit, or wastes the time, of the other. A request is good when its first token, its pace and
its longest gap keep their limits. Both rates are a share of what vLLM completes when all comes at once on this machine.
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
from engine_sides import Engines, Side, engines
from engine_verdicts import Verdict, ratio
from gaps import Stream, complete, prompt
from rich.console import Console
from rich.table import Table

CHAT = Class("chat", 0.5, 0.030, 0.060)
BUDGETS = (32, 64, 128, 256, 512)
ROUNDS = 6
HALF_S = 3.0  # of either half
SHARE = (0.6, 0.6)  # of the capacity
SHORT, QUESTION, PREFIX = (300, 900), (60, 240), 7040  # tokens; the prefix ends on a block of 128
PREFIXES, OUTPUT = 3, 16
HALVES = ("short prompts", "long prefixes")
WHOLE = "both"


@dataclass(frozen=True, slots=True)
class Round:
    """One side's answers in one round, by half."""

    halves: tuple[tuple[Served, ...], tuple[Served, ...]]

    def good(self, half: str) -> int:
        chosen = [*self.halves[0], *self.halves[1]] if half == WHOLE else self.halves[HALVES.index(half)]
        return sum(served.good for served in chosen)


def _job(half: int, at_s: float, rng: Random) -> Job:
    if half == 0:
        ids = prompt(rng.randrange(1 << 30), rng.randint(*SHORT))
    else:
        ids = _prefix(rng.randrange(PREFIXES)) + prompt(rng.randrange(1 << 30), rng.randint(*QUESTION))
    return Job(at_s, ids, OUTPUT, CHAT)


def _prefix(number: int) -> list[int]:
    return prompt(number, PREFIX)


def run(rounds: int, console: Console) -> dict[str, list[Round]]:
    with engines() as both:
        sides = [Side("ours", both.ours), *both.fixed(BUDGETS)]
        rates = _rates(both, sides[1])
        console.print(f"shift: {rates[0]:.1f} and {rates[1]:.1f} requests/s")
        seen: dict[str, list[Round]] = {side.name: [] for side in sides}
        for k in range(rounds):
            for side in Random(k).sample(sides, len(sides)):
                seen[side.name].append(_ask(side, rates, Random(f"{k} {side.name}"), Random(k)))
            console.print(f"shift: round {k + 1} of {rounds}")
    return seen


def _rates(both: Engines, default: Side) -> tuple[float, float]:
    for engine in (both.ours, both.own):
        for number in range(PREFIXES):
            asyncio.run(complete(engine.port, Stream(), prompt=_prefix(number), max_tokens=1))
    rng = Random(0)
    found = [asyncio.run(capacity(default, [_job(half, 0.0, rng) for _ in range(24)])) for half in (0, 1)]
    return SHARE[0] * found[0], SHARE[1] * found[1]


def _ask(side: Side, rates: tuple[float, float], own: Random, common: Random) -> Round:
    """Prompts are this side's own, lest another one's are found cached; arrivals are the round's."""
    halves = [
        [_job(half, at_s, own) for at_s in arrivals(rates[half], half * HALF_S, (half + 1) * HALF_S, common)]
        for half in (0, 1)
    ]
    served = asyncio.run(offer(side, [*halves[0], *halves[1]]))
    return Round((tuple(served[: len(halves[0])]), tuple(served[len(halves[0]) :])))


def goodput(half: str, rounds: Sequence[Round]) -> float:
    """Good requests a second."""
    seconds = HALF_S * (2 if half == WHOLE else 1)
    return sum(r.good(half) for r in rounds) / (seconds * len(rounds))


def judge(seen: Mapping[str, list[Round]]) -> list[Verdict]:
    verdicts = []
    fixed = [name for name in seen if name != "ours"]
    for half, bound in ((HALVES[0], 0.95), (HALVES[1], 0.95), (WHOLE, 1.0)):
        of = partial(goodput, half)
        best = max(fixed, key=lambda name: of(seen[name]))
        verdicts.append(ratio(f"{half}: goodput / {best}, the best there", seen["ours"], seen[best], of, bound))
    return verdicts


def show(seen: Mapping[str, list[Round]], console: Console) -> None:
    table = Table("side", *(f"{half}: good/s, share" for half in (*HALVES, WHOLE)), title="shifting load")
    for name, rounds in seen.items():
        cells = []
        for half in (*HALVES, WHOLE):
            count = sum(len(h) for r in rounds for i, h in enumerate(r.halves) if half in (WHOLE, HALVES[i]))
            cells.append(f"{goodput(half, rounds):.1f}, {sum(r.good(half) for r in rounds) / count:.0%}")
        table.add_row(name, *cells)
    console.print(table)


def as_json(seen: Mapping[str, list[Round]]) -> dict[str, Any]:
    return {half: {name: goodput(half, rounds) for name, rounds in seen.items()} for half in (*HALVES, WHOLE)}


def draw(seen: Mapping[str, list[Round]], out: Path) -> None:
    """Good requests a second in both halves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for i, half in enumerate(HALVES):
        places = [k + 0.4 * i for k in range(len(seen))]
        axes.bar(places, [goodput(half, rounds) for rounds in seen.values()], 0.38, label=half)
    axes.set_xticks([k + 0.2 for k in range(len(seen))], list(seen), rotation=20)
    axes.set(ylabel="good requests a second", title="A load that shifts")
    axes.legend()
    figure.tight_layout()
    figure.savefig(out)
