"""What `up` runs for a plan: processes, ports, GPUs, and the router's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from paceline_api.config import RouterConfig, StaticDiscovery
from paceline_api.v1alpha1 import LLMService
from paceline_cli.layout import Layout, lay_out
from paceline_cli.processes import FIRST_DELAY_S, LONGEST_DELAY_S, SETTLED_S, Ended, next_delay_s
from paceline_planner.plan import Plan, plan

PORTS = list(range(9000, 9100))
DEVICES = [f"gpu{i}" for i in range(16)]


def make_pool(role: str, replicas: int, tensor: int = 1) -> dict[str, Any]:
    parallelism = {"tensor": tensor}
    return {
        "name": role.lower(),
        "role": role,
        "replicas": replicas,
        "accelerator": "h100-sxm",
        "parallelism": parallelism,
    }


def make_layout(*pools: dict[str, Any], host: str = "127.0.0.1", time_scale: float = 1.0, **engine: Any) -> Layout:
    spec = {
        "model": {"uri": "hf://meta-llama/Llama-3.1-8B", "servedName": "llama", "maxContextTokens": 8192},
        "slo": {
            "defaultClass": "interactive",
            "classes": [
                {"name": "batch", "ttftMs": 30000, "tpotMs": 250},
                {"name": "interactive", "ttftMs": 400, "tpotMs": 40, "attainmentPercent": "99.5"},
            ],
        },
        "engine": {"runtime": "Simulated"} | engine,
        "pools": list(pools) or [make_pool("Prefill", 2), make_pool("Decode", 1)],
    }
    service = LLMService.model_validate({"metadata": {"name": "chat"}, "spec": spec})
    found = plan(service)
    assert isinstance(found, Plan), found
    return lay_out(service, found, host, 8000, PORTS, time_scale, DEVICES)


def flags(argv: tuple[str, ...]) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in argv if word.startswith("--"))


def test_a_simulated_pool_is_one_process_with_a_port_for_each_replica() -> None:
    prefill, decode = make_layout(time_scale=4).engines
    assert (prefill.command.name, decode.command.name) == ("prefill", "decode")
    assert prefill.urls == ("http://127.0.0.1:9000", "http://127.0.0.1:9001")
    assert decode.urls == ("http://127.0.0.1:9002",)
    told = flags(prefill.command.argv)
    assert {k: told[k] for k in ("role", "ports", "replicas", "time-scale", "default-class", "max-model-len")} == {
        "role": "prefill",
        "ports": "9000,9001",
        "replicas": "2",
        "time-scale": "4",
        "default-class": "interactive",
        "max-model-len": "8192",
    }
    assert flags(decode.command.argv)["seed"] != told["seed"]


def test_vllm_is_one_process_for_each_replica_with_ports_and_gpus_of_its_own() -> None:
    layout = make_layout(make_pool("Prefill", 2, tensor=2), make_pool("Decode", 1), runtime="VLLM")
    assert [e.command.name for e in layout.engines] == ["prefill-0", "prefill-1", "decode-0"]
    assert [e.command.env["CUDA_VISIBLE_DEVICES"] for e in layout.engines] == ["gpu0,gpu1", "gpu2,gpu3", "gpu4"]
    ports = [e.urls[0].rsplit(":", 1)[1] for e in layout.engines]
    handshakes = [e.command.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] for e in layout.engines]
    assert len({*ports, *handshakes}) == 6
    assert [flags(e.command.argv)["port"] for e in layout.engines] == ports


def test_the_router_s_configuration_is_whole(tmp_path: Path) -> None:
    layout = make_layout(kvTransfer={"timeoutMs": 700, "onFailure": "Fail"}, drainTimeoutSeconds=20)
    path = tmp_path / "router.json"
    path.write_text(layout.config.to_json())
    config = RouterConfig.read(path)
    assert (config.service, config.model, config.default_class) == ("chat", "llama", "interactive")
    assert config.gpus_by_role == {"prefill": 2, "decode": 1}
    assert [(c.name, c.ttft_s, c.target_ratio) for c in config.classes] == [
        ("batch", 30.0, 0.9),
        ("interactive", 0.4, 0.995),
    ]
    assert (config.kv_transfer.timeout_s, config.kv_transfer.on_failure) == (0.7, "fail")
    assert isinstance(config.discovery, StaticDiscovery)
    assert [r.name for r in config.discovery.replicas] == ["chat-prefill-0", "chat-prefill-1", "chat-decode-0"]
    assert [r.url for r in config.discovery.replicas] == [url for e in layout.engines for url in e.urls]
    assert layout.router(path).argv[-6:] == ("--host", "127.0.0.1", "--port", "8000", "--time-scale", "1")


def test_timeouts_are_wall_time() -> None:
    assert make_layout(drainTimeoutSeconds=20, time_scale=4).drain_timeout_s == 5


def test_an_empty_pool_has_no_process() -> None:
    layout = make_layout(make_pool("Prefill", 1), make_pool("Decode", 1), make_pool("Decode", 0) | {"name": "spare"})
    assert [e.command.name for e in layout.engines] == ["prefill", "decode"]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("box.lan", "http://box.lan:8000"),
    ],
)
def test_the_url_is_one_that_a_client_here_can_use(host: str, url: str) -> None:
    layout = make_layout(host=host)
    assert layout.url == url
    assert layout.curl.startswith(f"curl {url}/v1/chat/completions ")


def test_a_router_that_asks_for_keys_is_told_where_they_are_and_the_client_that_it_needs_one(tmp_path: Path) -> None:
    layout = make_layout(make_pool("Mixed", 1))
    assert layout.with_keys(None) == layout
    keyed = layout.with_keys(tmp_path)
    assert keyed.config.api_keys_dir == tmp_path
    assert "authorization: Bearer" in keyed.curl


@pytest.mark.parametrize(
    ("lives_s", "delays_s"),
    [
        pytest.param([0.1] * 7, [1, 2, 4, 8, 16, 30, 30], id="doubles up to the longest"),
        pytest.param([0.1, 0.1, SETTLED_S, 0.1], [1, 2, 1, 2], id="begins anew after a long life"),
    ],
)
def test_back_off(lives_s: list[float], delays_s: list[float]) -> None:
    delay_s, got = 0.0, []
    for lived_s in lives_s:
        delay_s = next_delay_s(delay_s, lived_s)
        got.append(delay_s)
    assert got == delays_s
    assert min(got) == FIRST_DELAY_S <= max(got) <= LONGEST_DELAY_S


@pytest.mark.parametrize(
    ("ended", "how", "last_line"),
    [
        (Ended("decode", -9, ()), "was ended by SIGKILL", "it printed nothing"),
        (Ended("decode", 1, ("a", "b", "")), "ended with code 1", "b"),
    ],
)
def test_an_end_is_told_in_words(ended: Ended, how: str, last_line: str) -> None:
    assert (ended.how, ended.last_line) == (how, last_line)
