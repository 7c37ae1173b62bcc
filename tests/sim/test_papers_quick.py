"""`make papers` in its quick form: every experiment runs, writes what it found, and finds what can be found quickly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paceline_planner.papers.catalogue import EXPERIMENTS

COMMAND = Path(__file__).resolve().parents[2] / "benchmarks" / "papers.py"


def test_names_are_unique_and_files_can_be_called_by_them() -> None:
    names = [e.name for e in EXPERIMENTS]
    assert names
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").isalnum() and name == name.lower() for name in names)


@pytest.mark.requires("traces")
def test_every_experiment_runs_in_its_quick_form(traces: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(COMMAND), "--quick", "--traces", str(traces), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for experiment in EXPERIMENTS:
        found = json.loads((tmp_path / f"{experiment.name}.json").read_text())
        assert found["simulated"] is True
        assert found["quick"] is True
        assert found["findings"] or found["grids"]
        assert bool(found["panels"]) == (tmp_path / f"{experiment.name}.png").exists()
