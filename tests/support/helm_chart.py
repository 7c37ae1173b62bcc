"""The chart as helm renders it: what tests of it share. Helm is on PATH, or cached by `make cluster`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from paceline_api.chartgen import CHART

Json = dict[str, Any]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CACHED_HELM = CACHE / "paceline" / "cluster" / "bin" / "helm"
HELM = shutil.which("helm") or (str(CACHED_HELM) if CACHED_HELM.exists() else None)
needs_helm = pytest.mark.skipif(HELM is None, reason="helm is not on PATH and not cached by `make cluster`")

NAMESPACE = "paceline-system"


def helm(*args: str) -> subprocess.CompletedProcess[str]:
    assert HELM is not None
    return subprocess.run([HELM, *args], capture_output=True, text=True, timeout=60)


@cache
def render(*args: str) -> list[Json]:
    """Shared by all who ask for the same; nobody changes it."""
    done = helm("template", "paceline", str(CHART), "--namespace", NAMESPACE, *args)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def named(documents: list[Json], kind: str, name: str) -> Json:
    [found] = [d for d in documents if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found


def kinds(documents: list[Json]) -> set[str]:
    return {document["kind"] for document in documents}


def pod_specs(documents: list[Json]) -> Iterator[Json]:
    for document in documents:
        match document["kind"]:
            case "Pod":
                yield document["spec"]
            case "Deployment":
                yield document["spec"]["template"]["spec"]


def rules_of(documents: list[Json], kind: str, name: str) -> dict[tuple[str, str], set[str]]:
    """What a Role or ClusterRole allows: verbs by (API group, resource)."""
    rules = named(documents, kind, name)["rules"]
    return {(group, r): set(rule["verbs"]) for rule in rules for group in rule["apiGroups"] for r in rule["resources"]}
