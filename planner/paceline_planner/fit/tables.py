"""Writes the step-time tables of `paceline_engine.tables` from public measurements: sources, KV capacities, rounding.

`python -m paceline_planner.fit.tables` reads `calibration/` of the folder of traces (`--traces`, else PACELINE_TRACES),
prints the errors and writes the JSON files; with `--check` it exits 1 when one of them is stale. Invariant: the same
measurements give the same bytes. Only fitted constants are kept, to four digits.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paceline_engine.tables
from paceline_api.catalog import ACCELERATORS, GIB, ModelShape, find_model

from paceline_planner.fit.grid import Fit, Point, errors, fit

GRID = "aiconfigurator_core_0.12.0_bf16_grid.csv"
GRID_GPUS = {
    "a100_sxm": "a100-sxm-80gb",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm",
    "l40s": "l40s",
}
GRID_SOURCE = "fitted to step times computed with aiconfigurator-core 0.12.0 (backend vllm, bf16)"
STAND_IN = "the source models OPT as a Llama-shaped model of its size"
DISTSERVE = {  # table's suffix: (file, whose engine)
    "distserve": ("distserve_fit_a100_80g.distserve.json", "DistServe's engine"),
    "distserve-vllm": ("distserve_fit_a100_80g.vllm.json", "vLLM of 2023"),
}
DISTSERVE_SOURCE = "published fit of {}, LLMServe/DistServe simdistserve/estimators/profile_data (OSDI'24)"
NO_HOST = {"constant_ms": 0.0, "prefill_token_ms": 0.0, "context_token_ms": 0.0, "sequence_ms": 0.0}
DISTSERVE_HOST = NO_HOST | {"constant_ms": 2.0, "prefill_token_ms": 1e-4, "context_token_ms": 1e-4}  # its "ray" term
LICENCE = "Apache-2.0"

KV_BLOCK_TOKENS = 16  # vLLM's default block
GPU_MEMORY_UTILISATION = 0.9  # vLLM's default share of a GPU's memory
ACTIVATIONS_BYTES = 2 * GIB  # activations, workspaces and CUDA graphs of one GPU


def kv_capacity_tokens(model: ModelShape, tensor: int, memory_gib: int) -> int:
    """Tokens of KV that a replica holds: 90 % of each GPU less its weights and 2 GiB; 0 when nothing is left."""
    left = GPU_MEMORY_UTILISATION * memory_gib * GIB - model.weight_bytes / tensor - ACTIVATIONS_BYTES
    blocks = int(left * tensor // (model.kv_bytes_per_token * KV_BLOCK_TOKENS))
    return max(blocks, 0) * KV_BLOCK_TOKENS


def grid_model(name: str) -> ModelShape:
    """The shape of a name in the grid, such as `llama3.1-8b` or `opt-13b*`."""
    model = find_model(name.rstrip("*").replace("llama", "llama-"))
    if model is None:
        raise ValueError(f"{GRID} names a model that the catalogue lacks: {name}")
    return model


def read_grid(path: Path) -> dict[tuple[str, str, int], list[Point]]:
    """The grid's points by (its GPU name, its model name, tensor)."""
    points: dict[tuple[str, str, int], list[Point]] = {}
    with path.open(newline="") as lines:
        for row in csv.DictReader(lines):
            point = Point(
                row["phase"],
                int(row["n_prefill_tokens"] or 0),
                int(row["prefix_tokens"] or 0),
                int(row["decode_batch"] or 0),
                int(row["context"] or 0),
                float(row["latency_ms"]) * 1e-3,
            )
            points.setdefault((row["gpu"], row["model"], int(row["tp"])), []).append(point)
    return points


def digits(value: float, count: int) -> float:
    """`value` to `count` significant digits, so that the last bits of a solver cannot change a file."""
    return float(f"{value:.{count}g}")


def constants(found: Fit, count: int) -> dict[str, Any]:
    """The constants of a fit as the files hold them: milliseconds, nanoseconds per token and per token²."""
    return {
        "linear_ms": [[n, digits(s * 1e3, count)] for n, s in found.linear],
        "pair_ns": digits(found.pair_s * 1e9, count),
        "mixed_ms": digits(found.mixed_s * 1e3, count),
        "decode_ms_ns": [[b, digits(s * 1e3, count), digits(kv * 1e9, count)] for b, s, kv in found.decode],
    }


def grid_documents(calibration: Path) -> dict[str, dict[str, Any]]:
    """One document a GPU of the grid; a model whose weights leave no room for KV is left out."""
    documents: dict[str, dict[str, Any]] = {
        table: {
            "table": table,
            "gpu": table,
            "source": GRID_SOURCE,
            "licence": LICENCE,
            "host": NO_HOST,
            "entries": [],
        }
        for table in GRID_GPUS.values()
    }
    for (gpu, name, tensor), points in sorted(read_grid(calibration / GRID).items()):
        table, model = GRID_GPUS[gpu], grid_model(name)
        kv_tokens = kv_capacity_tokens(model, tensor, ACCELERATORS[table].memory_gib)
        if not kv_tokens:
            continue
        entry: dict[str, Any] = {"model": model.name, "tensor": tensor, "kv_tokens": kv_tokens}
        entry |= {"kv_bytes_per_token": model.kv_bytes_per_token, "note": STAND_IN if name.endswith("*") else ""}
        entry |= constants(fit(points, model.max_context_tokens), 4) | {"error": {}}
        kept = paceline_engine.tables.parse(documents[table], entry)
        entry["error"] = errors(kept, points, model.max_context_tokens)
        documents[table]["entries"].append(entry)
    return documents


