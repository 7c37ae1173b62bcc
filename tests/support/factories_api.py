"""LLMService manifests and models with defaults, for the tests of all parts."""

from __future__ import annotations

import copy
from typing import Any

import yaml
from paceline_api.v1alpha1 import LLMService

Json = dict[str, Any]


def make_class(name: str = "interactive", **over: Any) -> Json:
    return {"name": name, "ttftMs": 400, "tpotMs": 40} | over


def make_pool(name: str = "mixed", role: str = "Mixed", **over: Any) -> Json:
    """A pool of 1 to 4 replicas; with `replicas` a fixed one. A value of None removes the field."""
    sizes = {} if "replicas" in over else {"minReplicas": 1, "maxReplicas": 4}
    pool = {"name": name, "role": role, "accelerator": "a100-sxm-80gb"} | sizes | over
    return {key: value for key, value in pool.items() if value is not None}


def make_model(**over: Any) -> Json:
    return {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct", "maxContextTokens": 16384} | over


def make_manifest(name: str = "chat", **spec: Any) -> Json:
    """A valid LLMService as a person writes it: one class, one mixed pool; `spec` replaces fields of its spec."""
    whole: Json = {
        "model": make_model(),
        "slo": {"classes": [make_class()]},
        "pools": [make_pool()],
        "engine": {"runtime": "Simulated"},
    } | spec
    manifest = {"apiVersion": "paceline.dev/v1alpha1", "kind": "LLMService", "metadata": {"name": name}, "spec": whole}
    return copy.deepcopy(manifest)


def make_service(name: str = "chat", **spec: Any) -> LLMService:
    return LLMService.model_validate(make_manifest(name, **spec))


def to_yaml(manifest: Json) -> str:
    return yaml.safe_dump(manifest, sort_keys=False)
