"""Our scheduler on vLLM's real queues, KV pool and requests, with a fake machine and clock (support/vllm_scheduler.py).

One process in vLLM's environment runs all scenarios; these tests judge what it saw.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest
from vllm_engine import ROOT, found

pytestmark = pytest.mark.requires("vllm")
MODES = ("sync", "ahead")


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    environment = found()
    ran = subprocess.run(
        [environment.python, ROOT / "tests/support/vllm_scheduler.py", environment.models / "qwen2-5m"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT / 'engine'}:{ROOT / 'crds'}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("mode", MODES)
def test_without_objectives_every_step_is_vllms_own(seen: dict[str, Any], mode: str) -> None:
    ours, stock = seen[f"none {mode}"], seen[f"stock {mode}"]
    assert ours["chunks"] == stock["chunks"]
    assert ours["gaps_s"] == pytest.approx(stock["gaps_s"])
    assert max(stock["gaps_s"]) > 0.35, "a prompt of 4,000 tokens must stall vLLM's own, or nothing is shown"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limit_ms", [30, 60])
def test_no_gap_under_a_long_prompt_exceeds_its_limit(seen: dict[str, Any], limit_ms: int, mode: str) -> None:
    run = seen[f"{limit_ms} {mode}"]
    assert max(run["gaps_s"]) <= limit_ms / 1e3
    assert run["skipped"] == 0, "a stream that is alone in its class is in every step"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("limit_ms", "slower"), [(30, 1.5), (60, 1.2)])
def test_the_long_prompt_uses_what_the_limit_leaves(
    seen: dict[str, Any], limit_ms: int, slower: float, mode: str
) -> None:
    assert seen[f"{limit_ms} {mode}"]["ttft_s"] <= slower * seen[f"stock {mode}"]["ttft_s"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["none", "30", "60"])
def test_everyone_gets_every_token_and_no_block_stays_held(seen: dict[str, Any], name: str, mode: str) -> None:
    run, stock = seen[f"{name} {mode}"], seen[f"stock {mode}"]
    assert run["tokens"] == stock["tokens"]
    assert run["left_blocks"] == run["unplaced"] == 0


def test_a_batch_class_sits_out_steps_that_hold_a_prompt(seen: dict[str, Any]) -> None:
    run = seen["classes"]
    assert run["present"]["fast"] == run["mixed"] > 20
    assert run["present"]["slow"] < 0.5 * run["mixed"]
    assert run["pace_s"]["fast"] <= 0.030
    assert run["pace_s"]["slow"] <= 0.250
    assert run["left_blocks"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_two_batches_in_a_pipeline_share_the_decodes_and_the_slack(seen: dict[str, Any], mode: str) -> None:
    run = seen[f"pipeline {mode}"]
    assert run["decodes"] == 2, "half of four in each batch"
    assert run["pace_s"] <= 0.060, "they take turns"
    assert run["gap_s"] <= 0.060
    assert run["ttft_s"] <= 2 * seen["stock sync"]["ttft_s"]
    assert (run["tokens"], run["left_blocks"], run["unplaced"]) == ([400] * 4, 0, 0)


@pytest.mark.parametrize(("kind", "most"), [("on", 4), ("ahead", 4), ("off", 1)])
def test_guessed_tokens_are_computed_beside_a_prompt_and_break_no_limit(
    seen: dict[str, Any], kind: str, most: int
) -> None:
    run = seen[f"speculation {kind}"]
    assert run["most_of_one"] == most
    assert run["gap_s"] <= 0.060
    assert (run["tokens"], run["left_blocks"], run["unplaced"]) == ([400] * 4, 0, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(6))
def test_arrivals_aborts_and_preemptions_lose_nobody(seen: dict[str, Any], seed: int, mode: str) -> None:
    run = seen[f"chaos {seed} {mode}"]
    assert run["wrong"] == {}
    assert (run["left_blocks"], run["unplaced"], run["tracked"]) == (0, 0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_chaos_did_preempt_and_abort(seen: dict[str, Any], mode: str) -> None:
    runs = [seen[f"chaos {seed} {mode}"] for seed in range(6)]
    assert sum(run["preempted"] for run in runs) > 0
    assert sum(run["aborted"] for run in runs) > 10


def test_adapters_beyond_what_a_step_may_hold_wait_and_others_go_past(seen: dict[str, Any]) -> None:
    run = seen["adapters"]
    assert run["first_s"]["plain"] < run["slow_end_s"] < run["first_s"]["other"]
    assert (run["tokens"], run["left_blocks"]) == ([200] * 8 + [4] * 2, 0)


def test_kv_from_elsewhere_waits_for_no_prompt(seen: dict[str, Any]) -> None:
    run = seen["arrived"]
    assert run["steps"] <= 3
    assert not run["long_done"], "or the prompt was done before"
    assert (run["left_blocks"], run["unplaced"]) == (0, 0)


def test_while_nobody_may_join_one_plan_holds_for_some_steps_and_who_waits_joins_when_one_ends(
    seen: dict[str, Any],
) -> None:
    run = seen["kept out"]
    assert run["steps"] > 50
    assert run["plans"] <= run["steps"] / 3
    assert run["joined_after"] == 0, "steps"
    assert (run["left_blocks"], run["unplaced"]) == (0, 0)


def test_an_engine_that_may_not_cut_prompts_is_refused_at_its_start(seen: dict[str, Any]) -> None:
    assert "leave chunked prefill on" in seen["whole prompts"]


def test_of_those_that_end_in_an_error_kv_was_lost_by_who_waited_for_it(seen: dict[str, Any]) -> None:
    assert seen["errors"] == {"lost": 1, "ended": 2, "tracked": 0}


def test_a_plan_for_256_requests_costs_no_more_than_some_times_vllms_own(seen: dict[str, Any]) -> None:
    """Twice its CPU as a rule; what share of a step that is, `make bench-engine` says."""
    print("CPU milliseconds of a plan:", seen["overhead"])
    assert seen["overhead"]["ours"] < 4 * seen["overhead"]["stock"]
