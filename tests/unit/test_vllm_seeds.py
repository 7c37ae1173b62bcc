"""On a CPU, what a partial prefill draws does not come from its request's generator; elsewhere nothing is touched."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from paceline_engine.vllm.seeds import keep

DISCARDED, KEPT = "discarded", "kept"


def runner_on(monkeypatch: pytest.MonkeyPatch, *, is_cpu: bool) -> Any:
    """vLLM's module with a runner of two rows (the mask is longer); `sample_tokens` says whom it draws from."""

    class Runner:
        def __init__(self, fails: bool = False) -> None:
            self.discard_request_mask = SimpleNamespace(np=[True, False, True])
            self.input_batch = SimpleNamespace(generators={0: DISCARDED, 1: KEPT}, num_reqs=2)
            self.fails = fails

        def sample_tokens(self, grammar_output: object) -> list[str]:
            if self.fails:
                raise ValueError(grammar_output)
            return list(self.input_batch.generators.values())

    platforms, module = ModuleType("vllm.platforms"), ModuleType("vllm.v1.worker.cpu_model_runner")
    platforms.__dict__["current_platform"] = SimpleNamespace(is_cpu=lambda: is_cpu)
    module.__dict__["CPUModelRunner"] = Runner
    for each in (ModuleType("vllm"), ModuleType("vllm.v1"), ModuleType("vllm.v1.worker"), platforms, module):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    return Runner


def test_a_discarded_draw_is_not_of_the_requests_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_on(monkeypatch, is_cpu=True)
    keep()
    ours = runner()
    assert ours.sample_tokens(None) == [KEPT]
    assert ours.input_batch.generators == {0: DISCARDED, 1: KEPT}


def test_generators_are_back_where_sampling_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_on(monkeypatch, is_cpu=True)
    keep()
    ours = runner(fails=True)
    with pytest.raises(ValueError, match="bad grammar"):
        ours.sample_tokens("bad grammar")
    assert ours.input_batch.generators == {0: DISCARDED, 1: KEPT}


def test_a_second_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_on(monkeypatch, is_cpu=True)
    keep()
    first = runner.sample_tokens
    keep()
    assert runner.sample_tokens is first


def test_a_gpus_runner_steps_back_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_on(monkeypatch, is_cpu=False)
    before = runner.sample_tokens
    keep()
    assert runner.sample_tokens is before
