"""The client of the demo on vLLM: which gaps count, and what it leaves. The demo itself takes minutes, by hand."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vllm_client", ROOT / "examples/vllm_client.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_only_gaps_that_overlap_the_prefill_count(client: ModuleType) -> None:
    one = client.Round(times_s=(-0.3, -0.1, 0.5, 0.9, 1.1, 1.2), long_ttft_s=1.0)
    assert one.gaps == [(0.5, pytest.approx(0.6)), (0.9, pytest.approx(0.4)), (1.1, pytest.approx(0.2))]


def test_figures_and_figure_of_both_sides(
    client: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steady = tuple(i / 20 for i in range(-10, 60))
    stalled = tuple(t for t in steady if not 0 < t < 2)
    rounds = {client.STOCK: [client.Round(stalled, 2.0)], client.OURS: [client.Round(steady, 2.5)]}
    client.show(rounds)
    stock, ours = capsys.readouterr().out.splitlines()
    assert "longest 2000 ms; its first token: 2.0 s" in stock
    assert "longest 50 ms; its first token: 2.5 s" in ours
    client.draw(rounds, 1, tmp_path / "gaps.png")
    assert (tmp_path / "gaps.png").read_bytes().startswith(b"\x89PNG")


def test_the_script_stops_at_the_first_error_and_its_objectives_are_in_the_files(tmp_path: Path) -> None:
    script = ROOT / "examples/vllm.sh"
    text = script.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    edits = [line for line in text.splitlines() if line.startswith("sed ")]
    assert len(edits) == 2
    for line in edits:
        subprocess.run(["bash", "-c", line], cwd=ROOT, env={**os.environ, "out": str(tmp_path)}, check=True)
    for name in ("chat", "mixed"):
        before, after = (
            path.read_text(encoding="utf-8").splitlines()
            for path in (ROOT / f"examples/{name}.yaml", tmp_path / f"{name}.yaml")
        )
        changed = sum(a != b for a, b in zip(before, after, strict=True))
        assert changed == 2, "an objective that is edited is gone"
