"""The engine's pod template of both runtimes, as reviewed, and what a podTemplate of the pool changes in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from factories_api import make_model, make_pool
from operator_cluster import Cluster, make_live
from paceline_operator.kinds import Json
from paceline_operator.manifests.merge import merge_template
from paceline_operator.manifests.meta import SCRAPED

VLLM = {"runtime": "VLLM", "startupTimeoutSeconds": 600}
H100 = "h100-sxm"
SECRETS = {"apiKeys": {"secretName": "clients"}, "tls": {"secretName": "chat-tls"}}
PAIR = [
    make_pool("prefill", "Prefill", accelerator=H100),
    make_pool("decode", "Decode", accelerator=H100),
]


def templates(**spec: Any) -> dict[str, Json]:
    """Pod templates by pool, and the router's."""
    cluster = Cluster(make_live(**spec))
    deployments = [m for m in cluster.desired().manifests if m["kind"] == "Deployment"]
    assert deployments, cluster.desired().verdict
    return {d["spec"]["template"]["metadata"]["labels"].get("paceline.dev/pool", "router"): d for d in deployments}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "simulated": ("mixed", {}),
    "simulated-disaggregated": (
        "decode",
        {"pools": [make_pool("prefill", "Prefill"), make_pool("decode", "Decode")]},
    ),
    "vllm-tp1": (
        "mixed",
        {"engine": VLLM, "pools": [make_pool(accelerator=H100, parallelism={"tensor": 1})]},
    ),
    "vllm-tp4": (
        "mixed",
        {"engine": VLLM, "pools": [make_pool(accelerator=H100, parallelism={"tensor": 4})]},
    ),
    "vllm-disaggregated": ("prefill", {"engine": VLLM, "pools": PAIR}),
    "vllm-cache": ("mixed", {"engine": VLLM, "model": make_model(cache={"claimName": "models"})}),
    "vllm-token": ("mixed", {"engine": VLLM, "model": make_model(tokenSecret={"name": "hf", "key": "HF_TOKEN"})}),
    "vllm-claim": ("mixed", {"engine": VLLM, "model": make_model(uri="pvc://weights/llama-3.1-8b")}),
    "router": ("router", {}),
    "router-secrets": ("router", {"router": SECRETS}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_template_is_as_reviewed(name: str, golden: Callable[[str, str], None]) -> None:
    pool, spec = CASES[name]
    template = templates(**spec)[pool]["spec"]["template"]
    text = yaml.safe_dump(template, sort_keys=False, width=200)
    golden(f"operator-{name}.yaml", re.sub(r"\b[0-9a-f]{10}\b", "REVISION", text))


@pytest.mark.parametrize("name", CASES)
def test_every_pod_passes_the_restricted_standard_and_can_drain(name: str) -> None:
    pool, spec = CASES[name]
    deployment = templates(**spec)[pool]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["enableServiceLinks"] is False
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["lifecycle"]["preStop"]
    assert pod["terminationGracePeriodSeconds"] > 300, "longer than drainTimeoutSeconds"


@pytest.mark.parametrize("name", CASES)
def test_a_prometheus_that_goes_by_annotations_finds_every_pod(name: str) -> None:
    pool, spec = CASES[name]
    template = templates(**spec)[pool]["spec"]["template"]
    said = template["metadata"]["annotations"]
    ports = [port["containerPort"] for c in template["spec"]["containers"] for port in c["ports"]]
    assert (said["prometheus.io/scrape"], said["prometheus.io/path"]) == ("true", "/metrics")
    assert [str(port) for port in ports] == [said["prometheus.io/port"]]


def test_a_pool_may_decline_to_be_scraped() -> None:
    over = {"metadata": {"annotations": {"prometheus.io/scrape": "false"}}}
    template = templates(pools=[make_pool(podTemplate=over)])["mixed"]["spec"]["template"]
    assert template["metadata"]["annotations"]["prometheus.io/scrape"] == "false"


def test_the_deadline_of_progress_lies_above_the_startup_timeout() -> None:
    deployment = templates(engine=VLLM)["mixed"]["spec"]
    probe = deployment["template"]["spec"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 600
    assert deployment["progressDeadlineSeconds"] > 600


def test_a_pod_template_is_merged_and_keeps_what_services_select_by() -> None:
    over = {
        "metadata": {"labels": {"team": "search", "paceline.dev/pool": "other"}, "annotations": {"a": "b"}},
        "spec": {
            "priorityClassName": "high",
            "nodeSelector": {"zone": "a"},
            "containers": [
                {"name": "engine", "resources": {"limits": {"memory": "1Gi"}}, "env": [{"name": "X", "value": "1"}]},
                {"name": "sidecar", "image": "s"},
            ],
        },
    }
    plain = templates()["mixed"]["spec"]["template"]
    merged = templates(pools=[make_pool(podTemplate=over)])["mixed"]["spec"]["template"]
    assert merged["metadata"]["labels"]["paceline.dev/pool"] == "mixed"
    assert merged["metadata"]["labels"]["team"] == "search"
    assert merged["metadata"]["annotations"] == {**SCRAPED, "a": "b"}
    engine, sidecar = merged["spec"]["containers"]
    assert sidecar == {"name": "sidecar", "image": "s"}
    assert engine["resources"]["limits"] == {"memory": "1Gi"}
    assert engine["resources"]["requests"] == plain["spec"]["containers"][0]["resources"]["requests"]
    assert engine["env"] == [*plain["spec"]["containers"][0]["env"], {"name": "X", "value": "1"}]


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        pytest.param({"a": 1}, {"a": None}, {}, id="null removes a field"),
        pytest.param({"args": ["a", "b"]}, {"args": ["c"]}, {"args": ["c"]}, id="a plain list is replaced"),
        pytest.param(
            {"volumeMounts": [{"name": "v", "mountPath": "/a"}]},
            {"volumeMounts": [{"name": "v", "mountPath": "/b"}]},
            {"volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/b"}]},
            id="one volume may be mounted twice",
        ),
        pytest.param(
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            {"env": [{"name": "B", "value": "3"}]},
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}]},
            id="an entry is merged by its key, in place",
        ),
    ],
)
def test_merges(base: Json, over: Json, merged: Json) -> None:
    before = repr((base, over))
    assert merge_template(base, over) == merged
    assert repr((base, over)) == before
