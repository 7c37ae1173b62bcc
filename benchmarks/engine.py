"""Real vLLM on a CPU: gaps of running streams under 4,000-token prompts, our scheduler beside vLLM's and fixed budgets.

    PYTHONPATH=tests/support python benchmarks/engine.py [--rounds 12] [--streams 1] [--budgets 64,160] [--out DIR]

All engines serve the 5 M model of `make vllm` and stay up together (1.5 GB each), idle but for one; each round asks
every side once, in an order of its own, so that what else the machine does falls on all. A ratio passes on the lower
bound of its 95 % interval (bootstrap over rounds), fails on its upper, else is undecided; a limit is not judged
where 1 % of the gaps exceed half of it without any prompt (busy). Exit code 1 where one fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median

from gaps import Measured, Stream, complete, measure, prompt, quantile
from rich.console import Console
from rich.table import Table
from vllm_engine import serving

LONG_TOKENS = 4000
LIMITS_MS = (20, 30, 60, 120)
BUDGETS = (64, 96, 160, 256, 512)
RESAMPLES = 2000
TOKEN = "benchmark"
BORDER = "--middleware=paceline_engine.vllm.border.Border"
NO_CACHE = "--no-enable-prefix-caching"


@dataclass(frozen=True, slots=True)
class Side:
    """Which engine is asked, and with what headers."""

    name: str
    engine: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A ratio with its 95 % interval, and the bound it has to keep: at most, or at least."""

    name: str
    value: float
    low: float
    high: float
    bound: float
    at_most: bool
    busy: bool = False

    @property
    def word(self) -> str:
        if self.busy:
            return "busy"
        if self.at_most:
            return "pass" if self.high <= self.bound else "fail" if self.low > self.bound else "undecided"
        return "pass" if self.low >= self.bound else "fail" if self.high < self.bound else "undecided"


def sides(budgets: Sequence[int]) -> list[Side]:
    ours = [
        Side(
            f"ours {ms} ms",
            "ours",
            {"x-paceline-token": TOKEN, "x-slo-tpot-ms": f"{ms}", "x-slo-max-stall-ms": f"{ms}"},
        )
        for ms in LIMITS_MS
    ]
    fixed = [Side(f"fixed {n}", f"fixed {n}", {}) for n in budgets]
    return [*ours, Side("ours, no objective", "ours", {}), Side("vLLM's default", "stock", {}), *fixed]


def run(rounds: int, streams: int, budgets: Sequence[int], console: Console) -> dict[str, list[Measured]]:
    """What each side showed in each round."""
    everyone = sides(budgets)
    seen: dict[str, list[Measured]] = {side.name: [] for side in everyone}
    with ExitStack() as stack:
        enter = stack.enter_context
        ports = {
            "ours": enter(serving("qwen2-5m", NO_CACHE, BORDER, env={"PACELINE_TOKEN": TOKEN})),
            "stock": enter(serving("qwen2-5m", NO_CACHE, scheduler="")),
            **{
                f"fixed {n}": enter(serving("qwen2-5m", NO_CACHE, f"--max-num-batched-tokens={n}", scheduler=""))
                for n in budgets
            },
        }
        for port in ports.values():
            for tokens in (16, 64, 256, 1000, LONG_TOKENS):
                ids = prompt(tokens, tokens)
                asyncio.run(complete(port, Stream(), prompt=ids, max_tokens=8, ignore_eos=True))
        for k in range(rounds):
            for side in Random(k).sample(everyone, len(everyone)):
                asked = measure(
                    ports[side.engine],
                    long_tokens=LONG_TOKENS,
                    rounds=1,
                    streams=streams,
                    seed=7919 * k,
                    headers=side.headers,
                )
                seen[side.name].append(asyncio.run(asked))
            console.print(f"round {k + 1} of {rounds}")
    return seen


def p99_s(rounds: Sequence[Measured]) -> float:
    return quantile([gap for r in rounds for gap in r.gaps_s], 0.99)


def noise_s(rounds: Sequence[Measured]) -> float:
    """What 1 % of the gaps exceed anyway."""
    return quantile([gap for r in rounds for gap in r.quiet_s], 0.99)


def ttft_s(rounds: Sequence[Measured]) -> float:
    return median(t for r in rounds for t in r.long_ttft_s)


def throughput(rounds: Sequence[Measured]) -> float:
    return median(r.tokens_per_s for r in rounds)


