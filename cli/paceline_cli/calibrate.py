"""`paceline calibrate`: measures a model on a machine, or takes measured steps, and writes its step-time table.

Exit codes: 0 done, 2 bad input or an engine that cannot be measured (one line: cause and what to do), 130 interrupted.
Invariant: the file is written whole at the end, or not at all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import sys
from datetime import datetime
from pathlib import Path

import uvloop
from paceline_api.catalog import ACCELERATORS, MODELS, ModelShape, find_model
from paceline_planner.calibrate import CalibrateError
from paceline_planner.calibrate.acquaint import acquaint
from paceline_planner.calibrate.csv_points import read_points
from paceline_planner.calibrate.experiment import FULL, QUICK, Engine
from paceline_planner.calibrate.link import Link
from paceline_planner.calibrate.probe import Probe
from paceline_planner.calibrate.table import Calibration, Machine, calibrate
from paceline_planner.fit.grid import Point
from paceline_planner.fit.tables import kv_capacity_tokens
from paceline_planner.target import ReplayError, open_pool
from rich.console import Console
from rich.table import Table

from paceline_cli.workload_flags import natural

QUICK_DECODES, FULL_DECODES = 32, 256


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the subcommand; its `run` is found at `args.run`."""
    summary = "measure a model on a GPU and write the step-time table that Paceline plans with"
    parser = subparsers.add_parser("calibrate", help=summary, description=summary)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--url", help="one idle engine: vLLM, or a simulated one")
    what.add_argument("--from", dest="csv", type=Path, metavar="FILE", help="CSV of measured steps (docs/calibrate.md)")
    parser.add_argument("--model", required=True, help="name or URI of a model that Paceline knows")
    parser.add_argument("--gpu", required=True, metavar="NAME", help="accelerator, and the table's name")
    parser.add_argument("--tensor", type=natural, default=1, metavar="N", help="GPUs of the engine (%(default)s)")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="JSON to write")
    parser.add_argument(
        "--kv-tokens", type=natural, metavar="N", help="KV capacity; default: the engine's, or the GPU's"
    )
    live = parser.add_argument_group("with --url")
    live.add_argument("--served-name", metavar="NAME", help="default: the first that the server lists")
    live.add_argument("--quick", action="store_true", help="fewer and shorter steps: half a minute, less exact")
    live.add_argument(
        "--max-batched-tokens", type=natural, default=2048, metavar="N", help="the engine's (%(default)s)"
    )
    live.add_argument(
        "--max-decodes", type=natural, metavar="N", help="largest batch; default: 256, or 32 with --quick"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, fits, prints and writes; the exit code as above."""
    console = Console()
    try:
        _check(args)
        model = _model(args.model)
        found = _from_csv(args, model) if args.csv is not None else _from_engine(args, model)
        console.print(comparison(found))
        _write(args.out, found.content)
    except (CalibrateError, ReplayError) as e:
        print(f"paceline calibrate: {e}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}")
    return 0


def comparison(found: Calibration) -> Table:
    """Every step as measured beside the table's, and the errors by phase."""
    table = Table(title=f"{found.table.model} on {found.table.gpu}, tensor {found.table.tensor}", title_justify="left")
    for name in ("prompt", "after", "decodes", "context", "measured ms", "table ms", "error %"):
        table.add_column(name, justify="right")
    for c in found.compared:
        p = c.point
        shape = (str(n or "") for n in (p.prefill_tokens, p.prefix_tokens, p.decodes, p.context))
        table.add_row(*shape, f"{p.seconds * 1e3:.2f}", f"{c.fitted_s * 1e3:.2f}", f"{100 * c.error:+.1f}")
    parts = [
        f"{phase} {100 * e['median']:.1f} / {100 * e['p90']:.1f} / {100 * e['max']:.1f}"
        for phase, e in found.table.error.items()
    ]
    table.caption = f"error, median / p90 / max, %: {', '.join(parts)}; KV {found.table.kv_tokens} tokens"
    return table


def _check(args: argparse.Namespace) -> None:
    """CalibrateError for a flag that cannot be meant, before anything is measured."""
    for name in ("tensor", "max_batched_tokens", "max_decodes", "kv_tokens"):
        if getattr(args, name) == 0:
            raise CalibrateError(f"--{name.replace('_', '-')} must be at least 1")
    if not args.out.parent.is_dir() or args.out.is_dir():
        raise CalibrateError(f"{args.out} cannot be written; name a file in a folder that exists")


def _model(name: str) -> ModelShape:
    model = find_model(name)
    if model is None:
        raise CalibrateError(f"the catalogue has no model {name!r}; it has {', '.join(MODELS)}")
    return model


def _from_csv(args: argparse.Namespace, model: ModelShape) -> Calibration:
    points = read_points(args.csv)
    kv_tokens = args.kv_tokens
    if kv_tokens is None:
        gpu = ACCELERATORS.get(args.gpu)
        if gpu is None:
            raise CalibrateError(f"{args.gpu} is not in the catalogue, so its memory is unknown; give --kv-tokens")
        kv_tokens = kv_capacity_tokens(model, args.tensor, gpu.memory_gib)
        if not kv_tokens:
            raise CalibrateError(f"{model.name} leaves no memory for KV on {args.tensor} {args.gpu}; raise --tensor")
    source = f"fitted {_today()} by paceline calibrate to {len(points)} steps of {args.csv.name}"
    return calibrate(points, Machine(args.gpu, model, args.tensor, kv_tokens, source))


def _from_engine(args: argparse.Namespace, model: ModelShape) -> Calibration:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        points, kv_tokens, kind = runner.run(_measure(args))
    source = f"measured {_today()} by paceline calibrate on {kind}, {len(points)} steps"
    return calibrate(points, Machine(args.gpu, model, args.tensor, args.kv_tokens or kv_tokens, source))


async def _measure(args: argparse.Namespace) -> tuple[list[Point], int, str]:
    """The steps, the engine's KV tokens, and what kind of engine it is."""
    effort = QUICK if args.quick else FULL
    with contextlib.closing(open_pool(args.url)) as pool, contextlib.ExitStack() as stack:
        link = Link(pool, secrets.randbits(32))  # prompts that no cache has
        met = await acquaint(link, args.served_name)
        console = Console(stderr=True)
        status = stack.enter_context(console.status("asking the engine")) if console.is_terminal else None
        probe = Probe(link, effort, status.update if status else lambda text: None)
        decodes = args.max_decodes or (QUICK_DECODES if args.quick else FULL_DECODES)
        step_tokens = min(args.max_batched_tokens, met.step_tokens or args.max_batched_tokens)
        engine = Engine(met.kv_tokens, met.context_tokens or met.kv_tokens, step_tokens, decodes)
        measured = await probe.measure(engine)
    for note in measured.notes:
        print(f"paceline calibrate: {note}", file=sys.stderr)
    return measured.points, met.kv_tokens, "a simulated engine" if met.simulated else "a live engine"


def _write(path: Path, content: bytes) -> None:
    """All of it or nothing. CalibrateError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as e:
        beside.unlink(missing_ok=True)
        raise CalibrateError(f"{path}: {e.strerror}; give another --out") from e


def _today() -> str:
    return datetime.now().astimezone().date().isoformat()
