"""`paceline replay`: offers a workload to a URL as real streaming HTTP and writes the report (DESIGN §10).

Exit codes: 0 done, 2 bad input (one line: cause and what to do), 130 interrupted (what was measured until then is
reported and marked). A report that is not valid is no failed command: table, figure and JSON's `valid` say so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys

import uvloop
from paceline_planner import traces, workloads
from paceline_planner.replay import Options, Progress, replay
from paceline_planner.report import Report
from paceline_planner.report_table import render_table
from paceline_planner.target import API_KEY_ENV, ReplayError, Wanted
from rich.console import Console
from rich.status import Status

from paceline_cli.workload_flags import (
    OutputError,
    add_output_flags,
    add_workload_flags,
    natural,
    positive,
    read_outputs,
    read_pace,
    read_workload,
    write_outputs,
)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand; its `run` is found at `args.run`."""
    summary = "offer a workload to a URL as real streaming HTTP and report goodput"
    parser = subparsers.add_parser("replay", help=summary, description=summary)
    url_help = f"router or any OpenAI server (%(default)s); its API key comes from {API_KEY_ENV}"
    parser.add_argument("--url", default="http://127.0.0.1:8000", help=url_help)
    add_workload_flags(parser)
    parser.add_argument("--model", metavar="NAME", help="default: the first that the server lists")
    parser.add_argument("--chat", action="store_true", help="chat text of about the length, instead of exact token ids")
    parser.add_argument("--time-scale", type=positive, metavar="S", help="model time / wall; default: the fleet's")
    parser.add_argument("--timeout", type=positive, default=600.0, metavar="S", help="for one answer (%(default)s)")
    foreign = parser.add_argument_group("for a server that is not Paceline's")
    foreign.add_argument("--ttft-ms", type=positive, metavar="MS")
    foreign.add_argument("--tpot-ms", type=positive, metavar="MS")
    foreign.add_argument("--gpus", type=natural, metavar="N")
    add_output_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures and reports; the exit code as above."""
    try:
        options, outputs = _options(args), read_outputs(args)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(_measure(options))
        Console().print(render_table(report))
        write_outputs(report, outputs)
    except (ReplayError, OutputError, workloads.WorkloadError, traces.TraceError) as e:
        print(f"paceline replay: {e}", file=sys.stderr)
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
    workload = read_workload(args)
    rates, duration_s = read_pace(args, workload)
    return Options(
        url=args.url,
        api_key=os.environ.get(API_KEY_ENV),
        workload=workload,
        rates_rps=rates,
        duration_s=duration_s,
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
