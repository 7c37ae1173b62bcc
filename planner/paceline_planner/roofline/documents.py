"""Writes the rooflines of the catalogue's models for GPUs and tensor parallelisms that nobody measured, as table files.

    python -m paceline_planner.roofline.documents [--check]

Engines, routers and autoscalers find a table by its name among the files of paceline_engine.tables; a roofline's is
`roofline.` and the GPU's. Invariant: a file holds no model and tensor parallelism that has a measured table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from paceline_api.catalog import ACCELERATORS, MODELS
from paceline_engine.step_time import StepTable
from paceline_engine.tables import available

from paceline_planner.fit.grid import Fit
from paceline_planner.fit.tables import LICENCE, NO_HOST, constants, write_files
from paceline_planner.roofline.fractions import achieved
from paceline_planner.roofline.gpu import GPUS
from paceline_planner.roofline.shape import of_catalogue
from paceline_planner.roofline.table import SOURCE, DoesNotFit, roofline_table
from paceline_planner.step_tables import PREFIX, TENSORS


def documents() -> dict[str, dict[str, Any]]:
    """One document an accelerator of the catalogue, by table name."""
    measured = {(table, model, tensor) for table, model, tensor in available() if not table.startswith(PREFIX)}
    found: dict[str, dict[str, Any]] = {}
    for accelerator in ACCELERATORS.values():
        gpu = GPUS[accelerator.name]
        entries = []
        for model in MODELS.values():
            for tensor in TENSORS:
                if (accelerator.table, model.name, tensor) in measured:
                    continue
                try:
                    entries.append(_entry(roofline_table(of_catalogue(model), gpu, tensor)))
                except DoesNotFit:
                    continue
        found[PREFIX + accelerator.name] = {
            "table": PREFIX + accelerator.name,
            "gpu": gpu.name,
            "source": SOURCE.format(gpu.source, achieved(gpu).basis),
            "licence": LICENCE,
            "host": NO_HOST,
            "entries": entries,
        }
    return found


def _entry(table: StepTable) -> dict[str, Any]:
    entry: dict[str, Any] = {"model": table.model, "tensor": table.tensor, "kv_tokens": table.kv_tokens}
    entry |= {"kv_bytes_per_token": table.kv_bytes_per_token, "note": ""}
    entry |= constants(Fit(table.linear, table.pair_s, table.mixed_s, table.decode), 4)
    return entry | {"error": {phase: dict(quantiles) for phase, quantiles in table.error.items()}}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 when `--check` finds a stale file."""
    parser = argparse.ArgumentParser(prog="python -m paceline_planner.roofline.documents", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    args = parser.parse_args(argv)
    return write_files(documents(), check=args.check)


if __name__ == "__main__":
    sys.exit(main())
