"""What counts as a difference between a manifest and a live object, and what the API server merely writes otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from paceline_operator.differ import contains, must_write, stamped


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        pytest.param({"a": 1, "b": 2}, {"a": 1}, id="defaults"),
        pytest.param({"cpu": "500m"}, {"cpu": "0.5"}, id="a quantity in another unit"),
        pytest.param({"memory": "1Gi"}, {"memory": "1024Mi"}, id="a binary quantity"),
        pytest.param({"cpu": "1"}, {"cpu": 1}, id="a quantity as a number"),
        pytest.param({"cpu": "500m"}, {"cpu": 0.5}, id="a quantity as a fraction"),
        pytest.param({}, {"value": ""}, id="an empty value that is left out"),
        pytest.param({"env": [{"name": "B"}, {"name": "A", "value": "1"}]}, {"env": [{"name": "A"}]}, id="a sidecar's"),
        pytest.param({"emptyDir": {}}, {"emptyDir": {}}, id="an empty mapping"),
    ],
)
def test_no_difference(live: Any, wanted: Any) -> None:
    assert contains(live, wanted)


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        pytest.param({"a": 2}, {"a": 1}, id="another value"),
        pytest.param({}, {"a": 1}, id="a missing field"),
        pytest.param({"a": ["x", "y"]}, {"a": ["x"]}, id="an argument too many"),
        pytest.param({"a": ["y", "x"]}, {"a": ["x", "y"]}, id="another order"),
        pytest.param({"env": []}, {"env": [{"name": "A"}]}, id="an entry that is gone"),
        pytest.param({"on": True}, {"on": False}, id="a switch"),
        pytest.param({"n": 0}, {"n": 1}, id="a size"),
        pytest.param({"a": "x"}, {"a": {"b": 1}}, id="another type"),
        pytest.param({"a": True}, {"a": "1"}, id="a boolean is no quantity"),
        pytest.param({"a": "12e3456789"}, {"a": "12e3456780"}, id="hashes that read as huge numbers"),
    ],
)
def test_a_difference(live: Any, wanted: Any) -> None:
    assert not contains(live, wanted)


def test_a_field_that_is_no_longer_wanted_shows_in_the_hash() -> None:
    first = stamped({"kind": "X", "metadata": {"name": "x"}, "spec": {"a": 1, "b": 2}})
    second = stamped({"kind": "X", "metadata": {"name": "x"}, "spec": {"a": 1}})
    assert not must_write(first, first)
    assert must_write(second, first)
    assert must_write(first, None)
