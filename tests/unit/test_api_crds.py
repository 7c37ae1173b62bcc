"""The generated CRDs: structural, bounded, committed as generated, and what kubectl and the scale subresource need."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from paceline_api import crdgen
from paceline_api.crdgen import RESOURCES, Resource, crd, main, openapi, render
from paceline_api.v1alpha1 import LLMService

Node = dict[str, Any]
KEYWORDS = {
    *("type", "description", "format", "enum", "default", "properties", "required", "items"),
    *("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern"),
    *("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-validations"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys"),
}
YAML_11_BOOLEANS = {"y", "n", "yes", "no", "on", "off", "true", "false"}
by_kind = pytest.mark.parametrize("resource", RESOURCES, ids=lambda r: r.kind)


def nodes(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")


def faults(path: str, node: Node) -> Iterator[str]:
    """What a structural and bounded schema does not have."""
    yield from (f"{path}: keyword {key}" for key in node.keys() - KEYWORDS)
    match node:
        case {"x-kubernetes-int-or-string": True}:
            if "type" in node or not {"pattern", "maxLength", "minimum", "maximum"} <= node.keys():
                yield f"{path}: int-or-string with a type or without bounds"
        case {"x-kubernetes-preserve-unknown-fields": True}:
            if node["type"] != "object" or "properties" in node:
                yield f"{path}: preserves unknown fields and is no free object"
        case {"type": "object"}:
            if not node.get("properties"):
                yield f"{path}: an object without properties"
            if missing := set(node.get("required", [])) - node["properties"].keys():
                yield f"{path}: requires {missing}, which it has not"
        case {"type": "array"}:
            if "maxItems" not in node or "x-kubernetes-list-type" not in node:
                yield f"{path}: a list without maxItems or list type"
            for key in node.get("x-kubernetes-list-map-keys", []):
                if key not in node["items"]["required"]:
                    yield f"{path}: list-map key {key} is optional"
        case {"type": "string"}:
            if path not in (".apiVersion", ".kind") and not {"maxLength", "enum", "format"} & node.keys():
                yield f"{path}: a string without a bound"
        case {"type": "integer"}:
            if not {"minimum", "maximum"} <= node.keys():
                yield f"{path}: an integer without bounds"
        case _:
            yield f"{path}: no type"


@by_kind
def test_the_schema_is_structural_and_bounded(resource: Resource) -> None:
    assert [fault for path, node in nodes(openapi(resource.model)) for fault in faults(path, node)] == []


@by_kind
def test_every_field_is_described(resource: Resource) -> None:
    bare = [
        path
        for path, node in nodes(openapi(resource.model))
        if path
        and not path.endswith("]")
        and path not in (".apiVersion", ".kind", ".metadata")
        and "description" not in node
    ]
    assert bare == []


@by_kind
def test_no_enum_value_is_a_yaml_boolean(resource: Resource) -> None:
    """But for metav1.Condition, which is Kubernetes' own."""
    values = {v for path, n in nodes(openapi(resource.model)) if ".conditions" not in path for v in n.get("enum", [])}
    assert not {v for v in values if v.lower() in YAML_11_BOOLEANS}


@by_kind
def test_the_defaults_satisfy_the_schema(resource: Resource) -> None:
    for path, node in nodes(openapi(resource.model)):
        if isinstance(default := node.get("default"), int):
            assert node["minimum"] <= default <= node["maximum"], path
        if isinstance(default, str) and "enum" in node:
            assert default in node["enum"], path


@by_kind
def test_rules_say_cause_and_remedy_and_use_core_functions(resource: Resource) -> None:
    foreign = ("isURL", "url(", "quantity(", "isQuantity", "optional", ".sum(", "isSorted", "find(", "ip(", "cidr(")
    for path, node in nodes(openapi(resource.model)):
        for rule in node.get("x-kubernetes-validations", []):
            assert rule["message"].count("; ") == 1, rule["message"]
            assert not any(word in rule["rule"] for word in foreign), rule["rule"]
            for part in rule.get("fieldPath", "").split(".")[1:]:
                assert part in node["properties"], f"{path}: fieldPath {rule['fieldPath']}"


@by_kind
def test_the_committed_crd_is_the_generated_one(resource: Resource) -> None:
    assert resource.path.read_text(encoding="utf-8") == render(resource), "run `python -m paceline_api.crdgen`"
    assert yaml.safe_load(render(resource)) == crd(resource)


def test_the_same_models_give_the_same_bytes() -> None:
    program = "from paceline_api.crdgen import *; print(*map(render, RESOURCES))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "7")
    }
    assert len(outputs) == 1


def test_check_tells_a_stale_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crdgen, "FOLDER", tmp_path)
    assert main(["--check"]) == 1
    assert "stale: llmservices.yaml, enginepools.yaml" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0
    (tmp_path / "llmservices.yaml").write_text("old")
    assert main(["--check"]) == 1


def test_names_and_scale() -> None:
    service, pool = (crd(r)["spec"] for r in RESOURCES)
    assert (service["names"]["shortNames"], pool["names"]["shortNames"]) == (["llm"], ["llmpool"])
    assert service["versions"][0]["subresources"] == {"status": {}}
    assert pool["versions"][0]["subresources"]["scale"] == {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }


@by_kind
def test_columns_and_scale_point_at_fields_that_exist(resource: Resource) -> None:
    known = {path for path, _ in nodes(openapi(resource.model))}
    version = crd(resource)["spec"]["versions"][0]
    paths = [c["jsonPath"] for c in version["additionalPrinterColumns"] if not c["jsonPath"].startswith(".metadata")]
    for path in [*paths, *version["subresources"].get("scale", {}).values()]:
        assert path.split("[?")[0] in known, path


def test_file_models_are_permitted_only_locally() -> None:
    def rules(local: bool) -> set[str]:
        uri = openapi(LLMService, local=local)["properties"]["spec"]["properties"]["model"]
        return {rule["rule"] for rule in uri["x-kubernetes-validations"]}

    assert rules(local=False) - rules(local=True) == {"!self.uri.startsWith('file://')"}
    assert rules(local=True) < rules(local=False)


def test_a_union_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="a structural schema has no unions"):
        crdgen._structural({"anyOf": [{"type": "string"}, {"type": "integer"}]}, {}, local=False)
