"""Our router's data plane beside vllm-router and sglang-router (Rust, PyPI): same engines, same run, rounds in turn.

    python benchmarks/router.py [--only PART] [--rounds N] [--seconds S] [--out DIR]

Each router runs alone on core 0, mock engines and client on core 1; their share of that core stands beside each figure,
and a round in which they used BOUND of it measured them instead: INVALID, as is one of `plain` or `slo` in which a
router had less than FULL of its own, because the machine had other work. Parts: `plain`, requests/s by round robin;
`slo`, our pick over 64 replicas with 2 kB prompts beside vllm-router's default; `streams`, what a router adds to
TTFT and ITL at 70 % of what a direct connection sustains; `held`, memory under 2,000 open streams. Ratios have 95 %
intervals (bootstrap over rounds). Exit code 1 where a goal is missed, 2 where a part is INVALID.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean

import router_streams
from engine_verdicts import Verdict, ratio, tell
from rich.console import Console
from rich.table import Table
from router_runs import BOUND, FULL, Round, closed
from router_sides import NEW, OLD, engines, scratch, sides

ROBIN = ("--policy", "round_robin")
Rounds = dict[str, list[Round]]


def _closed(console: Console, name: str, replicas: int, ours: str, theirs: Mapping[str, Sequence[str]],
            rounds: int, seconds: float, prompt_chars: int) -> Rounds:  # fmt: skip
    with scratch() as folder, engines(replicas, folder) as (pid, ports), sides(ports, ours, theirs, folder) as all_:
        seen: Rounds = {side.name: [] for side in all_}
        for side in all_:
            closed(side, pid, 1.0, prompt_chars, seed=99)  # connections, caches
        for k in range(rounds):
            for side in all_:
                seen[side.name].append(closed(side, pid, seconds, prompt_chars, seed=k))
    _show(console, name, seen)
    return seen


def _show(console: Console, name: str, seen: Rounds) -> None:
    table = Table(title=name)
    for column in (
        "router",
        "requests/s",
        "rounds",
        "its CPU, µs/request",
        "p50 ms",
        "p99 ms",
        "failed",
        "its core",
        "others'",
    ):
        table.add_column(column, justify="left" if column == "router" else "right")
    for side, rounds in seen.items():
        rps = [r.rps for r in rounds]
        shares = (mean(r.router_share for r in rounds), max(r.others_share for r in rounds))
        table.add_row(
            side,
            f"{mean(rps):.0f}",
            f"{min(rps):.0f}…{max(rps):.0f}",
            f"{mean(r.router_us for r in rounds):.0f}",
            f"{mean(r.p50_ms for r in rounds):.1f}",
            f"{mean(r.p99_ms for r in rounds):.1f}",
            f"{sum(r.failed for r in rounds)}",
            *(f"{share:.0%}" for share in shares),
        )
    console.print(table)


def _rps(rounds: Sequence[Round]) -> float:
    return mean(r.rps for r in rounds)


def _router_us(rounds: Sequence[Round]) -> float:
    return mean(r.router_us for r in rounds)


def _p99_ms(rounds: Sequence[Round]) -> float:
    return mean(r.p99_ms for r in rounds)


def _is_invalid(console: Console, seen: Rounds) -> bool:
    failed = sum(r.failed for rounds in seen.values() for r in rounds)
    busiest = max(r.others_share for rounds in seen.values() for r in rounds)
    idlest = min(r.router_share for rounds in seen.values() for r in rounds)
    invalid = bool(failed) or busiest > BOUND or idlest < FULL
    if invalid:
        console.print(f"INVALID: {failed} requests failed; engines and client had up to {busiest:.0%} of their core,")
        console.print(f"a router as little as {idlest:.0%} of its own")
    return invalid


def plain(console: Console, rounds: int, seconds: float) -> tuple[list[Verdict], bool, object]:
    seen = _closed(console, "round robin, 8 replicas", 8, "round-robin", {NEW: ROBIN, OLD: ROBIN}, rounds, seconds, 100)
    ours = seen["ours"]
    verdicts = [ratio(f"requests/s over {NEW}'s", ours, seen[NEW], _rps, 1.5)]
    verdicts += [ratio(f"requests/s over {OLD}'s", ours, seen[OLD], _rps, 1.0)]
    verdicts += [ratio(f"CPU a request over {NEW}'s", ours, seen[NEW], _router_us, 1 / 1.5, at_most=True)]
    return verdicts, _is_invalid(console, seen), {name: [r.as_json() for r in rs] for name, rs in seen.items()}


def slo(console: Console, rounds: int, seconds: float) -> tuple[list[Verdict], bool, object]:
    name = "our SLO pick and vllm-router's default, 64 replicas, 2 kB prompts"
    seen = _closed(console, name, 64, "least-misses", {NEW: ()}, rounds, seconds, 2000)
    verdicts = [ratio(f"requests/s over {NEW}'s", seen["ours"], seen[NEW], _rps, 1.0)]
    verdicts += [ratio(f"p99 over {NEW}'s", seen["ours"], seen[NEW], _p99_ms, 1.0, at_most=True)]
    return verdicts, _is_invalid(console, seen), {name: [r.as_json() for r in rs] for name, rs in seen.items()}


Part = Callable[[Console, int, float], tuple[list[Verdict], bool, object]]
PARTS: Mapping[str, Part] = {
    "plain": plain,
    "slo": slo,
    "streams": router_streams.streams,
    "held": router_streams.held,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(PARTS), help="this part alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each side in each round")
    parser.add_argument("--out", type=Path, default=Path("build/router"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    console, code = Console(width=130), 0
    for name in [args.only] if args.only else PARTS:
        verdicts, invalid, document = PARTS[name](console, args.rounds, args.seconds)
        tell(verdicts, console)
        code = max(code, 2 if invalid else int(any(v.word == "fail" for v in verdicts)))
        summary = {v.name: [v.word, v.value, v.low, v.high] for v in verdicts}
        (args.out / f"{name}.json").write_text(json.dumps({"invalid": invalid, "verdicts": summary, "seen": document}))
    return code


if __name__ == "__main__":
    sys.exit(main())
