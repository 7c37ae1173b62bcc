"""The rooflines on file: of nothing that was measured, and found by name (`make check` computes them anew)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paceline_api.catalog import ACCELERATORS
from paceline_engine.tables import available, load_table
from paceline_planner.roofline.gpu import GPUS
from paceline_planner.roofline.shape import Shape
from paceline_planner.roofline.table import roofline_table
from paceline_planner.step_tables import CATALOGUE, PREFIX, Tables, describe

OPT = "hf://facebook/opt-13b"
A100, A40 = ACCELERATORS["a100-sxm-80gb"], ACCELERATORS["a40"]
OWN = Shape("rocket", 32, 4096, 32, 8, 128, 11008, 32000, 8192)


def test_no_roofline_is_on_file_where_a_measured_table_is() -> None:
    known = available()
    measured = {(name, model, tensor) for name, model, tensor in known if not name.startswith(PREFIX)}
    rooflines = {(name.removeprefix(PREFIX), m, t) for name, m, t in known if name.startswith(PREFIX)}
    assert rooflines
    assert not rooflines & measured


@pytest.mark.parametrize(
    ("accelerator", "tensor", "name"),
    [
        pytest.param(A100, 2, "a100-sxm-80gb", id="measured"),
        pytest.param(A100, 8, "roofline.a100-sxm-80gb", id="not measured on so many GPUs"),
        pytest.param(A40, 1, "roofline.a40", id="not measured on this GPU"),
        pytest.param(replace(A100, name="mine"), 8, "roofline.a100-sxm-80gb", id="a cluster's own name for a GPU"),
    ],
)
def test_a_measured_table_is_preferred_to_a_roofline(accelerator: object, tensor: int, name: str) -> None:
    table = CATALOGUE.find(accelerator, OPT, tensor)  # type: ignore[arg-type]  # pytest's parameters have no type
    assert table is not None
    assert table.name == name
    assert describe(table).startswith(f"{name}, opt-13b × {tensor}: ")
    assert ("roofline: " in describe(table)) is name.startswith(PREFIX)


def test_a_table_from_a_file_is_the_one_computed_to_four_digits() -> None:
    shape = Tables(OWN).find(A40, "hf://acme/rocket", 1)
    assert shape == roofline_table(OWN, GPUS["a40"])
    on_file = load_table("roofline.a40", OPT, 1)
    assert on_file.kv_tokens > 0
    assert on_file.error["decode"]["median"] == pytest.approx(0.076)


def test_open_parallelism_of_a_model_of_one_s_own_is_what_fits() -> None:
    assert Tables(OWN).tensors(A40, "hf://acme/rocket") == [1, 2, 4, 8]
    assert Tables(replace(OWN, layers=320)).tensors(A40, "hf://acme/rocket") == [4, 8]
    assert CATALOGUE.tensors(A40, "hf://acme/rocket") == []
