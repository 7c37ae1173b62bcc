"""Finds the step-time table of an accelerator, a model and a tensor parallelism among the JSON files beside this one.

The files are written by `python -m paceline_planner.fit.tables` from public measurements and fits (NOTICE); nothing
here invents or scales a table. Invariant: a missing table is an error that names what exists, never a default.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from paceline_api.catalog import find_model

from paceline_engine.step_time import HostTerm, StepTable

_HOST_PARTS = ("constant", "prefill_token", "context_token", "sequence")  # in the order of HostTerm's fields


class TableMissing(LookupError):
    """No table for this accelerator, model and tensor parallelism; the message says what there is."""


@cache
def load_table(table: str, model: str, tensor: int = 1) -> StepTable:
    """The table named by an accelerator's `table`, for a model's name or URI; raises TableMissing."""
    if table not in _table_names():
        raise TableMissing(f"no step-time table {table!r}; there are: {', '.join(_table_names())}")
    shape = find_model(model)
    entries = {(str(e["model"]), int(e["tensor"])): e for e in _document(table)["entries"]}
    entry = entries.get((shape.name, tensor)) if shape else None
    if entry is None:
        same_model = [f"tensor {t}" for m, t in sorted(entries) if shape and m == shape.name]
        there_are = same_model or [f"{m} with tensor {t}" for m, t in sorted(entries)]
        raise TableMissing(
            f"no step-time table for {model} on {table} with tensor {tensor}; there are: {', '.join(there_are)}"
        )
    return parse(_document(table), entry)


def available() -> tuple[tuple[str, str, int], ...]:
    """Every (table, model, tensor) that `load_table` knows, sorted."""
    return tuple(sorted((name, e["model"], e["tensor"]) for name in _table_names() for e in _document(name)["entries"]))


@cache
def _table_names() -> tuple[str, ...]:
    files = resources.files(__package__).iterdir()
    return tuple(sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json")))


@cache
def _document(table: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(resources.files(__package__).joinpath(f"{table}.json").read_bytes())
    return document


def parse(document: dict[str, Any], entry: dict[str, Any]) -> StepTable:
    """The table of one entry of a file; times in the files are in the units that their keys name."""
    host = document["host"]
    return StepTable(
        name=document["table"],
        source="; ".join(filter(None, (document["source"], entry["note"]))),
        gpu=document["gpu"],
        model=entry["model"],
        tensor=entry["tensor"],
        linear=tuple((n, ms * 1e-3) for n, ms in entry["linear_ms"]),
        pair_s=entry["pair_ns"] * 1e-9,
        mixed_s=entry["mixed_ms"] * 1e-3,
        decode=tuple((b, ms * 1e-3, ns * 1e-9) for b, ms, ns in entry["decode_ms_ns"]),
        kv_tokens=entry["kv_tokens"],
        kv_bytes_per_token=entry["kv_bytes_per_token"],
        tile_tokens=1,
        host=HostTerm(*(host[f"{part}_ms"] * 1e-3 for part in _HOST_PARTS)),
        error=entry["error"],
    )
