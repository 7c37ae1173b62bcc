"""Pods that an EnginePool names are the first to go: which annotations are written, and which are left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from factories_api import make_pool
from operator_cluster import NOW, Cluster, make_live
from paceline_operator.deletion_cost import DELETION_COST, FIRST, Cost, find_costs
from paceline_operator.kinds import Json
from paceline_router.endpoints import DRAIN_FIRST


def make_cluster(replicas: int = 3) -> Cluster:
    cluster = Cluster(make_live(pools=[make_pool(minReplicas=1, maxReplicas=4)]))
    cluster.settle()
    cluster.scale("mixed", replicas)
    cluster.settle()
    return cluster


def name_first(cluster: Cluster, *pods: str) -> None:
    annotations = cluster.objects["EnginePool", "chat-mixed"]["metadata"]["annotations"]
    annotations[DRAIN_FIRST] = ",".join(pods)


def engines(cluster: Cluster) -> list[str]:
    return sorted(name for name in cluster.pods if "router" not in name)


def annotations_of(pod: Json) -> dict[str, str]:
    found: dict[str, str] = pod["metadata"].setdefault("annotations", {})
    return found


def test_the_named_pods_get_the_cost_once_and_lose_it_with_their_name() -> None:
    cluster = make_cluster()
    a, b, _ = engines(cluster)
    name_first(cluster, a, b)
    assert {(c.pod, c.value) for c in find_costs(cluster.seen())} == {(a, FIRST), (b, FIRST)}
    cluster.step()
    assert find_costs(cluster.seen()) == ()
    name_first(cluster, b)
    assert [(c.pod, c.value) for c in find_costs(cluster.seen())] == [(a, None)]
    cluster.step()
    name_first(cluster)
    cluster.step()
    assert not any(DELETION_COST in annotations_of(pod) for pod in cluster.pods.values())


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_pool_that_shrinks_in_the_same_moment_loses_the_named_pod(at: int) -> None:
    cluster = make_cluster()
    pods = engines(cluster)
    name_first(cluster, pods[at])
    cluster.scale("mixed", 2)
    cluster.settle()
    assert engines(cluster) == [pod for pod in pods if pod != pods[at]]


def test_the_only_pod_may_be_named() -> None:
    cluster = make_cluster(1)
    (pod,) = engines(cluster)
    name_first(cluster, pod)
    assert find_costs(cluster.seen()) == (Cost(pod, FIRST),)


def going(pod: Json) -> None:
    pod["metadata"]["deletionTimestamp"] = NOW


def of_another_deployment(pod: Json) -> None:
    pod["metadata"]["ownerReferences"][0]["name"] = "theirs-5f7d"


def alone(pod: Json) -> None:
    del pod["metadata"]["ownerReferences"]


def of_another_component(pod: Json) -> None:
    pod["metadata"]["labels"]["app.kubernetes.io/component"] = "job"


@pytest.mark.parametrize("change", [going, of_another_deployment, alone, of_another_component])
def test_a_pod_is_left_alone_that_is(change: Callable[[Json], None]) -> None:
    cluster = make_cluster(1)
    (pod,) = engines(cluster)
    name_first(cluster, pod)
    change(cluster.pods[pod])
    assert find_costs(cluster.seen()) == ()


def test_a_cost_that_a_person_set_on_another_pod_stays() -> None:
    cluster = make_cluster(2)
    a, b = engines(cluster)
    annotations_of(cluster.pods[a])[DELETION_COST] = "7"
    name_first(cluster, b)
    assert [c.pod for c in find_costs(cluster.seen())] == [b]


def test_a_name_that_no_pod_has_is_no_ones() -> None:
    cluster = make_cluster(1)
    name_first(cluster, "gone", "", " ")
    assert find_costs(cluster.seen()) == ()
