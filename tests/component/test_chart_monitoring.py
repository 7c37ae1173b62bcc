"""The chart's part in measuring and resizing the fleet: autoscaler, scraping, rules, and what the notes say of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import yaml
from chart_rules import rule_files
from helm_chart import NAMESPACE, Json, helm, kinds, named, needs_helm, render, rules_of
from paceline_api.chartgen import CHART
from paceline_operator.manifests.meta import SCRAPE_SCHEME
from paceline_router.scaling.actuate import MANAGER

AUTOSCALER = "paceline-autoscaler"
POD_MONITOR = ("--api-versions", "monitoring.coreos.com/v1/PodMonitor")
RULES = ("--api-versions", "monitoring.coreos.com/v1/PrometheusRule")
SCRAPED = {"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "prometheus.io/path": "/metrics"}

pytestmark = needs_helm


def deployment(*args: str) -> Json:
    found: Json = named(render(*args), "Deployment", AUTOSCALER)["spec"]
    return found


def pod(*args: str) -> Json:
    found: Json = deployment(*args)["template"]["spec"]
    return found


def args_of(*args: str) -> list[str]:
    [container] = pod(*args)["containers"]
    found: list[str] = container["args"]
    return found


@pytest.mark.parametrize(
    ("given", "told"),
    [
        pytest.param("", [], id="without a Prometheus only its clock"),
        pytest.param(
            "prometheus.url=https://p.example:9090/prefix",
            ["--prometheus-url=https://p.example:9090/prefix"],
            id="a URL with a path",
        ),
        pytest.param(
            "prometheus.url=http://p,prometheus.tokenSecret.name=t,prometheus.tokenSecret.key=bearer",
            ["--prometheus-url=http://p", "--prometheus-token-file=/etc/paceline/prometheus-token/bearer"],
            id="a token",
        ),
        pytest.param(
            "prometheus.url=http://p,prometheus.caConfigMap.name=ca",
            ["--prometheus-url=http://p", "--prometheus-ca-file=/etc/paceline/prometheus-ca/ca.crt"],
            id="a CA",
        ),
    ],
)
def test_the_autoscaler_is_told_what_the_values_say(given: str, told: list[str]) -> None:
    clock = ["--scrape-interval-s=5", "--interval-s=10", "--manual-hold-s=60"]
    times = "prometheus.scrapeInterval=5s,autoscaler.interval=10s,autoscaler.manualHoldSeconds=60"
    assert args_of("--set", f"{times},{given}".rstrip(",")) == ["paceline_router.autoscaler", *told, *clock]


def test_every_flag_that_the_chart_gives_is_one_of_the_autoscalers() -> None:
    given = "prometheus.url=http://p,prometheus.tokenSecret.name=t,prometheus.caConfigMap.name=c"
    module, *flags = args_of("--set", given)
    done = subprocess.run([sys.executable, "-m", module, *flags, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not [flag for flag in flags if f"{flag.partition('=')[0]} " not in done.stdout]


def test_token_and_ca_are_mounted_as_the_files_that_the_autoscaler_is_told() -> None:
    spec = pod("--set", "prometheus.tokenSecret.name=t,prometheus.caConfigMap.name=c,prometheus.caConfigMap.key=k.pem")
    [container] = spec["containers"]
    assert container["volumeMounts"] == [
        {"name": "prometheus-token", "mountPath": "/etc/paceline/prometheus-token", "readOnly": True},
        {"name": "prometheus-ca", "mountPath": "/etc/paceline/prometheus-ca", "readOnly": True},
    ]
    assert spec["volumes"] == [
        {
            "name": "prometheus-token",
            "secret": {"secretName": "t", "items": [{"key": "token", "path": "token"}]},
        },
        {"name": "prometheus-ca", "configMap": {"name": "c", "items": [{"key": "k.pem", "path": "k.pem"}]}},
    ]


def test_two_autoscalers_run_on_nodes_apart_and_are_never_both_evicted() -> None:
    documents = render()
    spec = named(documents, "Deployment", AUTOSCALER)["spec"]
    labels = spec["template"]["metadata"]["labels"]
    own = spec["selector"]["matchLabels"]
    assert own.items() <= labels.items()
    assert own["app.kubernetes.io/component"] == "autoscaler"
    [spread] = spec["template"]["spec"]["topologySpreadConstraints"]
    budget = named(documents, "PodDisruptionBudget", AUTOSCALER)["spec"]
    assert spec["replicas"] == 2
    assert (spread["topologyKey"], spread["labelSelector"]["matchLabels"]) == ("kubernetes.io/hostname", own)
    assert (budget["maxUnavailable"], budget["selector"]["matchLabels"]) == (1, own)
    assert named(documents, "Service", AUTOSCALER)["spec"]["selector"] == own


def test_the_operators_selector_is_not_the_autoscalers() -> None:
    documents = render()
    selectors = [d["spec"]["selector"]["matchLabels"] for d in documents if d["kind"] == "Deployment"]
    assert sorted(s["app.kubernetes.io/component"] for s in selectors) == ["autoscaler", "operator"]


def test_the_autoscaler_writes_sizes_annotations_and_its_part_of_the_status_and_nothing_else() -> None:
    allowed = rules_of(render(), "ClusterRole", AUTOSCALER)
    written = {resource: verbs - {"get", "list", "watch"} for resource, verbs in allowed.items()}
    assert {resource: verbs for resource, verbs in written.items() if verbs} == {
        ("paceline.dev", "enginepools"): {"patch"},
        ("paceline.dev", "enginepools/scale"): {"patch"},
        ("paceline.dev", "llmservices/status"): {"patch"},
    }
    assert not {"create", "delete", "update"} & {verb for verbs in allowed.values() for verb in verbs}


@pytest.mark.parametrize("role", ["ClusterRole", "Role"])
def test_the_autoscaler_is_bound_to_its_roles(role: str) -> None:
    binding = named(render(), f"{role}Binding", AUTOSCALER)
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": AUTOSCALER}
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": AUTOSCALER, "namespace": NAMESPACE}]
    assert pod()["serviceAccountName"] == AUTOSCALER


def test_the_lease_is_the_one_that_the_autoscaler_holds() -> None:
    assert "spec" not in named(render(), "Lease", MANAGER)


@pytest.mark.parametrize("process", ["operator", "autoscaler"])
def test_a_process_is_found_by_annotations(process: str) -> None:
    template = named(render(), "Deployment", f"paceline-{process}")["spec"]["template"]
    [container] = template["spec"]["containers"]
    assert SCRAPED.items() <= template["metadata"]["annotations"].items()
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "http"}


def test_without_their_kinds_there_is_no_pod_monitor_and_no_prometheus_rule() -> None:
    assert not {"PodMonitor", "PrometheusRule"} & kinds(render())


def test_the_pod_monitor_finds_every_pod_of_paceline_in_every_namespace() -> None:
    labels = "prometheus.scrapeInterval=7s,prometheus.labels.release=stack"
    monitor = named(render(*POD_MONITOR, "--set", labels), "PodMonitor", "paceline-fleet")
    assert monitor["metadata"]["labels"]["release"] == "stack"
    [endpoint] = monitor["spec"].pop("podMetricsEndpoints")
    assert monitor["spec"] == {
        "namespaceSelector": {"any": True},
        "selector": {"matchLabels": {"app.kubernetes.io/name": "paceline"}},
    }
    plain = {"port": "http", "path": "/metrics", "interval": "7s", "honorLabels": False}
    assert plain.items() <= endpoint.items()


def test_routers_that_serve_https_are_scraped_so_whatever_name_their_certificate_has() -> None:
    [endpoint] = named(render(*POD_MONITOR), "PodMonitor", "paceline-fleet")["spec"]["podMetricsEndpoints"]
    said = "__meta_kubernetes_pod_annotation_" + SCRAPE_SCHEME.replace(".", "_").replace("/", "_")
    [rule] = endpoint["relabelings"]
    assert rule == {"sourceLabels": [said], "regex": "https", "targetLabel": "__scheme__", "replacement": "https"}
    assert endpoint["tlsConfig"] == {"insecureSkipVerify": True}


@pytest.mark.parametrize("interval_s", [1, 15, 60])
def test_the_rules_are_written_for_the_scrape_interval(interval_s: int) -> None:
    base = "https://wiki.example/runbooks"
    documents = render("--set", f"prometheus.scrapeInterval={interval_s}s,rules.runbookBaseURL={base}/")
    written = named(documents, "ConfigMap", "paceline-rules")["data"]
    assert {name: text.rstrip("\n") for name, text in written.items()} == {
        name: text.rstrip("\n") for name, text in rule_files(interval_s, base).items()
    }


@pytest.mark.parametrize("name", ["recording", "alerts"])
def test_a_prometheus_rule_holds_the_same_groups(name: str) -> None:
    rule = named(render(*RULES, "--set", "prometheus.labels.release=stack"), "PrometheusRule", f"paceline-{name}")
    expected: Any = yaml.safe_load(rule_files()[f"{name}.yaml"])
    assert rule["spec"] == expected
    assert rule["metadata"]["labels"]["release"] == "stack"


def test_the_rule_files_can_be_left_out() -> None:
    names = {d["metadata"]["name"] for d in render("--set", "rules.configMap=false") if d["kind"] == "ConfigMap"}
    assert "paceline-rules" not in names


@pytest.mark.parametrize(
    ("given", "said"),
    [
        pytest.param((), "--set prometheus.url=http", id="which value to set where there is no Prometheus"),
        pytest.param(
            ("--set", "prometheus.url=http://p:9090"), "measures the fleet by http://p:9090", id="which one it asks"
        ),
    ],
)
def test_notes_say_what_measures_the_fleet(given: tuple[str, ...], said: str) -> None:
    done = helm("install", "paceline", str(CHART), "--dry-run=client", "--namespace", NAMESPACE, *given)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
