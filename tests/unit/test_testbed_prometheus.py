"""What the test Prometheus is told of pods and of PodMonitors, and how readiness over time is read from a watch."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from scaling_on_cluster import documents, fewest_since, ready_counts
from testbed.discovery import targets
from testbed.scraping import scrape_configs

Json = dict[str, Any]


def make_pod(name: str = "chat-router-1", **over: Any) -> Json:
    port = {"name": "http", "containerPort": 8000}
    pod: Json = {
        "metadata": {"name": name, "namespace": "llm", "uid": name, "labels": {"app.kubernetes.io/name": "paceline"}},
        "spec": {"containers": [{"name": "router", "ports": [port]}, {"name": "side"}]},
        "status": {"phase": "Running", "podIP": "198.18.17.2", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    return {part: {**value, **over.get(part, {})} for part, value in pod.items()}


def make_monitor(**spec: Any) -> Json:
    endpoint = {"port": "http", "interval": "2s", "path": "/metrics", "honorLabels": False}
    labels = {"matchLabels": {"app.kubernetes.io/name": "paceline"}}
    fixed = {"namespaceSelector": {"any": True}, "selector": labels, "podMetricsEndpoints": [endpoint]}
    return {"metadata": {"name": "paceline", "namespace": "system"}, "spec": {**fixed, **spec}}


def relabelled(monitor: Json, pod: Json) -> dict[str, str] | None:
    """The target's labels as Prometheus' own rules make them of it; None where it is dropped."""
    [config] = scrape_configs(monitor, "targets.json")
    [target] = targets([pod])
    labels = {"__address__": target["targets"][0], **target["labels"]}
    for rule in config["relabel_configs"]:
        value = ";".join(labels.get(label, "") for label in rule.get("source_labels", ()))
        matches = re.fullmatch(rule.get("regex", "(.*)"), value) is not None
        match rule.get("action", "replace"):
            case "keep" if not matches:
                return None
            case "drop" if matches:
                return None
            case "replace" if matches:
                labels[rule["target_label"]] = rule.get("replacement", value)
    return {name: value for name, value in labels.items() if not name.startswith("__") or name == "__scheme__"}


def test_a_pod_gets_the_labels_that_the_prometheus_operator_would_attach() -> None:
    assert relabelled(make_monitor(), make_pod()) == {
        "namespace": "llm",
        "pod": "chat-router-1",
        "container": "router",
        "endpoint": "http",
        "job": "system/paceline",
    }


@pytest.mark.parametrize(
    ("monitor", "pod"),
    [
        pytest.param({}, {"metadata": {"labels": {"app.kubernetes.io/name": "other"}}}, id="a pod of something else"),
        pytest.param({}, {"status": {"phase": "Succeeded"}}, id="a pod that has ended"),
        pytest.param({}, {"spec": {"containers": [{"name": "x", "ports": [{"containerPort": 1}]}]}}, id="another port"),
        pytest.param({"namespaceSelector": {}}, {}, id="a pod outside the monitor's own namespace"),
        pytest.param({"namespaceSelector": {"matchNames": ["a", "b"]}}, {}, id="a pod outside the namespaces it names"),
    ],
)
def test_what_the_monitor_does_not_select_is_not_scraped(monitor: Json, pod: Json) -> None:
    assert relabelled(make_monitor(**monitor), make_pod(**pod)) is None


@pytest.mark.parametrize(("annotations", "scheme"), [({}, None), ({"prometheus.io/scheme": "https"}, "https")])
def test_a_pod_that_serves_https_is_scraped_so(annotations: dict[str, str], scheme: str | None) -> None:
    rule = {
        "sourceLabels": ["__meta_kubernetes_pod_annotation_prometheus_io_scheme"],
        "regex": "https",
        "targetLabel": "__scheme__",
        "replacement": "https",
    }
    endpoint = {"port": "http", "interval": "2s", "relabelings": [rule], "tlsConfig": {"insecureSkipVerify": True}}
    pod = make_pod()
    pod["metadata"]["annotations"] = annotations
    monitor = make_monitor(podMetricsEndpoints=[endpoint])
    assert (relabelled(monitor, pod) or {}).get("__scheme__") == scheme
    assert [c["tls_config"] for c in scrape_configs(monitor, "t")] == [{"insecure_skip_verify": True}]


def test_what_a_monitor_says_and_this_does_not_read_is_refused() -> None:
    endpoint = {"port": "http", "interval": "2s", "bearerTokenSecret": {}}
    with pytest.raises(ValueError, match="bearerTokenSecret"):
        list(scrape_configs(make_monitor(podMetricsEndpoints=[endpoint]), "targets.json"))


def test_a_pod_without_an_address_is_no_target() -> None:
    assert targets([make_pod(status={"podIP": ""})]) == []


def event(type_: str, name: str, ready: bool = True, leaving: bool = False) -> Json:
    conditions = [{"type": "Ready", "status": str(ready)}]
    pod = make_pod(name, status={"conditions": conditions})
    if leaving:
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {"type": type_, "object": pod}


@pytest.mark.parametrize(
    ("events", "counts"),
    [
        pytest.param([event("ADDED", "a", ready=False), event("MODIFIED", "a")], [0, 1], id="a pod becomes ready"),
        pytest.param([event("ADDED", "a"), event("MODIFIED", "a", leaving=True)], [1, 0], id="one that leaves is out"),
        pytest.param([event("ADDED", "a"), event("DELETED", "a")], [1, 0], id="one that is gone is out"),
        pytest.param([event("ADDED", "a"), event("MODIFIED", "a")], [1, 1], id="no pod counts twice"),
    ],
)
def test_ready_pods_over_time(events: list[Json], counts: list[int]) -> None:
    assert ready_counts(events) == counts


def test_the_fewest_ready_counts_from_when_the_size_was_reached() -> None:
    assert fewest_since([1, 2, 5, 6, 4, 5], 5) == 4
    with pytest.raises(ValueError, match="5"):
        fewest_since([1, 2], 5)


def test_a_watch_that_was_cut_off_yields_its_whole_documents() -> None:
    whole = [event("ADDED", "a"), event("MODIFIED", "a")]
    text = "\n".join(json.dumps(one, indent=2) for one in whole) + "\n"
    assert list(documents(text)) == whole
    assert list(documents(text + text[:40])) == whole
