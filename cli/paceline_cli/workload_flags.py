"""The flags that `replay` and `simulate` share: which requests, at which rate, and where the report goes.

Invariant: the same flags with the same seed are the same requests for both.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from paceline_planner import figure, traces, workloads
from paceline_planner.replay import Workload
from paceline_planner.report import Report

DEFAULT_DURATION_S = 60.0  # where the workload has no end of its own

Write = Callable[[Report, Path], object]


class OutputError(ValueError):
    """A file that cannot be written; the message says what to do."""


def add_workload_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--trace", metavar="FILE", type=Path, help="Azure CSV, Mooncake JSONL, a CSV of lengths, or ours")
    what.add_argument("--synthetic", metavar="KIND", help="chat, code, summarisation or fixed:PROMPT,OUTPUT (tokens)")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=positive, metavar="RPS", help="mean arrivals per second (the trace's own)")
    pace.add_argument("--rates", type=_rates, metavar="A,B,…", help="one run for each rate, for the curve over rate")
    parser.add_argument(
        "--duration", type=positive, metavar="S", help="seconds of arrivals a rate; default: the trace, or 60"
    )
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="SLO class; default: the service's")
    parser.add_argument("--seed", type=natural, default=0, help="decides arrivals, lengths and text (%(default)s)")
    parser.add_argument("--clip", action="store_true", help="cut requests to the model's context; default: send as is")


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="write PNG and HTML; default: beside --json")


def read_workload(args: argparse.Namespace) -> Workload:
    """WorkloadError, TraceError."""
    if args.synthetic is not None:
        return Workload(args.synthetic, workloads.parse_lengths(args.synthetic))
    requests = list(traces.read(args.trace))
    if math.isnan(requests[0].arrival_s):
        pairs = [(request.prompt_tokens, request.output_tokens) for request in requests]
        return Workload(args.trace.name, workloads.Empirical(pairs))
    return Workload(args.trace.name, requests)


def read_pace(args: argparse.Namespace, workload: Workload) -> tuple[list[float | None], float | None]:
    """Rates in requests per second (None: the trace's own), and seconds of arrivals of each. WorkloadError."""
    endless = not isinstance(workload.source, list)
    rates = args.rates or [args.rate]
    if endless and rates == [None]:
        raise workloads.WorkloadError(f"{workload.name} has no arrival times of its own; give --rate or --rates")
    return rates, args.duration or (DEFAULT_DURATION_S if endless else None)


def read_outputs(args: argparse.Namespace) -> list[tuple[Path, Write]]:
    """Each file to write; PNG and HTML go together, beside the JSON unless --figure says where. OutputError."""
    base: Path | None = args.figure or args.json
    if clash := next((path for path in (args.json, args.figure) if path is not None and path.is_dir()), None):
        raise OutputError(f"{clash} is a folder; name a file")
    files: list[tuple[Path, Write]] = []
    if args.json is not None:
        files.append((args.json, lambda report, path: path.write_bytes(report.to_json())))
    if base is not None:
        files += [(base.with_suffix(".png"), figure.write_png), (base.with_suffix(".html"), figure.write_html)]
    return files


def write_outputs(report: Report, outputs: list[tuple[Path, Write]]) -> None:
    """OutputError."""
    for path, write in outputs:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(report, path)
        except OSError as e:
            raise OutputError(f"{e.filename}: {e.strerror}; give another path") from e
        print(f"wrote {path}")


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _rates(text: str) -> list[float]:
    return [positive(part) for part in text.split(",")]
