"""Step times behind Sarathi-Serve's design (OSDI'24, figures 2, 4, 9 and 14, and §4.3), against its measurements.

Yi-34B on two A100s: prompts in chunks, whole prompts, decodes, both in one step, and the step from one tile to the
next. Chunks of 2048 set the board's factor (sarathi_machines.py); whole prompts and the other chunks are held out.
Figure 2's files were measured with per-operation timers on, and are shown only.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from paceline_api.slo import SLOClass
from paceline_engine.step_time import HostTerm, StepTable

from paceline_planner.feasible import lone_prefill_s
from paceline_planner.papers.experiment import Curve, Experiment, Finding, Grid, Lab, Panel, Result
from paceline_planner.papers.sarathi_machines import MISTRAL, SARATHI, TILE_TOKENS, YI, engine, table
from paceline_planner.papers.sarathi_trial import CLASS
from paceline_planner.sim.fleet import Fleet
from paceline_planner.sim.rides import FleetSpec, Job, Ride

CHUNKS_FILE = "calibration/sarathi_chunking_overhead_yi34b_tp2.csv"
PREFILL_FILE = "calibration/sarathi_fig2_yi34b_tp2_prefill.csv"
DECODE_FILE = "calibration/sarathi_fig2_yi34b_tp2_decode.csv"
HYBRID_FILE = "calibration/sarathi_hybrid_vs_decode_yi34b_tp2.csv"
WHOLE = 16384
MOST_OVERHEAD = {512: 1.25, 1024: 1.20, 2048: 1.05}  # §5.4.1: about 25 %, 20 % and next to nothing
TILE_RATIO, TILE_ALLOWED = 1.32, 0.3  # §4.3: 257 tokens over 256
DECODE_CONTEXT = 1024
FREE = 1.05  # "decodes ride for free": what three of them may add to a step of 1021 prompt tokens
FIGURE_4_S = {"prefill": ((128, 0.030), (2048, 0.145)), "decode": ((1, 0.015), (64, 0.022))}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def prompt_s(wanted: tuple[int, int]) -> float:
    """TTFT of one prompt on an idle engine that takes `chunk` tokens a step; the host is not in it."""
    tokens, chunk = wanted
    system = replace(SARATHI, budget=chunk, max_requests=1)
    slo = SLOClass(CLASS, 60.0, 1.0)
    spec = FleetSpec((engine(YI, system, False, WHOLE, HostTerm()),), {CLASS: slo}, "round-robin")
    ttft: list[float] = []

    def ended(ride: Ride) -> bool:
        ttft.append(ride.course.ttft_s or 0.0)
        return True

    Fleet(spec, 1, ended).run(iter([Job(0.0, tokens, 1, CLASS)]))
    return ttft[0]


def tiled(of: StepTable) -> StepTable:
    return replace(of, tile_tokens=TILE_TOKENS)


Overheads = dict[tuple[int, int], float]
Chunks = Mapping[int, Mapping[int, float]]  # seconds by prompt's length and chunk


def run(lab: Lab) -> Result:
    measured = read_chunks(lab.traces)
    wanted = [(length, chunk) for length, by_chunk in measured.items() for chunk in by_chunk]
    ours = dict(zip(wanted, lab.each(prompt_s, wanted), strict=True))
    overheads = {(n, c): seconds / ours[n, WHOLE] for (n, c), seconds in ours.items()}
    panels = (
        _chunk_panel(overheads, measured),
        *_yi_panels(lab.traces),
        _mistral_panel(),
        _tile_panel(),
        _beside_panel(),
    )
    findings = (*_overheads(overheads, measured), *_hybrids(lab.traces))
    return Result(findings, (_chunk_grid(ours, measured),), panels, _remarks(ours, measured))


def read_chunks(traces: Path) -> Chunks:
    measured: dict[int, dict[int, float]] = defaultdict(dict)
    for r in rows(traces / CHUNKS_FILE):
        measured[int(r["prefill_length"])][int(r["chunk_size"])] = float(r["prefill_execution_time"]) * 1e-3
    return measured


def decode_s(of: StepTable, decodes: int) -> float:
    return of.seconds4(0, 0.0, decodes, decodes * DECODE_CONTEXT)


def beside_times(decodes: int, chunk: int, before: int) -> float:
    """How many times longer a step gets for its decodes when a chunk of a prompt joins, `before` of it computed."""
    yi = tiled(table(YI))
    hybrid = yi.seconds4(chunk, chunk * (before + chunk / 2), decodes, decodes * DECODE_CONTEXT)
    return hybrid / decode_s(yi, decodes)


def _overheads(overheads: Overheads, measured: Chunks) -> list[Finding]:
    found = []
    for chunk, most in MOST_OVERHEAD.items():
        worst = max(ratio for (_, c), ratio in overheads.items() if c == chunk)
        published = max(by_chunk[chunk] / by_chunk[WHOLE] for by_chunk in measured.values())
        found.append(Finding(f"prompts in chunks of {chunk} / whole, worst", published, worst, high=most))
    return found


def _hybrids(traces: Path) -> list[Finding]:
    yi = tiled(table(YI))
    low, high = (1 + (TILE_RATIO - 1) * (1 + sign * TILE_ALLOWED) for sign in (-1, 1))
    measured = {int(r["batch_num_decode_tokens"]): float(r["batch_execution_time"]) for r in rows(traces / HYBRID_FILE)}
    hybrid = yi.seconds4(1021, 1021**2 / 2, 3, 3 * DECODE_CONTEXT) / lone_prefill_s(yi, 1024)
    return [
        Finding("a step of 257 tokens / 256", TILE_RATIO, lone_prefill_s(yi, 257) / lone_prefill_s(yi, 256), low, high),
        Finding("1021 prompt tokens and 3 decodes / 1024", measured[3] / measured[0], hybrid, high=FREE),
        Finding("32 decodes beside a prompt of 8k / alone", None, beside_times(32, 8192, 0)),
        Finding("32 decodes beside a chunk of 480, 4k computed / alone", None, beside_times(32, 480, 4096)),
    ]


def _chunk_grid(ours: Overheads, measured: Chunks) -> Grid:
    lines = []
    for length, by_chunk in measured.items():
        cells = [f"{1e3 * ours[length, c]:.0f} ({1e3 * s:.0f})" for c, s in sorted(by_chunk.items())]
        lines.append((str(length), *cells))
    return Grid(
        "Prompts of Yi-34B TP2, ms, measured in brackets", ("tokens", "512", "1024", "2048", "whole"), tuple(lines)
    )


def _chunk_panel(overheads: Overheads, measured: Chunks) -> Panel:
    curves = []
    for chunk in MOST_OVERHEAD:
        ours = tuple((float(n), overheads[n, chunk]) for n in measured)
        published = tuple((float(n), by_chunk[chunk] / by_chunk[WHOLE]) for n, by_chunk in measured.items())
        curves += [Curve(f"chunks of {chunk}", ours), Curve(f"chunks of {chunk}, published", published, published=True)]
    return Panel("Overhead of chunks (figure 14)", "prompt tokens", "time / whole prompt's", tuple(curves))


def _yi_panels(traces: Path) -> tuple[Panel, ...]:
    """Figure 2's steps; the measured ones have timers around every operation."""
    yi, panels = tiled(table(YI)), []
    for name, file, column, of in (
        ("prefill", PREFILL_FILE, "batch_num_prefill_tokens", lone_prefill_s),
        ("decode", DECODE_FILE, "batch_num_decode_tokens", decode_s),
    ):
        points = [(int(r[column]), float(r["batch_execution_time"])) for r in rows(traces / file)]
        ours = Curve("ours, with the host", tuple((n, of(yi, n)) for n, _ in points))
        published = Curve("published, timers on", tuple(points), published=True)
        panels.append(Panel(f"Yi-34B TP2, {name} (figure 2)", f"{name} tokens", "s", (ours, published)))
    return tuple(panels)


