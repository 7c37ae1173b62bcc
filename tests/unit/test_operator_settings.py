"""What the operator is told at its start: the accelerators' file, and what is said when it cannot start."""

from __future__ import annotations

from pathlib import Path

import pytest
from paceline_api.catalog import ACCELERATORS
from paceline_operator.__main__ import main
from paceline_operator.settings import SettingsError, read_accelerators

ENTRY = """
h100-sxm:
  table: h100-sxm
  memoryGiB: 79
  gpusPerNode: 8
  resourceName: nvidia.com/gpu
  nodeSelector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}
  tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "accelerators.yaml"
    path.write_text(text)
    return path


def test_an_entry_of_the_chart_is_the_catalogues_own(tmp_path: Path) -> None:
    found = read_accelerators(write(tmp_path, ENTRY))["h100-sxm"]
    known = ACCELERATORS["h100-sxm"]
    assert (found.table, found.memory_gib, found.gpus_per_node, found.resource_name) == (
        known.table,
        known.memory_gib,
        known.gpus_per_node,
        known.resource_name,
    )
    assert dict(found.node_selector) == dict(known.node_selector)
    assert [dict(t) for t in found.tolerations] == [dict(t) for t in known.tolerations]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("h100: {gpusPerNode: 8}", "h100.memoryGiB: Field required"),
        ("h100: {memoryGiB: 79, gpusPerNode: 0}", "h100.gpusPerNode: Input should be greater than or equal to 1"),
        ("h100: {memoryGiB: 79, gpusPerNode: 8, tabel: x}", "h100.tabel: Extra inputs"),
        ("h100: [", "cannot be read"),
    ],
    ids=["a field is missing", "no GPUs", "a field is misspelt", "no YAML"],
)
def test_a_wrong_entry_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        read_accelerators(write(tmp_path, text))


def test_what_keeps_it_from_starting_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert main(["--control-image=i", "--host=127.0.0.1", "--port=0"]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    cause = f"no cluster is configured: {tmp_path / 'none'} does not exist"
    assert said == [f"paceline_operator: {cause}; set KUBECONFIG to a kubeconfig file"]
