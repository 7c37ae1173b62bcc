"""Reads the measurements that a roofline is fitted to and judged by, from `calibration/` of the folder of traces.

The grid is what the constants are fitted to; Vidur's operators are other people's measurements, on a GPU that the grid
lacks among them (A40), and only ever judge. Seconds.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paceline_planner.fit.tables import GRID, GRID_GPUS, grid_model, read_grid
from paceline_planner.roofline.cost import Floats, Fractions, Steps, seconds, work
from paceline_planner.roofline.fitting import Group, group
from paceline_planner.roofline.gpu import GPUS, Gpu
from paceline_planner.roofline.shape import Shape, of_catalogue

OPERATORS = "vidur_linear_ops_median_ms_per_layer.csv"
OPERATOR_GPUS = {"a100": "a100-sxm-80gb", "h100": "h100-sxm", "a40": "a40"}
MATRICES = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
ELEMENTWISE = ("input_layernorm", "attn_rope", "post_attention_layernorm", "mlp_act", "add")
UNGATED = ("microsoft/phi-2",)  # not one of the families that are compared


def read_groups(calibration: Path) -> list[Group]:
    """The grid, one group a GPU, model and tensor parallelism."""
    return [
        group(GPUS[GRID_GPUS[gpu]], of_catalogue(grid_model(name)), tensor, points)
        for (gpu, name, tensor), points in read_grid(calibration / GRID).items()
    ]


@dataclass(frozen=True, slots=True)
class Operators:
    """One layer of a model on one of `tensor` GPUs: seconds of its operators without attention and all-reduce."""

    gpu: Gpu
    layer: Shape
    tensor: int
    tokens: Floats
    measured: Floats

    def log_ratios(self, f: Fractions) -> Floats:
        """log(predicted / measured) at each number of tokens."""
        none = np.zeros_like(self.tokens)
        todo = work(self.layer, self.tensor, Steps(self.tokens, none, none, none))
        ratios: Floats = np.log((seconds(todo, self.gpu, f) - f.step_s) / self.measured)
        return ratios


def read_operators(calibration: Path) -> Iterator[Operators]:
    rows: dict[tuple[str, str, int], list[dict[str, str]]] = {}
    with (calibration / OPERATORS).open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row["model"] not in UNGATED:
                rows.setdefault((row["gpu"], row["model"], int(row["tp"])), []).append(row)
    for (gpu, model, tensor), found in rows.items():
        yield _operators(GPUS[OPERATOR_GPUS[gpu]], model, tensor, found)


def _operators(gpu: Gpu, model: str, tensor: int, rows: Sequence[dict[str, str]]) -> Operators:
    hidden, heads = int(rows[0]["n_embd"]), int(rows[0]["n_head"])
    layer = Shape(
        name=model,
        layers=1,
        hidden=hidden,
        heads=heads,
        kv_heads=int(rows[0]["n_kv_head"]),
        head_dim=hidden // heads,
        intermediate=int(rows[0]["n_expanded_embd"]),
        vocab=0,
        max_context_tokens=0,
        reduces_per_layer=0,
    )
    measured = [sum(float(row[name] or 0.0) for name in (*MATRICES, *ELEMENTWISE)) * 1e-3 for row in rows]
    tokens = [float(row["num_tokens"]) for row in rows]
    return Operators(gpu, layer, tensor, np.array(tokens), np.array(measured))
