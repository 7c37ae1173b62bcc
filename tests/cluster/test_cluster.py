"""The test cluster is a Kubernetes: pods, probes, Services and DNS work across its nodes; it leaves nothing behind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from itertools import count

import pytest
from testbed.cluster import GPUS, Cluster
from testbed.layout import DNS_DOMAIN, IMAGE, Layout
from testbed.processes import CommandFailed, run, until
from testbed.programs import Programs

pytestmark = pytest.mark.requires("cluster")
NODES = ("node-1", "node-2", "node-3")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One of its own, beside the one that `make cluster` may have up."""
    made = Cluster(Layout("smoke"), Programs.of_user())
    made.down()
    before = state_of_this_machine()
    try:
        made.up()
        yield made
    finally:
        made.down()
    assert made.leftovers() == []
    assert state_of_this_machine() == before


def state_of_this_machine() -> dict[str, str]:
    return {
        "links": run("ip", "-o", "link", "show"),
        "rules": run("nft", "list", "ruleset"),
    }


def pod(name: str, *command: str, **spec: object) -> dict[str, object]:
    container: dict[str, object] = {
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": list(command),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if command == ("serve",):
        probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
        container |= {"ports": [{"containerPort": 8080}], "readinessProbe": probe}
    metadata = {"name": name, "labels": {"app": name.partition("-")[0]}}
    fixed = {"terminationGracePeriodSeconds": 2, "containers": [container], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": fixed}


def apply(cluster: Cluster, *objects: dict[str, object]) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def all_answer(cluster: Cluster, node: str, url: str, tries: Iterator[int]) -> bool:
    """Whether 60 calls from a pod on `node` reach every pod; that a pod is Ready, a node learns a moment later."""
    name = f"ask-{node}-{next(tries)}"
    apply(cluster, pod(name, "get", url, "60", nodeName=node, restartPolicy="OnFailure"))
    cluster.kubectl("wait", "pod", name, "--for=jsonpath={.status.phase}=Succeeded", "--timeout=30s")
    answers = dict(line.split() for line in cluster.kubectl("logs", name).splitlines())
    assert sum(int(times) for times in answers.values()) == 60
    return set(answers) == {f"web-{each}" for each in NODES}


def test_pods_on_three_nodes_answer_behind_one_service_by_its_dns_name(cluster: Cluster) -> None:
    ports = [{"port": 80, "targetPort": 8080}]
    service: dict[str, object] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": ports},
    }
    began = time.monotonic()
    apply(cluster, service, *(pod(f"web-{node}", "serve", nodeName=node) for node in NODES))
    cluster.kubectl("wait", "pod", "-l", "app=web", "--for=condition=Ready", "--timeout=30s")
    print(f"\nthree pods ready after {time.monotonic() - began:.1f} s")
    url = f"http://web.default.svc.{DNS_DOMAIN}/"
    for node in NODES:  # each asks often enough that its own node's pod answers too: that path goes through netfilter
        until(f"all pods answer {node}", partial(all_answer, cluster, node, url, count()), 30)
    here = cluster.in_cluster(str(cluster.programs.path("testbed")), "get", url, "30")
    assert len(here.splitlines()) == 3


def test_a_container_killed_from_outside_is_started_again(cluster: Cluster) -> None:
    apply(cluster, pod("victim-0", "pause"))
    cluster.kubectl("wait", "pod", "victim-0", "--for=condition=Ready", "--timeout=30s")
    assert cluster.kill_pod("default", "victim-0") == 1
    restarts = "{.status.containerStatuses[0].restartCount}"
    show = ("get", "pod", "victim-0", "-o", f"jsonpath={restarts}")
    until("a restart", lambda: cluster.kubectl(*show) == "1", 20)


def test_pods_that_ask_for_gpus_are_scheduled(cluster: Cluster) -> None:
    found = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    assert [node["status"]["allocatable"]["nvidia.com/gpu"] for node in found] == [str(GPUS)] * len(NODES)


@pytest.mark.parametrize(
    "deleted",
    [
        pytest.param(False, id="its kubelet started again"),
        pytest.param(True, id="its Node deleted, then its kubelet started again"),
    ],
)
def test_a_lost_node_is_noticed_and_comes_back(cluster: Cluster, deleted: bool) -> None:
    before, after = (f"{when}-{int(deleted)}" for when in ("before", "after"))
    apply(cluster, pod(before, "serve", nodeName="node-3"))
    cluster.kubectl("wait", "pod", before, "--for=condition=Ready", "--timeout=30s")
    began = time.monotonic()
    cluster.lose("node-3")
    cluster.kubectl("wait", "node", "node-3", "--for=condition=Ready=Unknown", "--timeout=60s")
    noticed = time.monotonic() - began
    if deleted:
        cluster.kubectl("delete", "node", "node-3")
    cluster.bring_back("node-3")
    apply(cluster, pod(after, "serve", nodeName="node-3"))
    cluster.kubectl("wait", "pod", after, "--for=condition=Ready", "--timeout=60s")
    print(f"\na lost node is noticed after {noticed:.1f} s, serves again after {time.monotonic() - began:.1f} s")
    assert noticed < 45


def test_the_audit_log_holds_who_wrote_what(cluster: Cluster) -> None:
    began = time.time()
    cluster.kubectl("create", "configmap", "written")
    with pytest.raises(CommandFailed, match="already exists"):
        cluster.kubectl("create", "configmap", "written")
    cluster.kubectl("get", "configmap", "written")

    def written() -> list[tuple[str, int]]:
        events = [event for event in cluster.writes(began) if event["objectRef"]["resource"] == "configmaps"]
        return [
            (event["verb"], event["responseStatus"]["code"]) for event in events if event["user"]["username"] == "admin"
        ]

    until("two audit events", lambda: written() == [("create", 201), ("create", 409)], 5)
