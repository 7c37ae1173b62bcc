"""NIXL's progress thread pauses between its rounds and pins nobody, however often vLLM loads its plugins."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from paceline_engine.vllm.progress_thread import PAUSE_US, tame


class Agent:
    """NIXL's own."""

    def __init__(self, name: str, config: Any) -> None:
        self.name, self.pause_us = name, config.pthrDelay


def make_nixl(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its modules as version 1.5 lays them out: a front, and a wrapper around bindings; returns the bindings."""
    front, api, wrapper = ModuleType("nixl"), ModuleType("nixl._api"), ModuleType("nixl_cu12._api")
    bindings = SimpleNamespace(nixlAgent=Agent)
    wrapper.__dict__["nixlBind"] = bindings
    api.__dict__["nixl_agent_config"] = type("nixl_agent_config", (), {"__module__": wrapper.__name__})
    for module in (front, api, wrapper):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return bindings


def test_agents_get_the_pause_and_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = make_nixl(monkeypatch)
    tame()
    agent = bindings.nixlAgent("a", SimpleNamespace(pthrDelay=0))
    assert isinstance(agent, Agent)
    assert (agent.name, agent.pause_us) == ("a", PAUSE_US)


def test_a_second_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = make_nixl(monkeypatch)
    tame()
    first = bindings.nixlAgent
    tame()
    assert bindings.nixlAgent is first


@pytest.mark.parametrize(("is_cpu", "cores"), [(True, []), (False, [[0, 1]])], ids=["on a CPU", "on a GPU"])
def test_on_a_cpu_no_core_is_kept_for_transfers(
    is_cpu: bool, cores: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Platform:
        @classmethod
        def discover_numa_topology(cls) -> list[list[int]]:
            return [[0, 1]]

        def is_cpu(self) -> bool:
            return is_cpu

    platforms = ModuleType("vllm.platforms")
    platforms.__dict__["current_platform"] = Platform()
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    make_nixl(monkeypatch)
    tame()
    tame()
    assert Platform.discover_numa_topology() == cores


def test_without_nixl_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nixl", None)
    tame()
    assert sys.modules["nixl"] is None
