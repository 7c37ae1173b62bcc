"""What starts an engine: golden commands of both runtimes, and that the simulated one takes every flag it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from paceline_engine.launch import LaunchSpec, engine_command, model_path
from paceline_engine.sim.options import check, parser


def make_spec(**over: Any) -> LaunchSpec:
    facts: dict[str, Any] = {
        "runtime": "Simulated",
        "service": "chat",
        "namespace": "llm",
        "pool": "decode",
        "role": "decode",
        "revision": "7c9f",
        "model_uri": "hf://Qwen/Qwen3-8B",
        "served_name": "qwen3-8b",
        "max_context_tokens": 16384,
        "default_class": "interactive",
        "default_ttft_s": 0.4,
        "default_tpot_s": 0.04,
        "disaggregated": True,
        "table": "h100-sxm",
    }
    return LaunchSpec(**{**facts, **over})


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("simulated-pool", make_spec(ports=(0, 0, 0), announce="urls.json", time_scale=2.0, seed=7)),
        (
            "simulated-pod",
            make_spec(side_channel_host="$(POD_IP)", kv_hosts=("0.0.0.0/0",), drain_notice_s=10.0, host="0.0.0.0"),
        ),
        ("simulated-extra-args", make_spec(token_budget=512, extra_args=("--noise=0",))),
        ("vllm-disaggregated", make_spec(runtime="VLLM", tensor=2, side_channel_host="127.0.0.1")),
        (
            "vllm-aggregated",
            make_spec(
                runtime="VLLM",
                role="mixed",
                pool="mixed",
                disaggregated=False,
                model_uri="pvc://models/qwen3-8b",
                model_revision="main",
                token_budget=512,
                extra_args=("--enforce-eager",),
            ),
        ),
    ],
)
def test_commands_are_as_reviewed(name: str, spec: LaunchSpec, golden: Callable[[str, str], None]) -> None:
    command = engine_command(spec, python="python")
    env = [f"{key}={value}" for key, value in sorted(command.env.items())]
    golden(f"launch-{name}.txt", "\n".join([*env, *command.argv]) + "\n")


def test_the_simulated_runtime_accepts_its_command() -> None:
    spec = make_spec(ports=(0, 0), time_scale=2.0, kv_on_failure="fail", drain_timeout_s=12.5)
    options = check(parser().parse_args(engine_command(spec).argv[3:]))
    assert (options.served_name, options.role, options.pool, options.service) == (
        "qwen3-8b",
        "decode",
        "decode",
        "chat",
    )
    assert options.ports == (0, 0)
    assert options.objective.ttft_s == pytest.approx(0.4)
    assert options.objective.max_stall_s == pytest.approx(0.12)
    assert not options.kv_recompute
    assert options.drain_timeout_s == 12.5


def test_the_simulated_runtime_is_told_the_stall_limit_that_the_default_class_names() -> None:
    argv = engine_command(make_spec(default_max_stall_s=0.05)).argv[3:]
    assert check(parser().parse_args(argv)).objective.max_stall_s == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("hf://Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("pvc://models/opt-13b", "/models/models/opt-13b"),
        ("file:///srv/models/x", "/srv/models/x"),
        ("opt-13b", "opt-13b"),
    ],
)
def test_model_uris_become_what_vllm_takes(uri: str, path: str) -> None:
    assert model_path(uri) == path


def test_vllm_serves_one_replica_a_process() -> None:
    with pytest.raises(ValueError, match="one replica"):
        engine_command(make_spec(runtime="VLLM", ports=(1, 2)))
