"""The chart: in step with the API, refusing unknown values, and rendering to least privilege and restricted pods.

What needs no helm is always checked; what it renders, where helm is at hand (on PATH, or cached by `make cluster`).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml
from helm_chart import Json, helm, named, needs_helm, pod_specs, render, rules_of
from paceline_api import chartgen
from paceline_api.catalog import ACCELERATORS
from paceline_api.chartgen import CHART, accelerator_value, crd_template, generated, main, values
from paceline_api.crdgen import RESOURCES, Resource, crd
from paceline_operator.kinds import KINDS
from paceline_operator.settings import MANAGER

CLUSTER_SCOPED = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
OPERATOR, AUTOSCALER = "paceline-operator", "paceline-autoscaler"
IMAGE = {"repository": "r", "tag": "t", "pullPolicy": "Never"}
FROM = {"name": "", "key": "k"}
PROMETHEUS = {"url": "", "scrapeInterval": "15s", "tokenSecret": FROM, "caConfigMap": FROM, "labels": {}}
SCRAPE = ("prometheus", "scrapeInterval")


def defaults() -> Json:
    loaded: Json = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    return loaded


def schema() -> Json:
    loaded: Json = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    return loaded


def one(documents: list[Json], kind: str, name: str = OPERATOR) -> Json:
    return named(documents, kind, name)


# Without helm


@pytest.mark.parametrize("path", [path for path, _ in generated(CHART)], ids=lambda path: path.name)
def test_generated_files_are_as_committed(path: Path) -> None:
    text = dict(generated(CHART))[path]
    assert path.read_text(encoding="utf-8") == text, "run `python -m paceline_api.chartgen`"


def test_check_tells_a_stale_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chartgen, "CHART", tmp_path)
    (tmp_path / "templates").mkdir()
    (tmp_path / "values.yaml").write_text(f"a: 1\n{chartgen.BEGIN}old: 1\n{chartgen.END}b: 2\n")
    assert main(["--check"]) == 1
    assert "stale: values.yaml" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert yaml.safe_load((tmp_path / "values.yaml").read_text()).keys() == {"a", "accelerators", "b"}


def test_values_without_their_markers_are_refused() -> None:
    with pytest.raises(ValueError, match="lost the lines"):
        values("accelerators: {}\n")


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda r: r.kind)
def test_the_crd_template_is_the_crd_that_uninstall_keeps(resource: Resource) -> None:
    first, *body, last = crd_template(resource).splitlines(keepends=True)
    assert (first, last) == ("{{- if .Values.crds.enabled }}\n", "{{- end }}\n")
    document = yaml.safe_load("".join(body))
    assert document["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert document == crd(resource)


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert chart["appVersion"] == chart["version"] == project["version"]


def test_the_values_are_the_catalogue_and_fit_their_schema() -> None:
    jsonschema.Draft7Validator.check_schema(schema())
    jsonschema.validate(defaults(), schema(), jsonschema.Draft7Validator)
    assert defaults()["accelerators"] == {name: accelerator_value(a) for name, a in ACCELERATORS.items()}


def objects(node: object, path: str = "") -> Iterator[tuple[str, Json]]:
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield path, node
        for key, child in node.items():
            yield from objects(child, f"{path}/{key}")


def test_every_object_of_the_schema_is_closed_or_a_map() -> None:
    free = {path for path, node in objects(schema()) if "additionalProperties" not in node}
    assert free == {"/properties/global"} | {
        f"/properties/{process}/properties/affinity" for process in ("operator", "autoscaler")
    }


@pytest.mark.parametrize(
    ("change", "at"),
    [
        pytest.param({"images": {}}, [], id="an unknown value"),
        pytest.param({"image": IMAGE | {"pullPolicy": "Sometimes"}}, ["image", "pullPolicy"], id="no pull policy"),
        pytest.param({"image": IMAGE | {"tag": "a:b"}}, ["image", "tag"], id="a tag with a colon"),
        pytest.param({"crds": {"enabled": "yes"}}, ["crds", "enabled"], id="a word for a boolean"),
        pytest.param({"prometheus": PROMETHEUS | {"url": "prometheus:9090"}}, ["prometheus", "url"], id="no scheme"),
        pytest.param({"prometheus": PROMETHEUS | {"scrapeInterval": "2m"}}, [*SCRAPE], id="scrapes beyond a minute"),
        pytest.param({"prometheus": PROMETHEUS | {"scrapeInterval": "0s"}}, [*SCRAPE], id="scrapes without a pause"),
        pytest.param({"prometheus": PROMETHEUS | {"scrapeInterval": 15}}, [*SCRAPE], id="a number without its unit"),
        pytest.param(
            {"rules": {"configMap": True, "runbookBaseURL": ""}}, ["rules", "runbookBaseURL"], id="no base URL"
        ),
        pytest.param({"accelerators": {"H100": {}}}, ["accelerators"], id="an accelerator's name in capitals"),
        pytest.param({"accelerators": {"x": {"table": "x"}}}, ["accelerators", "x"], id="an incomplete accelerator"),
    ],
)
def test_bad_values_are_refused_where_they_stand(change: Json, at: list[str]) -> None:
    with pytest.raises(jsonschema.ValidationError) as refused:
        jsonschema.validate(defaults() | change, schema(), jsonschema.Draft7Validator)
    assert list(refused.value.absolute_path) == at


# As helm renders it


@needs_helm
def test_lint_finds_nothing() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@needs_helm
def test_helm_refuses_an_unknown_value() -> None:
    done = helm("template", "paceline", str(CHART), "--set", "operator.replicas=2")
    assert done.returncode != 0
    assert "replicas" in done.stderr


@needs_helm
@pytest.mark.parametrize(
    ("interval", "scrape", "fits"), [("30s", "15s", True), ("31s", "15s", False), ("60s", "30s", True)]
)
def test_helm_refuses_an_interval_with_which_the_autoscaler_does_not_start(
    interval: str, scrape: str, fits: bool
) -> None:
    values = f"autoscaler.interval={interval},prometheus.scrapeInterval={scrape}"
    done = helm("template", "paceline", str(CHART), "--set", values)
    assert (done.returncode == 0) == fits
    assert fits or "autoscaler.interval 31s is above half of the window of rates, which is 60s" in done.stderr


@needs_helm
def test_every_object_is_named_labelled_and_placed() -> None:
    for document in render():
        name, kind = document["metadata"]["name"], document["kind"]
        if kind == "CustomResourceDefinition":
            continue
        assert name.startswith("paceline-"), name
        assert document["metadata"]["labels"]["app.kubernetes.io/name"] == "paceline", name
        assert document["metadata"].get("namespace") == (None if kind in CLUSTER_SCOPED else "paceline-system"), name


@needs_helm
def test_another_release_name_prefixes_every_name() -> None:
    done = helm("template", "blue", str(CHART))
    fixed = ("CustomResourceDefinition", "Lease")
    names = {d["metadata"]["name"] for d in yaml.safe_load_all(done.stdout) if d and d["kind"] not in fixed}
    parts = ("operator", "autoscaler", "router", "edit", "view", "accelerators", "rules", "test")
    assert names >= {f"blue-paceline-{part}" for part in parts}
    assert all(name.startswith("blue-paceline-") for name in names)


@needs_helm
def test_pods_meet_the_restricted_standard_and_state_their_resources() -> None:
    specs = list(pod_specs(render()))
    assert len(specs) == 3
    for spec in specs:
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == security["runAsGroup"] == 65532
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert all("hostPath" not in volume for volume in spec.get("volumes", []))
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"].keys() == {"requests", "limits"}
            assert container["image"] == "localhost/paceline:dev"


@needs_helm
def test_the_operator_is_told_of_images_accelerators_and_the_routers_role() -> None:
    documents = render(
        "--set", "image.repository=r.example/p,image.tag=v1,image.pullPolicy=Always,engineImage=r.example/e:2"
    )
    pod = one(documents, "Deployment")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["args"] == [
        "paceline_operator",
        "--accelerators=/etc/paceline/accelerators.yaml",
        "--control-image=r.example/p:v1",
        "--engine-image=r.example/e:2",
        "--image-pull-policy=Always",
        "--router-cluster-role=paceline-router",
    ]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    assert pod["volumes"] == [{"name": "accelerators", "configMap": {"name": "paceline-accelerators"}}]


@needs_helm
def test_accelerators_are_merged_with_the_built_in_ones() -> None:
    own = json.dumps(accelerator_value(ACCELERATORS["l40s"]) | {"memoryGiB": 20})
    documents = render("--set-json", f"accelerators.mine={own}", "--set", "accelerators.a40=null")
    data = one(documents, "ConfigMap", "paceline-accelerators")["data"]["accelerators.yaml"]
    expected = {name: accelerator_value(a) for name, a in ACCELERATORS.items() if name != "a40"}
    assert yaml.safe_load(data) == expected | {"mine": json.loads(own)}


@needs_helm
def test_a_changed_accelerator_restarts_the_operator_and_an_image_tag_alone_keeps_its_hash() -> None:
    def accelerators_hash(*args: str) -> str:
        template = one(render(*args), "Deployment")["spec"]["template"]
        found: str = template["metadata"]["annotations"]["paceline.dev/accelerators-hash"]
        return found

    assert accelerators_hash() == accelerators_hash("--set", "image.tag=other")
    assert accelerators_hash() != accelerators_hash("--set", "accelerators.a40.memoryGiB=45")


@needs_helm
def test_crds_come_with_the_chart_unless_switched_off() -> None:
    def crds(*args: str) -> set[str]:
        return {d["metadata"]["name"] for d in render(*args) if d["kind"] == "CustomResourceDefinition"}

    assert crds() == {"llmservices.paceline.dev", "enginepools.paceline.dev"}
    assert crds("--set", "crds.enabled=false") == set()


@needs_helm
def test_no_rule_has_a_wildcard_and_secrets_are_never_read() -> None:
    rules = [rule for d in render() if d["kind"] in ("ClusterRole", "Role") for rule in d["rules"]]
    for rule in rules:
        assert "*" not in {value for values in rule.values() for value in values}, rule
    assert [r["verbs"] for r in rules if "secrets" in r["resources"]] == [["create"]]
    assert [(r["resourceNames"], r["verbs"]) for r in rules if "clusterroles" in r["resources"]] == [
        (["paceline-router"], ["bind"])
    ]
    assert not [r for r in rules if {"escalate", "impersonate"} & set(r["verbs"])]


@needs_helm
def test_the_operator_may_do_to_each_kind_of_child_what_it_does() -> None:
    allowed = rules_of(render(), "ClusterRole", OPERATOR)
    for api_version, plural in KINDS.values():
        group = api_version.rpartition("/")[0]
        assert allowed[group, plural] == {"get", "list", "watch", "create", "patch", "delete"}, plural


@needs_helm
@pytest.mark.parametrize("holder", [MANAGER, AUTOSCALER])
def test_a_process_may_hold_the_lease_that_the_chart_makes_and_no_other(holder: str) -> None:
    documents = render()
    assert "spec" not in one(documents, "Lease", holder)
    [rule] = one(documents, "Role", holder)["rules"]
    assert rule["resourceNames"] == [holder]
    assert rules_of(documents, "Role", holder) == {("coordination.k8s.io", "leases"): {"get", "update"}}


@needs_helm
def test_routers_may_only_watch() -> None:
    allowed = rules_of(render(), "ClusterRole", "paceline-router")
    assert allowed == {
        ("discovery.k8s.io", "endpointslices"): {"get", "list", "watch"},
        ("paceline.dev", "enginepools"): {"get", "list", "watch"},
        ("paceline.dev", "llmservices"): {"get", "list", "watch"},
    }


@needs_helm
def test_notes_name_the_next_command() -> None:
    done = helm("install", "paceline", str(CHART), "--dry-run=client", "--namespace", "paceline-system")
    assert done.returncode == 0, done.stderr
    assert "kubectl apply -f examples/chat.yaml" in done.stdout
    assert (CHART.parents[1] / "examples" / "chat.yaml").exists()
