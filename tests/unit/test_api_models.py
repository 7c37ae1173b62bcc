"""What the models offer beside their fields, and that they are frozen, bounded and camelCase on the wire."""

from __future__ import annotations

import json

import pytest
from factories_api import make_class, make_manifest, make_model, make_pool, make_service
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.conditions import AUTOSCALER_CONDITIONS, OPERATOR_CONDITIONS, ConditionType
from paceline_api.enginepool import EnginePool
from paceline_api.slo import SLOClass
from paceline_api.status import LLMServiceStatus
from paceline_api.v1alpha1 import LLMService, PoolSpec, SLOClassSpec
from pydantic import ValidationError


def test_a_class_in_seconds_and_ratios() -> None:
    spec = make_class(attainmentPercent="99.9", maxStallMs=200, ttftMsPer1kPromptTokens=50)
    assert SLOClassSpec.model_validate(spec).to_slo() == SLOClass("interactive", 0.4, 0.04, 0.999, 0.2, 0.05)


def test_the_only_class_is_the_default() -> None:
    service = make_service()
    assert service.default_class_name == "interactive"
    assert list(service.slo_classes()) == ["interactive"]


def test_the_named_class_is_the_default() -> None:
    slo = {"classes": [make_class(), make_class("batch")], "defaultClass": "batch"}
    assert make_service(slo=slo).default_class_name == "batch"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        pytest.param(make_model(), "meta-llama/Llama-3.1-8B-Instruct", id="the uri without its scheme"),
        pytest.param(make_model(servedName="llama"), "llama", id="what servedName says"),
    ],
)
def test_served_name(model: dict[str, object], name: str) -> None:
    assert make_service(model=model).served_name == name


@pytest.mark.parametrize(
    ("pool", "bounds", "gpus"),
    [
        pytest.param(make_pool(), (1, 4), 1, id="bounds, parallelism left to the plan"),
        pytest.param(make_pool(minReplicas=None), (1, 4), 1, id="absent minReplicas is 1"),
        pytest.param(make_pool(minReplicas=0), (0, 4), 1, id="may be empty"),
        pytest.param(make_pool(replicas=3, parallelism={"tensor": 4, "pipeline": 2}), (3, 3), 8, id="a fixed size"),
        pytest.param(make_pool(replicas=0), (0, 0), 1, id="empty on purpose"),
    ],
)
def test_sizes_of_a_pool(pool: dict[str, object], bounds: tuple[int, int], gpus: int) -> None:
    spec = PoolSpec.model_validate(pool)
    assert ((spec.least_replicas, spec.most_replicas), spec.gpus_per_replica) == (bounds, gpus)


def test_frozen_and_without_unknown_fields() -> None:
    service = make_service()
    with pytest.raises(ValidationError, match="frozen"):
        service.spec.topology = "Auto"  # type: ignore[misc,assignment]  # what the test is about
    with pytest.raises(ValidationError, match="Extra inputs"):
        make_service(zzz=1)


def test_the_wire_form_comes_back_as_it_was() -> None:
    service = make_service(maxGPUs=4, pools=[make_pool(podTemplate={"spec": {"x": 1}})])
    wire = json.loads(service.model_dump_json(by_alias=True, exclude_none=True))
    assert wire["spec"]["maxGPUs"] == 4
    assert LLMService.model_validate(wire) == service


def test_metadata_of_a_live_object_is_read() -> None:
    manifest = make_manifest()
    manifest["metadata"] |= {"uid": "u", "generation": 3, "resourceVersion": "9", "managedFields": [{}]}
    assert LLMService.model_validate(manifest).metadata.generation == 3


STATUS = {
    "observedGeneration": 3,
    "url": "http://chat.llm.svc:8000",
    "plan": {
        "topology": "Disaggregated",
        "tokenBudget": 512,
        "pools": [{"name": "prefill", "replicas": 2, "tensor": 1, "pipeline": 1}],
        "predicted": {"attainmentPercent": "97.1", "requestsPerSecondPerGPU": "3.3"},
        "reason": "TTFT binds",
        "rejected": [{"topology": "Aggregated", "reason": "TPOT 61 ms > 40 ms"}],
    },
    "pools": [{"name": "prefill", "role": "Prefill", "desired": 2, "ready": 2, "revision": "7c9f"}],
    "classes": [
        {
            "name": "interactive",
            "attainmentPercent": "96.4",
            "goodputPerSecond": "7.7",
            "ttftP90Ms": 310,
            "tpotP90Ms": 33,
        }
    ],
    "decisions": [
        {
            "time": "2026-01-01T00:00:00Z",
            "pool": "decode",
            "from": 2,
            "to": 3,
            "binding": "interactive/tpot",
            "why": "TPOT",
        }
    ],
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
            "reason": "Serving",
            "message": "",
        }
    ],
}


def test_the_status_of_the_design() -> None:
    status = LLMServiceStatus.model_validate(STATUS)
    assert status.model_dump(by_alias=True, exclude_none=True, mode="json") == STATUS


def test_an_engine_pool() -> None:
    pool = EnginePool.model_validate(
        {
            "metadata": {"name": "chat-decode"},
            "spec": {
                "service": "chat",
                "pool": "decode",
                "role": "Decode",
                "replicas": 2,
                "plan": {"topology": "Disaggregated", "tensor": 2},
            },
            "status": {"replicas": 2, "selector": "paceline.dev/pool=decode"},
        }
    )
    assert pool.spec.plan is not None
    assert pool.spec.plan.tensor == 2


def test_each_condition_has_one_writer() -> None:
    assert sorted([*OPERATOR_CONDITIONS, *AUTOSCALER_CONDITIONS]) == sorted(ConditionType)


@given(st.integers(1, 99), st.integers(0, 999))
def test_percentages_are_exact(whole: int, thousandths: int) -> None:
    text = f"{whole}.{thousandths:03d}"
    ratio = SLOClassSpec.model_validate(make_class(attainmentPercent=text)).to_slo().target_ratio
    assert ratio == float(f"{whole * 1000 + thousandths}e-5")


@pytest.mark.parametrize("value", [0, 101, 99.9, True, "99,9", "100.1", "0.9", "1e1", "95%"])
def test_what_is_no_percentage(value: object) -> None:
    with pytest.raises(ValidationError):
        SLOClassSpec.model_validate(make_class(attainmentPercent=value))