def ratio(
    name: str,
    over: Sequence[Measured],
    under: Sequence[Measured] | float,
    of: Callable[[Sequence[Measured]], float],
    bound: float,
    *,
    at_most: bool = False,
) -> Verdict:
    """`of` the one by `of` the other, both sides' rounds drawn anew together: they were measured in pairs."""
    rng, count = Random(0), len(over)

    def value(chosen: Sequence[int]) -> float:
        below = under if isinstance(under, float) else of([under[i] for i in chosen])
        return of([over[i] for i in chosen]) / below

    drawn = sorted(value(rng.choices(range(count), k=count)) for _ in range(RESAMPLES))
    low, high = drawn[RESAMPLES * 25 // 1000], drawn[RESAMPLES * 975 // 1000]
    return Verdict(name, value(range(count)), low, high, bound, at_most)


def judge(seen: Mapping[str, list[Measured]], budgets: Sequence[int]) -> list[Verdict]:
    """The must-holds. The rival in time to first token is the fastest fixed budget whose p99 is no longer than ours."""
    stock = seen["vLLM's default"]
    verdicts = []
    for ms in LIMITS_MS:
        ours = seen[f"ours {ms} ms"]
        limit = ratio(f"p99 of gaps / {ms} ms", ours, ms / 1e3, p99_s, 1.10, at_most=True)
        verdicts.append(replace(limit, busy=noise_s(ours) > ms / 2e3))
        if ms <= 60:
            verdicts.append(ratio(f"vLLM's p99 / ours at {ms} ms", stock, ours, p99_s, 5.0))
        rivals = [n for n in budgets if p99_s(seen[f"fixed {n}"]) <= p99_s(ours)]
        if rivals:
            best = min(rivals, key=lambda n: ttft_s(seen[f"fixed {n}"]))
            name = f"TTFT of fixed {best} / ours at {ms} ms"
            verdicts.append(ratio(name, seen[f"fixed {best}"], ours, ttft_s, 0.95))
            name = f"tokens/s of ours at {ms} ms / fixed {best}"
            verdicts.append(ratio(name, ours, seen[f"fixed {best}"], throughput, 0.95))
    verdicts.append(ratio("tokens/s without objectives / vLLM's", seen["ours, no objective"], stock, throughput, 0.97))
    return verdicts


def show(seen: Mapping[str, list[Measured]], verdicts: Sequence[Verdict], console: Console) -> None:
    columns = ("side", "gap p50 ms", "p95", "p99", "p99 without a prompt", "long TTFT ms", "tokens/s")
    table = Table(*columns, title="real vLLM, 5 M model, CPU")
    for name, rounds in seen.items():
        gaps = [gap for r in rounds for gap in r.gaps_s]
        figures = [f"{1e3 * quantile(gaps, q):.1f}" for q in (0.5, 0.95, 0.99)]
        figures.append(f"{1e3 * noise_s(rounds):.1f}")
        table.add_row(name, *figures, f"{1e3 * ttft_s(rounds):.0f}", f"{throughput(rounds):.0f}")
    console.print(table)
    for v in verdicts:
        sign = "≤" if v.at_most else "≥"
        console.print(f"{v.word:>9}  {v.name}: {v.value:.3f} [{v.low:.3f}, {v.high:.3f}], {sign} {v.bound}")


def draw(seen: Mapping[str, list[Measured]], out: Path) -> None:
    """The share of gaps above a length, for ours and vLLM's default."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for name in ("vLLM's default", *(f"ours {ms} ms" for ms in LIMITS_MS)):
        gaps = sorted(1e3 * gap for r in seen[name] for gap in r.gaps_s)
        axes.step(gaps, [100 * (1 - i / len(gaps)) for i in range(len(gaps))], label=name)
    axes.set(xscale="log", yscale="log", xlabel="gap (ms)", ylabel="gaps that are longer (%)")
    axes.set_title("Gaps of streams while a 4,000-token prompt is computed")
    axes.legend()
    figure.tight_layout()
    figure.savefig(out)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--budgets", type=lambda text: tuple(map(int, text.split(","))), default=BUDGETS)
    parser.add_argument("--out", type=Path, default=Path("build/engine"))
    args = parser.parse_args(argv)
    console = Console()
    seen = run(args.rounds, args.streams, args.budgets, console)
    verdicts = judge(seen, args.budgets)
    show(seen, verdicts, console)
    args.out.mkdir(parents=True, exist_ok=True)
    draw(seen, args.out / "gaps.png")
    document = {
        "rounds": args.rounds,
        "streams": args.streams,
        "p99_gap_ms": {name: 1e3 * p99_s(rounds) for name, rounds in seen.items()},
        "p99_gap_without_prompt_ms": {name: 1e3 * noise_s(rounds) for name, rounds in seen.items()},
        "long_ttft_ms": {name: 1e3 * ttft_s(rounds) for name, rounds in seen.items()},
        "tokens_per_s": {name: throughput(rounds) for name, rounds in seen.items()},
        "verdicts": {v.name: [v.word, v.value, v.low, v.high] for v in verdicts},
    }
    (args.out / "engine.json").write_text(json.dumps(document, indent=1))
    return int(any(v.word == "fail" for v in verdicts))


if __name__ == "__main__":
    sys.exit(main())