def _mistral_panel() -> Panel:
    mistral, curves = replace(tiled(table(MISTRAL)), host=HostTerm()), []
    for name, of, counts in (
        ("prefill", lone_prefill_s, (128, 256, 512, 1024, 2048)),
        ("decode", decode_s, (1, 16, 32, 64)),
    ):
        curves.append(Curve(name, tuple((n, of(mistral, n)) for n in counts)))
        curves.append(Curve(f"{name}, published", FIGURE_4_S[name], published=True))
    return Panel("Mistral-7B (figure 4)", "tokens of a step", "s", tuple(curves))


def _tile_panel() -> Panel:
    yi, counts = tiled(table(YI)), range(64, 1025, 16)
    return Panel(
        "Tiles of 128 tokens (§4.3)",
        "prompt tokens of a step",
        "s",
        (Curve("Yi-34B TP2", tuple((n, lone_prefill_s(yi, n)) for n in counts)),),
    )


def _beside_panel() -> Panel:
    decodes = (1, 8, 32, 64, 128)
    kinds = (("a whole prompt of 4k", 4096, 0), ("chunks of 512, the last of 4k", 512, 3584))
    curves = tuple(Curve(name, tuple((b, beside_times(b, c, before)) for b in decodes)) for name, c, before in kinds)
    return Panel("Decodes with a prompt in their step (figure 9)", "decodes", "time / decodes alone", curves)


def _remarks(ours: Overheads, measured: Chunks) -> tuple[str, ...]:
    """How overheads go with length, and what chunks of 512 cost over chunks of 1024; the measured ones in brackets."""
    shortest, longest = min(measured), max(measured)

    def beside(length: int, over: int, under: int) -> str:
        published = measured[length][over] / measured[length][under]
        return f"{ours[length, over] / ours[length, under]:.2f} ({published:.2f})"

    return (
        (
            f"chunks of 2048 / whole prompts, measured in brackets: {beside(shortest, 2048, WHOLE)} at {shortest} "
            f"tokens, {beside(longest, 2048, WHOLE)} at {longest}"
        ),
        f"chunks of 512 / chunks of 1024 at {longest} tokens: {beside(longest, 512, 1024)}",
    )


EXPERIMENT = Experiment("sarathi-steps", "Sarathi-Serve: chunks, tiles and hybrid steps", "figures 2, 4, 9, 14", run)
