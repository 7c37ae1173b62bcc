"""Conditions in words that say what to do: what pods lack, names that are taken, and times that do not flicker."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from factories_api import make_pool
from operator_cluster import NOW, Cluster, make_live
from paceline_operator.kinds import Json
from paceline_operator.status import Refused, Taken, own_part, pool_status, service_status
from paceline_operator.troubles import find_trouble, lacks_secret


def make_pod(name: str = "chat-mixed-0", phase: str = "Pending", **status: Any) -> Json:
    return {"metadata": {"name": name}, "status": {"phase": phase, **status}}


def make_waiting(reason: str, message: str = "", **container: Any) -> Json:
    waiting = {"reason": reason, "message": message}
    return make_pod(containerStatuses=[{"name": "engine", "state": {"waiting": waiting}, **container}])


CRASHED = {"lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}


@pytest.mark.parametrize(
    ("pod", "text", "failing"),
    [
        pytest.param(
            make_waiting("CreateContainerConfigError", 'secret "hf" not found'),
            'pod chat-mixed-0: CreateContainerConfigError: secret "hf" not found',
            True,
            id="a missing Secret",
        ),
        pytest.param(
            make_waiting("ImagePullBackOff", 'Back-off pulling image "x"'),
            'pod chat-mixed-0: ImagePullBackOff: Back-off pulling image "x"',
            True,
            id="an image that cannot be pulled",
        ),
        pytest.param(
            make_waiting("CrashLoopBackOff", "back-off 40s restarting", **CRASHED),
            "pod chat-mixed-0: CrashLoopBackOff: engine exited with 1 (Error); see kubectl logs --previous",
            True,
            id="a crash, without the seconds that count down",
        ),
        pytest.param(
            make_pod(
                conditions=[
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
                ]
            ),
            "pod chat-mixed-0: Unschedulable: 0/3 nodes",
            False,
            id="no node, which may come",
        ),
        pytest.param(
            make_pod(phase="Failed", reason="Evicted", message="low on memory"),
            "pod chat-mixed-0: Evicted: low on memory",
            True,
            id="an eviction",
        ),
    ],
)
def test_a_pod_in_trouble_says_why(pod: Json, text: str, failing: bool) -> None:
    trouble = find_trouble([make_pod("a"), pod])
    assert trouble is not None
    assert (str(trouble), trouble.failing) == (text, failing)


def test_a_pod_that_starts_or_goes_is_no_trouble() -> None:
    going = make_waiting("CrashLoopBackOff")
    going["metadata"]["deletionTimestamp"] = NOW
    assert find_trouble([make_waiting("ContainerCreating"), make_pod(phase="Running"), going]) is None


def test_the_token_is_missed_by_its_name_only() -> None:
    pod = make_waiting("CreateContainerConfigError", 'secret "chat-token" not found')
    assert lacks_secret([pod], "chat-token")
    assert not lacks_secret([pod], "hf")


def test_a_failing_pod_makes_the_condition_and_names_the_pool() -> None:
    cluster = Cluster(make_live())
    cluster.step()
    name = next(n for n in cluster.pods if "mixed" in n)
    cluster.pods[name]["status"] = make_waiting("CreateContainerConfigError", 'secret "hf" not found')["status"]
    cluster.step()
    status, reason, message = cluster.condition("PoolsReady")
    assert (status, reason) == ("False", "ReplicasFailing")
    assert message == f'ready: mixed 0 of 1; pod {name}: CreateContainerConfigError: secret "hf" not found'
    assert 'secret "hf" not found' in cluster.condition("Ready")[2]


def test_a_start_is_no_failure() -> None:
    cluster = Cluster(make_live())
    cluster.step()
    assert cluster.condition("PoolsReady") == ("False", "ReplicasStarting", "ready: mixed 0 of 1")
    assert cluster.condition("RouterReady") == ("False", "ReplicasStarting", "ready: 0 of 2")


@pytest.mark.parametrize(
    ("taken", "condition"),
    [(Taken("Service", "chat"), "RouterReady"), (Taken("EnginePool", "chat-mixed"), "PoolsReady")],
)
def test_a_name_that_is_taken_is_said_where_it_hurts(taken: Taken, condition: str) -> None:
    cluster = Cluster(make_live())
    cluster.settle()
    desired = cluster.desired()
    status = service_status(cluster.owner, cluster.service, desired, cluster.seen(), [taken], cluster.status, NOW)
    found = next(c for c in status["conditions"] if c["type"] == condition)
    assert found["status"] == "False"
    assert str(taken) in found["message"]


def test_a_refused_object_is_said_and_what_serves_goes_on() -> None:
    cluster = Cluster(make_live())
    cluster.settle()
    refused = Refused("Deployment", "chat-mixed-b", "unknown field spec.template.spec.nodeSelectr")
    status = service_status(
        cluster.owner, cluster.service, cluster.desired(), cluster.seen(), [refused], cluster.status, NOW
    )
    assert len(str(replace(refused, why="a long\n story " * 1000))) < 600
    found = {c["type"]: c for c in status["conditions"]}
    assert (found["PoolsReady"]["status"], found["PoolsReady"]["reason"]) == ("True", "ApplyFailed")
    assert found["PoolsReady"]["message"].startswith(f"{refused}; ready: mixed 1 of 1")
    assert found["Ready"]["status"] == "True"


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    cluster = Cluster(make_live())
    cluster.step()
    before = cluster.status
    later = "2026-01-01T01:00:00Z"
    desired, seen = cluster.desired(), cluster.seen()
    same = service_status(cluster.owner, cluster.service, desired, seen, (), before, later)
    assert own_part(same) == own_part(before)
    cluster.turn_ready(cluster.pods)
    ready = service_status(cluster.owner, cluster.service, desired, cluster.seen(), (), before, later)
    times = {c["type"]: c["lastTransitionTime"] for c in ready["conditions"]}
    assert times == {"Ready": later, "PoolsReady": later, "RouterReady": later, "PlanFeasible": NOW}


def test_the_part_of_the_autoscaler_is_no_difference() -> None:
    cluster = Cluster(make_live())
    cluster.step()
    other = {"type": "SLOMet", "status": "True", "reason": "ObjectivesMet"}
    live = {**cluster.status, "classes": [{"name": "interactive"}]}
    live["conditions"] = [other, *cluster.status["conditions"]]
    live["plan"] = {**cluster.status["plan"], "predicted": {}}
    assert own_part(live) == own_part(cluster.status)


def read_scale(cluster: Cluster, pool: str) -> tuple[int, int, set[str]]:
    """What /scale gives an HPA: status.replicas, those of them that are ready, and the pods that the selector finds."""
    live = cluster.objects["EnginePool", f"chat-{pool}"]
    status = pool_status(cluster.owner, cluster.desired(), cluster.seen(), live)
    selector = dict(pair.split("=") for pair in status["selector"].split(","))
    found = {pod["metadata"]["name"] for pod in cluster.seen().pods_of(selector)}
    return status["replicas"], status["readyReplicas"], found


def test_scale_counts_the_pods_of_that_pool_alone() -> None:
    cluster = Cluster(make_live(pools=[make_pool("a", maxReplicas=8), make_pool("b")]))
    cluster.settle()
    cluster.scale("a", 5)
    cluster.step()
    mine = {name for name in cluster.pods if name.startswith("chat-a-")}
    assert read_scale(cluster, "a") == (5, 1, mine)
    cluster.settle()
    assert read_scale(cluster, "a") == (5, 5, mine)
    assert read_scale(cluster, "b")[0] == 1


def test_scale_counts_the_pods_of_all_revisions() -> None:
    cluster = Cluster(make_live(pools=[make_pool(maxReplicas=8)]))
    cluster.settle()
    cluster.scale("mixed", 5)
    cluster.settle()
    cluster.service = make_live(
        pools=[make_pool(maxReplicas=8)], engine={"runtime": "Simulated", "extraArgs": ["--noise=0"]}
    )
    cluster.step()
    assert read_scale(cluster, "mixed") == (6, 5, {name for name in cluster.pods if name.startswith("chat-mixed-")})
    cluster.settle()
    assert read_scale(cluster, "mixed")[:2] == (5, 5)


def test_a_pool_at_zero_tells_its_selector_too() -> None:
    cluster = Cluster(make_live(pools=[make_pool(minReplicas=0)]))
    cluster.settle()
    cluster.scale("mixed", 0)
    cluster.settle()
    assert read_scale(cluster, "mixed") == (0, 0, set())
