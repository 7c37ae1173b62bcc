"""Leg 2's parameters are checked field by field: what is wrong is named, and nothing else gets out."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.pd import InvalidTransfer, RemoteKV, read_remote_kv

GOOD = RemoteKV("engine-1", "cmpl-1", "10.0.0.1", 5600, 512, 1_790_000_000.0).params()
WITHOUT = object()


def given_params(**changes: object) -> dict[str, Any]:
    return {key: value for key, value in {**GOOD, **changes}.items() if value is not WITHOUT}


def test_what_leg_1_says_is_read_as_it_was_said() -> None:
    assert read_remote_kv(GOOD).params() == GOOD


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param({"remote_host": WITHOUT}, "remote_host is missing", id="without a host vLLM's engine would die"),
        pytest.param({"remote_host": 7}, "remote_host", id="a host is text"),
        pytest.param({"remote_port": 0}, "remote_port", id="port 0 is nobody's"),
        pytest.param({"remote_port": 70_000}, "remote_port", id="a port has 16 bits"),
        pytest.param({"remote_num_tokens": -1}, "remote_num_tokens", id="less than no token"),
        pytest.param({"tp_size": "2"}, "tp_size", id="a size is a number"),
        pytest.param({"remote_blocks_expiry_time": None}, "NoneType", id="KV without an end to its lease"),
        pytest.param({"remote_blocks_expiry_time": 10**400}, "too large", id="an end that no clock can show"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidTransfer, match=named):
        read_remote_kv(given_params(**change))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), JSON))
def test_whatever_a_body_holds_it_is_read_or_refused(changes: dict[str, object]) -> None:
    with suppress(InvalidTransfer):
        read_remote_kv(given_params(**changes))
