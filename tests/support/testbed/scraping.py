"""What Prometheus is told to scrape: a PodMonitor as the Prometheus operator translates it. Pure.

Tests thereby query the very labels that production attaches: namespace, pod, container, endpoint, job and instance,
none of them honoured from the pod's own exposition.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from testbed.discovery import label_name

Json = dict[str, Any]
META = "__meta_kubernetes_pod"
ENDPOINT = {"port", "path", "interval", "honorLabels", "scheme", "relabelings", "tlsConfig"}


def config(monitors: Sequence[Json], targets: str, rule_files: Sequence[str], evaluation_interval: str) -> Json:
    """prometheus.yml (JSON is YAML). `targets`: the file that `testbed.discovery` keeps."""
    return {
        "global": {"evaluation_interval": evaluation_interval},
        "rule_files": list(rule_files),
        "scrape_configs": [one for monitor in monitors for one in scrape_configs(monitor, targets)],
    }


def scrape_configs(monitor: Json, targets: str) -> Iterator[Json]:
    """One for each endpoint of the PodMonitor. ValueError on what a PodMonitor can say and this does not read."""
    spec, name = monitor["spec"], f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"
    _known("PodMonitor", spec, {"selector", "namespaceSelector", "podMetricsEndpoints"})
    namespaces = spec.get("namespaceSelector", {})
    _known("namespaceSelector", namespaces, {"any", "matchNames"})
    names = [] if namespaces.get("any") else namespaces.get("matchNames", [name.partition("/")[0]])
    for number, endpoint in enumerate(spec["podMetricsEndpoints"]):
        _known("podMetricsEndpoints", endpoint, ENDPOINT)
        _known("tlsConfig", endpoint.get("tlsConfig", {}), {"insecureSkipVerify"})
        relabelings = [*_attached(name, endpoint["port"]), *map(_relabelling, endpoint.get("relabelings", ()))]
        yield {
            "job_name": f"podMonitor/{name}/{number}",
            "honor_labels": endpoint.get("honorLabels", False),
            "scrape_interval": endpoint["interval"],
            "metrics_path": endpoint.get("path", "/metrics"),
            "file_sd_configs": [{"files": [targets]}],
            "tls_config": {"insecure_skip_verify": endpoint.get("tlsConfig", {}).get("insecureSkipVerify", False)},
            "relabel_configs": [*_kept(names, spec["selector"], endpoint["port"]), *relabelings],
        }


def _kept(namespaces: Sequence[str], selector: Json, port: str) -> Iterator[Json]:
    """Which pods: alive, of the namespaces (none: all), with the selector's labels, by the named container port."""
    if namespaces:
        yield {"action": "keep", "source_labels": ["__meta_kubernetes_namespace"], "regex": "|".join(namespaces)}
    yield {"action": "drop", "source_labels": [f"{META}_phase"], "regex": "Failed|Succeeded"}
    for label, value in selector.get("matchLabels", {}).items():
        yield {"action": "keep", "source_labels": [f"{META}_label_{label_name(label)}"], "regex": value}
    for term in selector.get("matchExpressions", ()):
        if term["operator"] != "In":
            raise ValueError(f"a PodMonitor's selector with operator {term['operator']}")
        label = f"{META}_label_{label_name(term['key'])}"
        yield {"action": "keep", "source_labels": [label], "regex": "|".join(term["values"])}
    yield {"action": "keep", "source_labels": [f"{META}_container_port_name"], "regex": port}


def _attached(name: str, port: str) -> Iterator[Json]:
    for label, source in {
        "namespace": "__meta_kubernetes_namespace",
        "container": f"{META}_container_name",
        "pod": f"{META}_name",
    }.items():
        yield {"source_labels": [source], "target_label": label}
    yield {"target_label": "job", "replacement": name}
    yield {"target_label": "endpoint", "replacement": port}


def _relabelling(rule: Json) -> Json:
    spelt = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    _known("relabelings", rule, {*spelt, "regex", "replacement"})
    return {spelt.get(key, key): value for key, value in rule.items()}


def _known(what: str, given: Mapping[str, object], known: set[str]) -> None:
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"{what}: {', '.join(unknown)}")
