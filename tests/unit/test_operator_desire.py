"""What the operator wants of a service, and what moves a pod: played through on a cluster that obeys at once."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from factories_api import make_class, make_manifest, make_model, make_pool
from operator_cluster import SETTINGS, Cluster, make_live
from paceline_api.v1alpha1 import LLMService
from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import DESIRED
from paceline_operator.revision import REPLAN

PAIR = [
    make_pool("prefill", "Prefill", minReplicas=2),
    make_pool("decode", "Decode"),
]


def settled(**spec: Any) -> Cluster:
    cluster = Cluster(make_live(**spec))
    cluster.settle()
    return cluster


def edit(cluster: Cluster, annotations: dict[str, str] | None = None, **spec: Any) -> None:
    manifest = make_manifest(cluster.service.name)
    manifest["spec"] = {**cluster.service.spec.model_dump(by_alias=True, mode="json", exclude_defaults=True), **spec}
    generation = cluster.service.metadata.generation + 1
    manifest["metadata"] |= {"namespace": "llm", "uid": cluster.owner.uid, "generation": generation}
    manifest["metadata"]["annotations"] = annotations or {}
    cluster.service = LLMService.model_validate(manifest)


def test_a_mixed_service_gets_its_objects_and_becomes_ready() -> None:
    cluster = settled()
    revision = cluster.desired().revisions["mixed"]
    assert {kind: cluster.names(kind) for kind in sorted({k for k, _ in cluster.objects})} == {
        "ConfigMap": ["chat-router"],
        "ControllerRevision": sorted([f"chat-mixed-{revision}", cluster.names("ControllerRevision")[1]]),
        "Deployment": [f"chat-mixed-{revision}", "chat-router"],
        "EnginePool": ["chat-mixed"],
        "NetworkPolicy": ["chat-engine"],
        "PodDisruptionBudget": ["chat-mixed", "chat-router"],
        "RoleBinding": ["chat-router"],
        "Service": ["chat", f"chat-mixed-{revision}"],
        "ServiceAccount": ["chat-router"],
    }
    assert cluster.condition("Ready") == ("True", "Serving", "requests are served")
    assert cluster.status["url"] == "http://chat.llm.svc:8000"
    assert cluster.status["pools"] == [
        {"name": "mixed", "role": "Mixed", "desired": 1, "ready": 1, "revision": revision}
    ]


def test_nothing_is_written_when_nothing_changes() -> None:
    cluster = settled(pools=PAIR)
    assert [cluster.step() for _ in range(3)] == [[], [], []]


def test_prefill_and_decode_share_a_revision_and_mixed_pools_do_not() -> None:
    pair = settled(pools=PAIR).desired().revisions
    assert pair["prefill"] == pair["decode"]
    mixed = settled(pools=[make_pool("a"), make_pool("b")]).desired().revisions
    assert mixed["a"] != mixed["b"]


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"slo": {"classes": [make_class(ttftMs=900, tpotMs=90)]}}, id="a class"),
        pytest.param({"pools": [make_pool(minReplicas=1, maxReplicas=9)]}, id="bounds"),
        pytest.param({"router": {"replicas": 2}}, id="the number of routers, as it was"),
        pytest.param({"maxGPUs": 64}, id="maxGPUs"),
        pytest.param({"autoscaling": {"mode": "Disabled"}}, id="autoscaling"),
    ],
)
def test_an_edit_of_this_moves_no_pod(spec: Json) -> None:
    cluster = settled()
    before = set(cluster.pods)
    edit(cluster, **spec)
    cluster.settle()
    assert set(cluster.pods) == before


def test_an_edited_class_reaches_the_routers_configuration_and_nothing_else() -> None:
    cluster = settled()
    edit(cluster, slo={"classes": [make_class(ttftMs=900)]})
    assert cluster.step() == [("ConfigMap", "chat-router")]
    assert '"ttft_s": 0.9' in cluster.objects["ConfigMap", "chat-router"]["data"]["router.json"]


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"engine": {"runtime": "Simulated", "kvTransfer": {"timeoutMs": 900}}}, id="another KV bound"),
        pytest.param({"model": make_model(servedName="other")}, id="another served name"),
        pytest.param({"router": {"policy": "RoundRobin"}}, id="another policy"),
        pytest.param({"router": {"apiKeys": {"secretName": "a"}}}, id="API keys"),
        pytest.param({"router": {"tls": {"secretName": "a"}}}, id="TLS"),
        pytest.param({"router": {"tracing": {"endpoint": "http://collector:4318"}}}, id="tracing"),
    ],
)
def test_what_routers_read_at_their_start_alone_starts_them_anew(spec: Json) -> None:
    cluster = settled()
    template = cluster.objects["Deployment", "chat-router"]["spec"]["template"]
    edit(cluster, **spec)
    cluster.settle()
    assert cluster.objects["Deployment", "chat-router"]["spec"]["template"] != template


@pytest.mark.parametrize("part", ["apiKeys", "tls"])
def test_another_secret_starts_routers_anew(part: str) -> None:
    cluster = settled(router={part: {"secretName": "a"}})
    before = cluster.objects["Deployment", "chat-router"]["spec"]["template"]
    edit(cluster, router={part: {"secretName": "b"}})
    cluster.settle()
    after = cluster.objects["Deployment", "chat-router"]["spec"]["template"]
    assert [v["secret"]["secretName"] for v in after["spec"]["volumes"] if "secret" in v] == ["b"]
    assert before["metadata"]["annotations"] != after["metadata"]["annotations"]


def test_a_service_with_a_certificate_is_reached_over_https() -> None:
    cluster = settled(router={"tls": {"secretName": "a"}})
    assert cluster.status["url"] == "https://chat.llm.svc:8000"
    [port] = cluster.objects["Service", "chat"]["spec"]["ports"]
    assert port["appProtocol"] == "https"


def test_routers_of_an_earlier_release_know_all_that_a_configuration_without_new_parts_has() -> None:
    config = json.loads(settled().objects["ConfigMap", "chat-router"]["data"]["router.json"])
    assert not {"tls", "api_keys_dir", "tracing"} & config.keys()


def test_the_priority_of_a_class_reaches_running_routers() -> None:
    cluster = settled()
    edit(cluster, slo={"classes": [make_class(priority=3)]})
    assert cluster.step() == [("ConfigMap", "chat-router")]
    config = json.loads(cluster.objects["ConfigMap", "chat-router"]["data"]["router.json"])
    assert [c["priority"] for c in config["classes"]] == [3]


def test_what_routers_are_told_of_keys_certificate_and_traces() -> None:
    tracing = {"endpoint": "http://collector:4318", "samplePercent": "0.5"}
    router = {"apiKeys": {"secretName": "a"}, "tls": {"secretName": "b"}, "tracing": tracing}
    cluster = settled(router=router)
    config = json.loads(cluster.objects["ConfigMap", "chat-router"]["data"]["router.json"])
    [container] = cluster.objects["Deployment", "chat-router"]["spec"]["template"]["spec"]["containers"]
    folders = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {f"--api-keys-dir={folders['api-keys']}", f"--tls-dir={folders['tls']}"} <= set(container["command"])
    assert not {"tls", "api_keys_dir"} & config.keys(), "routers without these mounts read it too"
    assert config["tracing"] == {"endpoint": "http://collector:4318", "sample_ratio": 0.005}


def test_more_routers_start_none_anew() -> None:
    cluster = settled()
    template = cluster.objects["Deployment", "chat-router"]["spec"]["template"]
    edit(cluster, router={"replicas": 3})
    assert cluster.step() == [("Deployment", "chat-router")]
    assert cluster.objects["Deployment", "chat-router"]["spec"]["template"] == template


def test_an_upgrade_of_paceline_moves_no_pod() -> None:
    cluster = settled(pools=PAIR)
    before = set(cluster.pods)
    cluster.settings = replace(SETTINGS, control_image="localhost/paceline:next", engine_image="localhost/e:next")
    assert cluster.settle() == 0
    assert set(cluster.pods) == before


def test_pods_of_a_release_without_scrape_annotations_stay_and_new_revisions_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for builder in ("engine_pod", "router_pod"):
        monkeypatch.setattr(f"paceline_operator.manifests.{builder}.SCRAPED", {})
    cluster = settled(pools=PAIR)
    monkeypatch.undo()
    before = set(cluster.pods)
    assert cluster.settle() == 0
    assert set(cluster.pods) == before
    edit(cluster, annotations={REPLAN: "1"}, engine={"runtime": "Simulated", "extraArgs": ["--noise=0"]})
    cluster.settle()
    templates = [d["spec"]["template"] for (kind, _), d in cluster.objects.items() if kind == "Deployment"]
    assert len(templates) == 3
    assert all(t["metadata"]["annotations"]["prometheus.io/scrape"] == "true" for t in templates)


def test_a_replan_that_is_asked_for_takes_the_images_of_the_new_release() -> None:
    cluster = settled()
    cluster.settings = replace(SETTINGS, control_image="localhost/paceline:next")
    edit(cluster, annotations={REPLAN: "1"})
    cluster.settle()
    deployments = [cluster.objects["Deployment", name] for name in cluster.names("Deployment")]
    images = {d["spec"]["template"]["spec"]["containers"][0]["image"] for d in deployments}
    assert images == {"localhost/paceline:next"}
    assert len(deployments) == 2


def test_an_engine_change_is_rolled_out_pair_by_pair_without_a_gap() -> None:
    cluster = settled(pools=PAIR)
    before = set(cluster.pods)
    old = cluster.desired().revisions["decode"]
    edit(cluster, engine={"runtime": "Simulated", "extraArgs": ["--noise=0"]})
    new = cluster.desired().revisions["decode"]
    assert new != old
    reasons = []
    for _ in range(30):
        cluster.step()
        reasons.append(cluster.condition("PoolsReady")[:2])
        assert cluster.ready(pool="prefill") >= 2
        assert cluster.ready(pool="decode") >= 1
        assert any(cluster.ready(pool="prefill", revision=r) and cluster.ready(pool="decode", revision=r)
                   for r in (old, new)), "no whole pair"  # fmt: skip
        cluster.turn_ready(cluster.pods)
    assert ("True", "RollingOut") in reasons
    assert reasons[-1] == ("True", "ReplicasReady")
    engines = {name for name in cluster.pods if "router" not in name}
    assert not engines & before
    assert {name for name in cluster.pods if "router" in name} <= before, "routers stay"
    assert [name for name in cluster.names("Service") if old in name] == [], "the old revision is cleared away"


@pytest.mark.parametrize("broken", ["prefill", "decode"])
def test_what_grows_while_one_half_of_a_new_revision_cannot_start_is_the_old_one(broken: str) -> None:
    cluster = settled(pools=[make_pool(role.lower(), role, maxReplicas=8) for role in ("Prefill", "Decode")])
    for pool in ("prefill", "decode"):
        cluster.scale(pool, 3)
    cluster.settle()
    old = cluster.desired().revisions["decode"]
    edit(cluster, engine={"runtime": "Simulated", "extraArgs": ["--noise=0"]})

    def run(steps: int) -> None:
        for _ in range(steps):
            cluster.step()
            cluster.turn_ready(name for name in cluster.pods if broken not in name or old in name)

    run(6)
    for pool in ("prefill", "decode"):
        cluster.scale(pool, 6)
    run(10)
    assert cluster.ready(pool="prefill", revision=old) == cluster.ready(pool="decode", revision=old) == 6


def test_a_pod_that_was_evicted_holds_up_no_rollout() -> None:
    cluster = settled()
    old = cluster.desired().revisions["mixed"]
    evicted = copy.deepcopy(next(pod for name, pod in cluster.pods.items() if old in name))
    evicted["metadata"]["name"] = "evicted"
    evicted["status"] = {"phase": "Failed", "reason": "Evicted"}
    edit(cluster, engine={"runtime": "Simulated", "extraArgs": ["--noise=0"]})
    for _ in range(10):
        cluster.pods["evicted"] = evicted
        cluster.step()
        cluster.turn_ready(cluster.pods)
    assert not [name for kind in ("Deployment", "Service") for name in cluster.names(kind) if old in name]
    assert cluster.condition("PoolsReady")[1] == "ReplicasReady"


def test_an_old_revision_keeps_its_service_until_its_last_pod_is_gone() -> None:
    cluster = settled()
    old = cluster.desired().revisions["mixed"]
    draining = next(pod for name, pod in cluster.pods.items() if old in name)
    edit(cluster, engine={"runtime": "Simulated", "extraArgs": ["--noise=0"]})
    cluster.settle()
    assert f"chat-mixed-{old}" not in cluster.names("Service")
    cluster = settled()
    edit(cluster, engine={"runtime": "Simulated", "extraArgs": ["--noise=0"]})
    for _ in range(10):
        cluster.step()
        cluster.turn_ready(cluster.pods)
        cluster.pods["draining"] = {**draining, "metadata": {**draining["metadata"], "name": "draining"}}
    desired = cluster.desired()
    assert ("Service", f"chat-mixed-{old}") not in desired.unwanted


@pytest.mark.parametrize("mode", ["Disabled", "Recommend", "Enabled"])
@pytest.mark.parametrize(
    ("pool", "asked", "size"),
    [
        pytest.param({"minReplicas": 2, "maxReplicas": 4}, None, 2, id="a new pool has the plan's size"),
        pytest.param({"minReplicas": 2, "maxReplicas": 4}, 3, 3, id="within the bounds: what scale says"),
        pytest.param({"minReplicas": 2, "maxReplicas": 4}, 9, 4, id="above them: the upper one"),
        pytest.param({"minReplicas": 2, "maxReplicas": 4}, 0, 2, id="below them: the lower one"),
        pytest.param({"minReplicas": 0, "maxReplicas": 4}, 0, 0, id="0 where the bounds allow it"),
        pytest.param({"replicas": 3}, None, 3, id="a fixed size"),
        pytest.param({"replicas": 3}, 1, 3, id="a fixed size, whatever scale says"),
    ],
)
def test_the_size_of_a_pool_is(pool: Json, asked: int | None, size: int, mode: str) -> None:
    cluster = settled(pools=[make_pool(**pool)], autoscaling={"mode": mode})
    if asked is not None:
        cluster.scale("mixed", asked)
    assert cluster.desired().sizes == {"mixed": size}


def test_the_mode_of_autoscaling_changes_no_size() -> None:
    cluster = settled(pools=[make_pool(maxReplicas=8)])
    cluster.scale("mixed", 5)
    cluster.settle()
    before = set(cluster.pods)
    for mode in ("Disabled", "Enabled", "Recommend", "Disabled"):
        edit(cluster, autoscaling={"mode": mode})
        assert cluster.desired().sizes == {"mixed": 5}
        cluster.settle()
        assert (cluster.ready(pool="mixed"), set(cluster.pods)) == (5, before)


def test_a_size_that_was_fixed_is_where_scaling_goes_on_from() -> None:
    cluster = settled(pools=[make_pool(replicas=3)])
    edit(cluster, pools=[make_pool(minReplicas=1, maxReplicas=8)])
    assert cluster.desired().sizes == {"mixed": 3}


def test_a_new_revision_at_five_never_has_fewer_than_five_ready_and_follows_scale_meanwhile() -> None:
    cluster = settled(pools=[make_pool(maxReplicas=8)])
    cluster.scale("mixed", 5)
    cluster.settle()
    edit(cluster, engine={"runtime": "Simulated", "extraArgs": ["--noise=0"]})
    least, sizes = [], {6: 7, 14: 4}
    size = 5
    for i in range(40):
        if i in sizes:
            size = sizes[i]
            cluster.scale("mixed", size)
        cluster.step()
        least.append(min(size, 5) - cluster.ready(pool="mixed"))
        starting = sorted(name for name, pod in cluster.pods.items() if not pod["status"].get("ready"))
        cluster.turn_ready(starting[:1])
    assert max(least) <= 0
    assert (
        cluster.ready(pool="mixed") == cluster.ready(pool="mixed", revision=cluster.desired().revisions["mixed"]) == 4
    )
    assert cluster.step() == []


def test_a_pool_scaled_to_zero_is_ready_on_purpose() -> None:
    cluster = settled(pools=[make_pool(minReplicas=0, maxReplicas=4)])
    cluster.scale("mixed", 0)
    cluster.settle()
    assert cluster.condition("PoolsReady")[:2] == ("True", "ScaledToZero")


def test_a_pool_that_leaves_goes_once_the_others_are_whole() -> None:
    cluster = settled(pools=[make_pool("a"), make_pool("b")])
    edit(cluster, pools=[make_pool("a", accelerator="h100-sxm")])
    cluster.step()
    assert cluster.ready(pool="b") == 1
    assert ("EnginePool", "chat-b") in cluster.objects
    cluster.settle()
    assert cluster.ready(pool="b") == 0
    assert cluster.names("EnginePool") == ["chat-a"]


def test_a_topology_change_serves_from_the_old_pools_until_the_new_ones_are_whole() -> None:
    pools = [make_pool("mixed"), *PAIR]
    cluster = settled(pools=pools, topology="Aggregated")
    edit(cluster, topology="Disaggregated", pools=pools)
    for _ in range(20):
        cluster.step()
        pair = cluster.ready(pool="prefill") and cluster.ready(pool="decode")
        assert cluster.ready(pool="mixed") or pair
        cluster.turn_ready(cluster.pods)
    assert cluster.names("EnginePool") == ["chat-decode", "chat-prefill"]


@pytest.mark.parametrize(
    ("spec", "reason", "says"),
    [
        pytest.param(
            {"pools": [make_pool(accelerator="z9000")]}, "UnknownAccelerator", "a100-sxm-80gb", id="no such accelerator"
        ),
        pytest.param(
            {"pools": [make_pool(parallelism={"tensor": 16})]}, "ParallelismTooLarge", "lower them", id="above a node"
        ),
        pytest.param(
            {"slo": {"classes": [make_class(ttftMs=1)]}}, "ObjectiveUnattainable", "raise it", id="below a lone prefill"
        ),
        pytest.param({"model": make_model(uri="hf://no/such-model")}, "UnknownModel", "there are", id="no table"),
    ],
)
def test_an_infeasible_service_has_a_reason_and_no_children(spec: Json, reason: str, says: str) -> None:
    cluster = Cluster(make_live(**spec))
    assert cluster.step() == []
    status, why, message = cluster.condition("PlanFeasible")
    assert (status, why) == ("False", reason)
    assert says in message
    assert cluster.condition("Ready")[:2] == ("False", "NotServing")
    assert "url" not in cluster.status


def test_a_class_that_nothing_can_meet_leaves_what_runs_alone() -> None:
    cluster = settled()
    before = set(cluster.pods)
    edit(cluster, slo={"classes": [make_class(ttftMs=1)]})
    cluster.settle()
    assert cluster.condition("PlanFeasible")[:2] == ("False", "ObjectiveUnattainable")
    assert set(cluster.pods) == before


def test_an_accelerator_that_leaves_the_catalogue_leaves_what_runs_alone() -> None:
    cluster = settled()
    before = set(cluster.pods)
    cluster.settings = replace(SETTINGS, accelerators={})
    assert cluster.step() == []
    assert set(cluster.pods) == before


@pytest.mark.parametrize("kind", ["Deployment", "Service", "ConfigMap", "EnginePool", "ControllerRevision"])
def test_what_is_deleted_comes_back_and_moves_no_other_pod(kind: str) -> None:
    cluster = settled()
    kept = copy.deepcopy(cluster.objects)
    for name in cluster.names(kind):
        del cluster.objects[kind, name]
    cluster.step()
    cluster.settle()
    assert cluster.objects.keys() == kept.keys()
    for key, live in cluster.objects.items():
        assert live["metadata"]["annotations"][DESIRED] == kept[key]["metadata"]["annotations"][DESIRED]


def test_what_is_edited_is_put_right() -> None:
    cluster = settled()
    name = cluster.names("Deployment")[0]
    cluster.objects["Deployment", name]["spec"]["template"]["spec"]["containers"][0]["image"] = "evil"
    assert ("Deployment", name) in cluster.step()
    assert cluster.step() == []


def test_an_object_of_somebody_else_is_not_ours_whatever_its_labels() -> None:
    cluster = settled()
    cluster.objects["Service", "chat"]["metadata"]["ownerReferences"] = []
    assert cluster.seen().get("Service", "chat") is None
