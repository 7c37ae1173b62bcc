"""How far rooflines are off: the grid's steps with models and GPUs left out, Vidur's operators, the papers' anchors.

    python benchmarks/roofline.py [--traces DIR]

Fits the constants of planner/paceline_planner/roofline/fractions.py anew and prints them with their errors, in percent:
median / p90 of the size, and the median with its sign. Nothing is written. Takes a few seconds on one core.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
from paceline_api.catalog import MODELS
from paceline_planner.fit.grid import PHASES
from paceline_planner.papers.sarathi_machines import FALCON_180B, NODES_BYTES_S
from paceline_planner.roofline.evidence import read_groups, read_operators
from paceline_planner.roofline.fitting import Errors, Found, Group, errors, find, quantiles
from paceline_planner.roofline.fractions import achieved
from paceline_planner.roofline.gpu import GPUS
from paceline_planner.roofline.shape import Shape, from_config, of_catalogue
from paceline_planner.roofline.table import roofline_table
from rich.console import Console
from rich.table import Table

DECODES_4K = (0, 0.0, 32, 32 * 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=os.environ.get("PACELINE_TRACES"), help="folder of the traces")
    args = parser.parse_args()
    if args.traces is None:
        parser.error("name the folder of traces with --traces or PACELINE_TRACES")
    console, calibration = Console(width=130), Path(args.traces) / "calibration"
    groups = read_groups(calibration)
    together, each = find(groups)
    for name, found in (("all GPUs", together), *each.items()):
        show_found(console, name, found)
    show_groups(console, groups, each)
    show_operators(console, calibration)
    show_anchors(console)


def cells(found: Mapping[str, Errors]) -> list[str]:
    shown = [found.get(phase) for phase in (*PHASES, "all")]
    return [f"{100 * e.median:.1f} / {100 * e.p90:.1f} ({100 * e.bias:+.1f})" if e else "–" for e in shown]


def table_of_errors(title: str, *first: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in (*first, *PHASES, "all"):
        table.add_column(column, justify="left" if column in first else "right")
    return table


def show_found(console: Console, name: str, found: Found) -> None:
    constants = ", ".join(f"{value:.3g}" for value in astuple(found.fractions))
    table = table_of_errors(f"{name}: Fractions({constants})", "error, %")
    table.add_row("on what it was fitted to", *cells(found.fitted))
    table.add_row("on what was left out", *cells(found.left_out))
    for left_out, of in found.of_left_out.items():
        table.add_row(f"  {'without hidden size ' if left_out.isdigit() else 'without '}{left_out}", *cells(of))
    console.print(table)


def show_groups(console: Console, groups: Sequence[Group], each: Mapping[str, Found]) -> None:
    table = table_of_errors("the grid, each GPU's own constants", "GPU", "model", "TP")
    for g in groups:
        found = errors([g], each[g.gpu.name].fractions)
        table.add_row(g.gpu.name, g.shape.name, str(g.tensor), *cells(found))
    console.print(table)


def show_operators(console: Console, calibration: Path) -> None:
    """Vidur's measurements were not fitted to; GPUs that the grid lacks use the typical constants."""
    table = Table(title="one layer without attention and all-reduce, as Vidur measured it, %", title_justify="left")
    for column in ("GPU", "constants of", "TP", "median / p90 (bias)"):
        table.add_column(column)
    ratios: dict[tuple[str, int], list[float]] = {}
    for o in read_operators(calibration):
        ratios.setdefault((o.gpu.name, o.tensor), []).extend(o.log_ratios(achieved(o.gpu).fractions))
    for (name, tensor), found in sorted(ratios.items()):
        every = quantiles(np.array(found), ["prefill"] * len(found))
        table.add_row(name, achieved(GPUS[name]).basis, str(tensor), cells(every)[-1])
    console.print(table)


def show_anchors(console: Console) -> None:
    table = Table(title="published step times, ms", title_justify="left")
    for column in ("what", "published", "roofline"):
        table.add_column(column)
    for what, published_ms, seconds in anchors():
        table.add_row(what, f"{published_ms:g}", f"{1e3 * seconds:.0f}")
    console.print(table)


def anchors() -> list[tuple[str, float, float]]:
    """What the papers say (Sarathi-Serve §5, figures 10 and 13; DistServe's fits), milliseconds, beside ours."""
    pairs = GPUS["a100-pcie-80gb"]
    falcon = roofline_table(from_config(FALCON_180B, "falcon-180b"), pairs, 4, 2, NODES_BYTES_S)
    yi = roofline_table(of_catalogue(MODELS["yi-34b"]), pairs, 2)
    mistral = roofline_table(of_catalogue(MODELS["mistral-7b"]), pairs)
    a40 = roofline_table(of_catalogue(MODELS["llama-2-70b"]), GPUS["a40"], 4, 2)
    opt: dict[str, Shape] = {name: of_catalogue(MODELS[name]) for name in ("opt-13b", "opt-66b")}
    sxm = GPUS["a100-sxm-80gb"]
    prompt = (1024, 1024**2 / 2, 0, 0)
    return [
        ("Falcon-180B TP4-PP2, 4k prompt, one stage", 1150, falcon.seconds4(4096, 4096**2 / 2, 0, 0) / 2),
        ("Falcon-180B TP4-PP2, 8 decodes (figure 13)", 85, falcon.seconds4(0, 0.0, 8, 8 * 2048)),
        ("Falcon-180B TP4-PP2, 128 decodes (figure 13)", 150, falcon.seconds4(0, 0.0, 128, 128 * 2048)),
        ("Falcon-180B TP4-PP2, 32 decodes at 4k (base of its SLO)", 200, falcon.seconds4(*DECODES_4K)),
        ("LLaMA2-70B TP4-PP2 on A40, 32 decodes at 4k (base of its SLO)", 200, a40.seconds4(*DECODES_4K)),
        ("Yi-34B TP2, 32 decodes at 4k (base of its SLO)", 40, yi.seconds4(*DECODES_4K)),
        ("Yi-34B TP2, 4095-token prompt", 775, yi.seconds4(4095, 4095**2 / 2, 0, 0)),
        ("Mistral-7B, 32 decodes at 4k (base of its SLO)", 20, mistral.seconds4(*DECODES_4K)),
        ("OPT-13B, 1024-token prompt (DistServe's fit)", 130, roofline_table(opt["opt-13b"], sxm).seconds4(*prompt)),
        ("OPT-66B TP4, 1024-token prompt", 193, roofline_table(opt["opt-66b"], sxm, 4).seconds4(*prompt)),
        (
            "OPT-66B TP4, 32 decodes at 1k",
            47.6,
            roofline_table(opt["opt-66b"], sxm, 4).seconds4(0, 0.0, 32, 32 * 1024),
        ),
    ]


if __name__ == "__main__":
    main()
