"""Gaps of running streams under 4,000-token prompts: ours at four stall limits beside vLLM's default and fixed budgets.

Each round asks every side once, in an order of its own, so that what else the machine does falls on all. A limit is
not judged, nor compared with the budgets that reach its p99, where 1 % of the gaps exceed half of it without any prompt
(busy). `p99 of steps` is what the engine itself took for those that held a prompt and a decode: what the gaps have
beyond it is between engine and client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from engine_sides import NO_CACHE, Side, engines, slo_headers
from engine_steps import EngineStep
from engine_verdicts import Verdict, ratio
from gaps import Measured, measure, quantile
from rich.console import Console
from rich.table import Table

LONG_TOKENS, LONGS = 4000, 2  # prompts of a side and round
LIMITS_MS = (20, 30, 60, 120)
BUDGETS = (48, 64, 96, 160, 256, 512)
ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Round:
    """What one side showed in one round; `steps` held a prompt and a decode."""

    seen: Measured
    steps: tuple[EngineStep, ...]


def run(rounds: int, console: Console) -> dict[str, list[Round]]:
    """What each side showed in each round."""
    with engines(NO_CACHE) as both:
        ours = [Side(f"ours {ms} ms", both.ours, slo_headers(tpot_ms=ms, stall_ms=ms)) for ms in LIMITS_MS]
        sides = [*ours, Side("ours, no objective", both.ours), *both.fixed(BUDGETS)]
        seen: dict[str, list[Round]] = {side.name: [] for side in sides}
        for k in range(rounds):
            for side in Random(k).sample(sides, len(sides)):
                seen[side.name].append(_ask(side, seed=7919 * k))
            console.print(f"gaps: round {k + 1} of {rounds}")
    return seen


def _ask(side: Side, seed: int) -> Round:
    engine, before = side.engine, side.engine.count()
    measuring = measure(
        engine.port, long_tokens=LONG_TOKENS, rounds=1, seed=seed, headers=side.headers, longs=LONGS, **side.body
    )
    measured = asyncio.run(measuring)
    steps = [s for s in engine.steps(before) if s.prefill_tokens and s.requests > 1]
    return Round(measured, tuple(steps))


def p99_s(rounds: Sequence[Round]) -> float:
    return quantile([gap for r in rounds for gap in r.seen.gaps_s], 0.99)


def noise_s(rounds: Sequence[Round]) -> float:
    """What 1 % of the gaps exceed anyway."""
    return quantile([gap for r in rounds for gap in r.seen.quiet_s], 0.99)


def steps_p99_s(rounds: Sequence[Round]) -> float:
    return quantile([s.ended_s - s.since_s for r in rounds for s in r.steps], 0.99)


def ttft_s(rounds: Sequence[Round]) -> float:
    return median(t for r in rounds for t in r.seen.long_ttft_s)


def throughput(rounds: Sequence[Round]) -> float:
    return median(r.seen.tokens_per_s for r in rounds)


def judge(seen: Mapping[str, list[Round]]) -> list[Verdict]:
    """The must-holds. The rival in time to first token is the fastest fixed budget whose p99 is no longer than ours."""
    stock = seen["vLLM's default"]
    verdicts = []
    for ms in LIMITS_MS:
        ours = seen[f"ours {ms} ms"]
        limit = ratio(f"p99 of gaps / {ms} ms", ours, ms / 1e3, p99_s, 1.10, at_most=True)
        busy = noise_s(ours) > ms / 2e3
        verdicts.append(replace(limit, busy=busy))
        if ms <= 60:
            verdicts.append(ratio(f"vLLM's p99 / ours at {ms} ms", stock, ours, p99_s, 5.0))
        rivals = [n for n in BUDGETS if p99_s(seen[f"fixed {n}"]) <= p99_s(ours)]
        if rivals:
            best = min(rivals, key=lambda n: ttft_s(seen[f"fixed {n}"]))
            name = f"TTFT of fixed {best} / ours at {ms} ms"
            verdicts.append(replace(ratio(name, seen[f"fixed {best}"], ours, ttft_s, 0.95), busy=busy))
            name = f"tokens/s of ours at {ms} ms / fixed {best}"
            verdicts.append(replace(ratio(name, ours, seen[f"fixed {best}"], throughput, 0.95), busy=busy))
    verdicts.append(ratio("tokens/s without objectives / vLLM's", seen["ours, no objective"], stock, throughput, 0.97))
    return verdicts


def show(seen: Mapping[str, list[Round]], console: Console) -> None:
    columns = ("side", "gap p50 ms", "p95", "p99", "p99 of steps", "p99 without a prompt", "long TTFT ms", "tokens/s")
    table = Table(*columns, title="gaps under 4,000-token prompts")
    for name, rounds in seen.items():
        gaps = [gap for r in rounds for gap in r.seen.gaps_s]
        figures = [f"{1e3 * quantile(gaps, q):.1f}" for q in (0.5, 0.95, 0.99)]
        figures += [f"{1e3 * steps_p99_s(rounds):.1f}", f"{1e3 * noise_s(rounds):.1f}"]
        table.add_row(name, *figures, f"{1e3 * ttft_s(rounds):.0f}", f"{throughput(rounds):.0f}")
    console.print(table)


def draw(seen: Mapping[str, list[Round]], out: Path) -> None:
    """The share of gaps above a length, for ours and vLLM's default."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name in ("vLLM's default", *(f"ours {ms} ms" for ms in LIMITS_MS)):
        gaps = sorted(1e3 * gap for r in seen[name] for gap in r.seen.gaps_s)
        axes.step(gaps, [100 * (1 - i / len(gaps)) for i in range(len(gaps))], label=name)
    axes.set(xscale="log", yscale="log", xlabel="gap (ms)", ylabel="gaps that are longer (%)")
    axes.set_title("Gaps of streams while a 4,000-token prompt is computed")
    axes.legend()
    figure.tight_layout()
    figure.savefig(out)


def as_json(seen: Mapping[str, list[Round]]) -> dict[str, Any]:
    return {
        "p99_gap_ms": {name: 1e3 * p99_s(rounds) for name, rounds in seen.items()},
        "p99_step_ms": {name: 1e3 * steps_p99_s(rounds) for name, rounds in seen.items()},
        "p99_gap_without_prompt_ms": {name: 1e3 * noise_s(rounds) for name, rounds in seen.items()},
        "long_ttft_ms": {name: 1e3 * ttft_s(rounds) for name, rounds in seen.items()},
        "tokens_per_s": {name: throughput(rounds) for name, rounds in seen.items()},
    }
