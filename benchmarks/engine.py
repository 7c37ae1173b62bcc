"""Real vLLM on a CPU, our scheduler beside vLLM's own and fixed budgets: gaps, a shifting load, two classes, overhead.

    PYTHONPATH=tests/support python benchmarks/engine.py [--only PART] [--rounds N] [--out DIR]

Each part starts two engines with the 5 M model of `make vllm` (`engine_sides`) and asks all sides in turns, in an order
of each round's own; ratios have 95 % intervals (bootstrap over rounds) and pass, fail or stay undecided. Writes a
figure and a JSON file a part. Exit code 1 where one fails. All parts: under 25 minutes; one: under 6.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engine_classes
import engine_gaps
import engine_overhead
import engine_shift
from engine_verdicts import Verdict, tell
from rich.console import Console


@dataclass(frozen=True, slots=True)
class Part:
    """A measurement: what `run` has seen is judged, shown, drawn and written."""

    rounds: int
    run: Callable[[int, Console], Any]
    judge: Callable[[Any], list[Verdict]]
    show: Callable[[Any, Console], None]
    draw: Callable[[Any, Path], None]
    as_json: Callable[[Any], dict[str, Any]]


def part(module: Any) -> Part:
    return Part(module.ROUNDS, module.run, module.judge, module.show, module.draw, module.as_json)


PARTS: Mapping[str, Part] = {
    "gaps": part(engine_gaps),
    "shift": part(engine_shift),
    "classes": part(engine_classes),
    "overhead": part(engine_overhead),
}


def measure(name: str, rounds: int, out: Path, console: Console) -> list[Verdict]:
    """Runs one part and leaves its files."""
    chosen, began_s = PARTS[name], time.monotonic()
    seen = chosen.run(rounds or chosen.rounds, console)
    verdicts = chosen.judge(seen)
    chosen.show(seen, console)
    tell(verdicts, console)
    chosen.draw(seen, out / f"{name}.png")
    document = {
        "rounds": rounds or chosen.rounds,
        "seconds": time.monotonic() - began_s,
        **chosen.as_json(seen),
        "verdicts": {v.name: [v.word, v.value, v.low, v.high] for v in verdicts},
    }
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    return verdicts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(PARTS), help="this part alone")
    parser.add_argument("--rounds", type=int, default=0, help="of each part; 0: its own number")
    parser.add_argument("--out", type=Path, default=Path("build/engine"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=150)
    verdicts = [
        v for name in ([args.only] if args.only else PARTS) for v in measure(name, args.rounds, args.out, console)
    ]
    return int(any(v.word == "fail" for v in verdicts))


if __name__ == "__main__":
    sys.exit(main())
