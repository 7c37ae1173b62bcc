"""A benchmark asked for what it does not have says so, and what there is: it never ends well having run nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        pytest.param(
            ("papers.py", "typo"), "there are: distserve-2p1d", id="an experiment that is not in the catalogue"
        ),
        pytest.param(("papers.py",), "PACELINE_TRACES", id="experiments without the traces"),
        pytest.param(("routing.py", "--only", "mixed,typo"), "there are: azure", id="a workload that nobody sends"),
        pytest.param(("routing.py", "--only", "azure"), "PACELINE_TRACES", id="a trace's workload without the traces"),
        pytest.param(("autoscale_replay.py",), "PACELINE_TRACES", id="hours without the traces"),
        pytest.param(("policies.py", "--only", "slo,typo"), "there are: slo", id="a part that is not judged"),
    ],
)
def test_what_a_benchmark_does_not_have_is_an_error(command: tuple[str, ...], says: str, tmp_path: Path) -> None:
    script, *flags = command
    bare = {name: value for name, value in os.environ.items() if name != "PACELINE_TRACES"}
    asked = [sys.executable, str(BENCHMARKS / script), *flags, "--out", str(tmp_path / "out")]
    done = subprocess.run(asked, capture_output=True, text=True, env=bare)
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "out").exists()