def distserve_documents(calibration: Path) -> dict[str, dict[str, Any]]:
    """DistServe's own fits, unchanged, in ms: prefill a + bΣl + cΣl²; decode a + bΣcontext + cB, another for large B.

    Σl² of whole prompts is twice their pairs; a negative c, which one of them has, is taken as 0.
    """
    with (calibration / "distserve_max_num_tokens.csv").open(newline="") as lines:
        capacity = {
            (r["model"], int(r["tp"])): int(r["max_num_tokens"]) for r in csv.DictReader(lines) if r["pp"] == "1"
        }
    documents: dict[str, dict[str, Any]] = {}
    for suffix, (file, engine) in DISTSERVE.items():
        table, entries = f"a100-sxm-80gb.{suffix}", []
        for uri, by_tensor in json.loads((calibration / file).read_bytes()).items():
            model = find_model(uri)
            assert model is not None
            for tensor, of in by_tensor.items():
                a, b, c = of["prefill"]
                large = of["decoding_large_small_bs_threshold"]
                small_a, small_kv, small_b = of["decoding_smallbs"]
                large_a, large_kv, large_b = of["decoding_largebs"]
                small = [(n, (small_a + small_b * n) * 1e-3, small_kv * 1e-3) for n in (1, large - 1)]
                above = [(n, (large_a + large_b * n) * 1e-3, large_kv * 1e-3) for n in (large, 1024)]
                linear = tuple((n, (a + b * n) * 1e-3) for n in (1, 2048))
                found = Fit(linear, max(2 * c, 0.0) * 1e-3, 0.0, (*small, *above))
                entry: dict[str, Any] = {"model": model.name, "tensor": int(tensor)}
                entry |= {"kv_tokens": capacity[uri, int(tensor)], "kv_bytes_per_token": model.kv_bytes_per_token}
                entries.append(entry | {"note": ""} | constants(found, 9) | {"error": {}})
        documents[table] = {
            "table": table,
            "gpu": "a100-sxm-80gb",
            "source": DISTSERVE_SOURCE.format(engine),
            "licence": LICENCE,
            "host": DISTSERVE_HOST,
            "entries": entries,
        }
    return documents


def render(document: Mapping[str, Any]) -> bytes:
    """The file of a document: one line a field, one line an entry."""
    head = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in document.items() if key != "entries"]
    entries = ",\n".join(f"  {json.dumps(entry)}" for entry in document["entries"])
    return "\n".join(["{", *head, ' "entries": [', entries, " ]", "}", ""]).encode()


def error_lines(documents: Iterable[Mapping[str, Any]]) -> list[str]:
    """The errors of each entry that has points to compare with, in percent: median / p90 / max."""
    lines = [f"{'table':<14} {'model':<14} tp  {'prefill':>17}  {'decode':>17}  {'mixed':>17}   median / p90 / max, %"]
    for document in documents:
        for entry in document["entries"]:
            if entry["error"]:
                cells = [" / ".join(f"{100 * v:.1f}" for v in e.values()) for e in entry["error"].values()]
                columns = "  ".join(f"{cell:>17}" for cell in cells)
                lines.append(f"{document['table']:<14} {entry['model']:<14} {entry['tensor']:>2}  {columns}")
    return lines


def write_files(documents: Mapping[str, Mapping[str, Any]], *, check: bool) -> int:
    """Each document to the engine's table of its name, where it differs; 1 for `check`, which only says so."""
    folder = Path(paceline_engine.tables.__file__).parent
    files = {folder / f"{table}.json": render(document) for table, document in documents.items()}
    stale = [path for path, content in files.items() if not path.is_file() or path.read_bytes() != content]
    for path in stale:
        print(f"{path.name}: {'stale' if check else 'written'}", file=sys.stderr)
        if not check:
            path.write_bytes(files[path])
    return 1 if check and stale else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 when `--check` finds a stale file."""
    parser = argparse.ArgumentParser(prog="python -m paceline_planner.fit.tables", description=__doc__)
    parser.add_argument("--traces", type=Path, default=os.environ.get("PACELINE_TRACES"), help="folder of the traces")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    args = parser.parse_args(argv)
    if args.traces is None or not (Path(args.traces) / "calibration" / GRID).is_file():
        parser.error(f"no calibration/{GRID} in the folder of traces; name it with --traces or PACELINE_TRACES")
    calibration = Path(args.traces) / "calibration"
    documents = grid_documents(calibration) | distserve_documents(calibration)
    print("\n".join(error_lines(documents.values())))
    return write_files(documents, check=args.check)


if __name__ == "__main__":
    sys.exit(main())
