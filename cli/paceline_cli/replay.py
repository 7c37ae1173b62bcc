"""`paceline replay`: offers a workload to a URL as real streaming HTTP and writes the report (DESIGN §10).

Exit codes: 0 done, 2 bad input (one line: cause and what to do), 130 interrupted (what was measured until then is
reported and marked). A report that is not valid is no failed command: table, figure and JSON's `valid` say so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import uvloop
from paceline_planner import figure, traces, workloads
from paceline_planner.replay import Options, Progress, Workload, replay
from paceline_planner.report import Report
from paceline_planner.report_table import render_table
from paceline_planner.target import ReplayError, Wanted
from rich.console import Console
from rich.status import Status

DEFAULT_DURATION_S = 60.0  # where the workload has no end of its own


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand; its `run` is found at `args.run`."""
    summary = "offer a workload to a URL as real streaming HTTP and report goodput"
    parser = subparsers.add_parser("replay", help=summary, description=summary)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="router or any OpenAI server (%(default)s)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--trace", metavar="FILE", type=Path, help="Azure CSV, Mooncake JSONL, a CSV of lengths, or ours")
    what.add_argument("--synthetic", metavar="KIND", help="chat, code, summarisation or fixed:PROMPT,OUTPUT (tokens)")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--rate", type=_positive, metavar="RPS", help="mean arrivals per second (the trace's own)")
    pace.add_argument("--rates", type=_rates, metavar="A,B,…", help="one run for each rate, for the curve over rate")
    parser.add_argument(
        "--duration", type=_positive, metavar="S", help="seconds of arrivals a rate; default: the trace, or 60"
    )
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="SLO class; default: the service's")
    parser.add_argument("--model", metavar="NAME", help="default: the first that the server lists")
    parser.add_argument("--seed", type=_natural, default=0, help="decides arrivals, lengths and text (%(default)s)")
    parser.add_argument("--clip", action="store_true", help="cut requests to the model's context; default: send as is")
    parser.add_argument("--chat", action="store_true", help="chat text of about the length, instead of exact token ids")
    parser.add_argument("--time-scale", type=_positive, metavar="S", help="model time / wall; default: the fleet's")
    parser.add_argument("--timeout", type=_positive, default=600.0, metavar="S", help="for one answer (%(default)s)")
    foreign = parser.add_argument_group("for a server that is not Paceline's")
    foreign.add_argument("--ttft-ms", type=_positive, metavar="MS")
    foreign.add_argument("--tpot-ms", type=_positive, metavar="MS")
    foreign.add_argument("--gpus", type=_natural, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="write PNG and HTML; default: beside --json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures and reports; the exit code as above."""
    try:
        options, outputs = _options(args), _outputs(args)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(_measure(options))
    except (ReplayError, workloads.WorkloadError, traces.TraceError) as e:
        print(f"paceline replay: {e}", file=sys.stderr)
        return 2
    Console().print(render_table(report))
    try:
        for path, write in outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(report, path)
            print(f"wrote {path}")
    except OSError as e:
        print(f"paceline replay: {e.filename}: {e.strerror}; give another path", file=sys.stderr)
        return 2
    return 130 if report.interrupted else 0


async def _measure(options: Options) -> Report:
    """The replay, with a line of progress on a terminal; Ctrl-C ends it early, a second one at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        if not console.is_terminal:
            return await replay(options, stop)
        status = stack.enter_context(console.status("asking the server"))
        return await replay(options, stop, lambda progress: _show(status, progress))


def _show(status: Status, progress: Progress) -> None:
    status.update(
        f"{progress.rate_rps:g} requests/s: {progress.at_s:.0f} s, {progress.sent} of {progress.planned} sent, "
        f"{progress.finished} ended"
    )


def _options(args: argparse.Namespace) -> Options:
    workload = _workload(args)
    endless = not isinstance(workload.source, list)
    rates = args.rates or [args.rate]
    if endless and rates == [None]:
        raise workloads.WorkloadError(f"{workload.name} has no arrival times of its own; give --rate or --rates")
    return Options(
        url=args.url,
        workload=workload,
        rates_rps=rates,
        duration_s=args.duration or (DEFAULT_DURATION_S if endless else None),
        wanted=Wanted(
            class_name=args.class_name,
            model=args.model,
            time_scale=args.time_scale,
            ttft_s=args.ttft_ms and args.ttft_ms / 1000,
            tpot_s=args.tpot_ms and args.tpot_ms / 1000,
            gpus=args.gpus,
        ),
        seed=args.seed,
        clip=args.clip,
        chat=args.chat,
        timeout_s=args.timeout,
    )


def _workload(args: argparse.Namespace) -> Workload:
    if args.synthetic is not None:
        return Workload(args.synthetic, workloads.parse_lengths(args.synthetic))
    requests = list(traces.read(args.trace))
    if math.isnan(requests[0].arrival_s):
        pairs = [(request.prompt_tokens, request.output_tokens) for request in requests]
        return Workload(args.trace.name, workloads.Empirical(pairs))
    return Workload(args.trace.name, requests)


Write = Callable[[Report, Path], object]


def _outputs(args: argparse.Namespace) -> list[tuple[Path, Write]]:
    """Each file to write; PNG and HTML go together, beside the JSON unless --figure says where."""
    base: Path | None = args.figure or args.json
    files: list[tuple[Path, Write]] = []
    if args.json is not None:
        files.append((args.json, lambda report, path: path.write_bytes(report.to_json())))
    if base is not None:
        files += [(base.with_suffix(".png"), figure.write_png), (base.with_suffix(".html"), figure.write_html)]
    if clash := next((path for path, _ in files if path.is_dir()), None):
        raise ReplayError(f"{clash} is a folder; name a file")
    return files


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _rates(text: str) -> list[float]:
    return [_positive(part) for part in text.split(",")]
