"""The router's configuration file: written and read back the same, or refused with one line per problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factories_api import make_class, make_service
from paceline_api.config import ClassConfig, ConfigError, KubernetesDiscovery, RouterConfig, TracingConfig

Json = dict[str, Any]


def replica(name: str, role: str = "mixed", gpus: int = 1, port: int = 1) -> Json:
    return {"name": name, "url": f"http://127.0.0.1:{port}", "role": role, "pool": role, "gpus": gpus}


def make_config(**over: Any) -> Json:
    return {
        "service": "chat",
        "model": "llama",
        "max_context_tokens": 16384,
        "default_class": "interactive",
        "classes": [{"name": "interactive", "ttft_s": 0.4, "tpot_s": 0.04}],
        "discovery": {"kind": "static", "replicas": [replica("mixed-0")]},
    } | over


def read(tmp_path: Path, config: Json | str) -> RouterConfig:
    path = tmp_path / "router.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return RouterConfig.read(path)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    config = RouterConfig.model_validate(make_config())
    assert read(tmp_path, config.to_json()) == config


def test_the_classes_of_a_service_survive() -> None:
    classes = [make_class(maxStallMs=200, ttftMsPer1kPromptTokens=50, attainmentPercent="99.9"), make_class("batch")]
    wanted = make_service(slo={"classes": classes, "defaultClass": "batch"}).slo_classes()
    config = RouterConfig.model_validate(make_config(classes=[ClassConfig.of(c) for c in wanted.values()]))
    assert config.slo_classes() == wanted


def test_gpus_by_role() -> None:
    replicas = [replica("p0", "prefill", 2, 1), replica("p1", "prefill", 2, 2), replica("d0", "decode", 4, 3)]
    config = RouterConfig.model_validate(make_config(discovery={"kind": "static", "replicas": replicas}))
    assert config.gpus_by_role == {"prefill": 4, "decode": 4}


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("https://collector:4318/", "https://collector:4318/v1/traces"),
        ("http://[fd00::1]:4318/tenant/v1/traces", "http://[fd00::1]:4318/tenant/v1/traces"),
    ],
)
def test_traces_go_to_the_collectors_own_path_unless_another_is_named(endpoint: str, url: str) -> None:
    assert TracingConfig(endpoint=endpoint).traces_url == url


def test_kubernetes_discovery_knows_no_gpus() -> None:
    discovery = {"kind": "kubernetes", "namespace": "llm", "service": "chat"}
    config = RouterConfig.model_validate(make_config(discovery=discovery))
    assert isinstance(config.discovery, KubernetesDiscovery)
    assert config.gpus_by_role == {}


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        pytest.param(
            make_config(default_class="bulk"),
            ["file: default_class 'bulk' is none of the classes (interactive)"],
            id="an unknown default class",
        ),
        pytest.param(
            make_config(classes=make_config()["classes"] * 2),
            ["file: classes share a name (interactive, interactive); give each its own"],
            id="a class twice",
        ),
        pytest.param(
            make_config(discovery={"kind": "static", "replicas": [replica("a"), replica("a", port=2)]}),
            ["discovery.static: replicas share the name a; give each its own"],
            id="a replica twice",
        ),
        pytest.param(
            make_config(discovery={"kind": "static", "replicas": [replica("a"), replica("b")]}),
            ["discovery.static: replicas share the url http://127.0.0.1:1; give each its own"],
            id="a port twice",
        ),
        pytest.param(
            make_config(discovery={"kind": "static", "replicas": [replica("a") | {"url": "https://x/v1"}]}),
            ["discovery.static.replicas.0.url: must be http://HOST:PORT without a path"],
            id="a url with a path",
        ),
        pytest.param(
            make_config(max_context_tokens=0, policy="best"),
            [
                "max_context_tokens: Input should be greater than or equal to 1",
                (
                    "policy: Input should be 'least-misses', 'least-predicted-ttft', 'lmetric', 'prefix-affinity', "
                    "'least-requests', 'power-of-two', 'round-robin' or 'random'"
                ),
            ],
            id="two problems are two lines",
        ),
        pytest.param(
            make_config(tracing={"endpoint": "collector:4318", "sample_ratio": 2}),
            [
                "tracing.endpoint: must be http://HOST:PORT or https://HOST:PORT, and may have a path",
                "tracing.sample_ratio: Input should be less than or equal to 1",
            ],
            id="traces to nowhere",
        ),
        pytest.param(make_config(zzz=1), ["zzz: Extra inputs are not permitted"], id="an unknown field"),
        pytest.param(
            "{", ["file: Invalid JSON: EOF while parsing an object at line 1 column 1"], id="a file cut short"
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, config: Json | str, lines: list[str]) -> None:
    with pytest.raises(ConfigError) as e:
        read(tmp_path, config)
    assert str(e.value).splitlines() == [f"{tmp_path / 'router.json'}: {line}" for line in lines]


@pytest.mark.parametrize("port", ["0", "99999", "x"])
def test_a_port_that_is_none(tmp_path: Path, port: str) -> None:
    bad = replica("a") | {"url": f"http://127.0.0.1:{port}"}
    with pytest.raises(ConfigError, match=r"discovery\.static\.replicas\.0\.url"):
        read(tmp_path, make_config(discovery={"kind": "static", "replicas": [bad]}))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        RouterConfig.read(tmp_path / "none.json")
