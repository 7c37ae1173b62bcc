"""Objectives and settings on their way into vLLM's scheduler: what is read, and that nothing a client sends raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.launch import LaunchSpec, engine_command
from paceline_engine.request import Objective
from paceline_engine.vllm.objectives import BEST_EFFORT, read_objective
from paceline_engine.vllm.settings import KEY, InvalidSettings, Settings, read_settings

CHAT = Objective("chat", 0.4, 0.04, 0.12)


@pytest.mark.parametrize(
    ("extra", "default", "objective"),
    [
        pytest.param(None, CHAT, CHAT, id="no arguments: the default class"),
        pytest.param({"seed": 1}, None, None, id="other arguments and no default: none"),
        pytest.param({"slo_tpot_ms": 20}, CHAT, Objective("chat", 0.4, 0.02, 0.06), id="a pace brings its stall limit"),
        pytest.param({"slo_ttft_ms": -50}, CHAT, Objective("chat", -0.05, 0.04, 0.12), id="a prompt may be late"),
        pytest.param({"slo_max_stall_ms": "25"}, CHAT, Objective("chat", 0.4, 0.04, 0.025), id="a number as text"),
        pytest.param(
            {"slo_tpot_ms": 30.0, "slo_class": "x"},
            None,
            Objective("x", BEST_EFFORT.ttft_s, 0.03, 0.09),
            id="no default: what is not named is lax",
        ),
        pytest.param({"slo_tpot_ms": -1}, CHAT, CHAT, id="a negative pace is none"),
        pytest.param({"slo_tpot_ms": 1e300}, CHAT, CHAT, id="a huge pace is none"),
        pytest.param({"slo_tpot_ms": "nan"}, CHAT, CHAT, id="not a number is none"),
        pytest.param({"slo_tpot_ms": True}, CHAT, CHAT, id="true is no number"),
        pytest.param({"slo_tpot_ms": [1]}, CHAT, CHAT, id="a list is no number"),
        pytest.param(
            {"slo_tpot_ms": 10, "slo_class": "c" * 64},
            CHAT,
            Objective("chat", 0.4, 0.01, 0.03),
            id="a long name is none",
        ),
    ],
)
def test_objectives_are_read(
    extra: dict[str, Any] | None, default: Objective | None, objective: Objective | None
) -> None:
    found = read_objective(extra, default)
    if objective is None:
        assert found is None
        return
    assert found is not None
    assert found.class_name == objective.class_name
    assert (found.ttft_s, found.tpot_s, found.max_stall_s) == pytest.approx(
        (objective.ttft_s, objective.tpot_s, objective.max_stall_s)
    )


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers()))


@given(st.dictionaries(st.sampled_from(["slo_class", "slo_ttft_ms", "slo_tpot_ms", "slo_max_stall_ms", "x"]), VALUES))
def test_whatever_a_client_sends_an_objective_is_usable(extra: dict[str, Any]) -> None:
    found = read_objective(extra, CHAT)
    assert found is not None
    assert 0 < found.tpot_s <= 1e6
    assert 0 < found.max_stall_s <= 3e6
    assert abs(found.ttft_s) <= 1e6


def test_settings_without_an_object_say_nothing() -> None:
    assert read_settings({}) == Settings()
    assert Settings().default is None


def test_settings_name_the_default_class() -> None:
    settings = read_settings({KEY: {"default_class": "chat", "default_ttft_ms": 400, "default_tpot_ms": 40.0}})
    assert settings.default == Objective("chat", 0.4, 0.04, 0.12)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be an object"),
        ({"tpot": 1}, "knows no 'tpot'"),
        ({"default_tpot_ms": "40"}, "default_tpot_ms must be a number"),
        ({"default_tpot_ms": -1}, "default_tpot_ms must be a number of 0 or more"),
        ({"tensor": 1.5}, "tensor must be a number"),
        ({"service": 3}, "service must be a text"),
    ],
)
def test_wrong_settings_stop_the_engine(value: object, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        read_settings({KEY: value})


@pytest.mark.parametrize(("named_s", "limit_s"), [(0.0, 0.12), (0.05, 0.05)], ids=["none named", "its own"])
def test_the_launch_of_an_engine_says_what_the_scheduler_reads(named_s: float, limit_s: float) -> None:
    spec = LaunchSpec(
        runtime="VLLM",
        service="chat",
        pool="decode",
        role="decode",
        model_uri="file:///m",
        served_name="m",
        max_context_tokens=4096,
        default_class="interactive",
        default_ttft_s=0.4,
        default_tpot_s=0.04,
        default_max_stall_s=named_s,
        table="h100-sxm",
    )
    flag = next(arg for arg in engine_command(spec).argv if arg.startswith("--additional-config="))
    settings = read_settings(json.loads(flag.partition("=")[2]))
    assert settings.default == Objective("interactive", 0.4, 0.04, limit_s)
    assert (settings.service, settings.role, settings.table, settings.table_model) == (
        "chat",
        "decode",
        "h100-sxm",
        "file:///m",
    )
