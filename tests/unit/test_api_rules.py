"""Each CEL rule of the CRDs with one object that it admits and one that it refuses, by its own string and message."""

from __future__ import annotations

from typing import Any

import pytest
from factories_api import make_class, make_manifest, make_model, make_pool
from paceline_api.cel import violations
from paceline_api.crdgen import openapi
from paceline_api.enginepool import EnginePoolSpec
from paceline_api.pools import EngineSpec, PoolSpec
from paceline_api.schema import Model
from paceline_api.v1alpha1 import LLMService, LLMServiceSpec, ModelSpec, SLOClassSpec, SLOSpec
from paceline_api.validate import with_defaults

Json = dict[str, Any]
CARRIERS: tuple[type[Model], ...] = (
    *(ModelSpec, SLOClassSpec, SLOSpec, PoolSpec),
    *(EngineSpec, LLMServiceSpec, EnginePoolSpec),
)
PREFILL, DECODE, MIXED = make_pool("prefill", "Prefill"), make_pool("decode", "Decode"), make_pool()
TOKEN = {"name": "hf", "key": "HF_TOKEN"}
TWO = [make_class(), make_class("batch")]
POOL = {"service": "chat", "pool": "decode", "role": "Decode"}


def spec(**over: Any) -> Json:
    whole: Json = make_manifest(**over)["spec"]
    return whole


def lengths(p90: int) -> Json:
    return {"mean": 10, "p90": p90}


CASES: list[tuple[type[Model], str, list[Json], list[Json]]] = [
    (
        ModelSpec,
        "uri has no known scheme; begin it with hf://ORG/NAME, pvc://CLAIM/PATH or, with `paceline up`, file:///PATH",
        [make_model(), make_model(uri="pvc://models/llama"), make_model(uri="hf://Qwen/Qwen3-8B")],
        [make_model(uri="s3://bucket/model"), make_model(uri="Qwen/Qwen3-8B"), make_model(uri="HF://Qwen/Qwen3-8B")],
    ),
    (
        ModelSpec,
        "a Hugging Face model is hf://ORG/NAME; write it so, and put a branch or commit into revision",
        [make_model(uri="hf://meta-llama/Llama-3.1-8B_x")],
        [make_model(uri="hf://Qwen"), make_model(uri="hf://Qwen/Qwen3-8B@main"), make_model(uri="hf://a/b/c")],
    ),
    (
        ModelSpec,
        "a model on a volume is pvc://CLAIM/PATH without '..'; write it so",
        [make_model(uri="pvc://models"), make_model(uri="pvc://models/a/b_c-1.0/")],
        [make_model(uri="pvc://models/../etc"), make_model(uri="pvc:///x"), make_model(uri="pvc://Models/x")],
    ),
    (
        ModelSpec,
        "a model on this machine is file:///ABSOLUTE/PATH; write the whole path after file://",
        [make_model(uri="pvc://models")],
        [make_model(uri="file://models/x")],
    ),
    (
        ModelSpec,
        "file:// works only with `paceline up`; put the weights on a volume and use pvc://CLAIM/PATH",
        [make_model()],
        [make_model(uri="file:///models/x")],
    ),
    (
        ModelSpec,
        "only an hf:// model is downloaded with a token; remove tokenSecret",
        [make_model(tokenSecret=TOKEN)],
        [make_model(uri="pvc://models/x", tokenSecret=TOKEN)],
    ),
    (
        ModelSpec,
        "only an hf:// model is downloaded; remove cache",
        [make_model(cache={"claimName": "models"})],
        [make_model(uri="pvc://models/x", cache={"claimName": "models"})],
    ),
    (
        SLOClassSpec,
        "maxStallMs is below tpotMs; raise it, or remove it for the default of 3 × tpotMs",
        [make_class(maxStallMs=40), make_class(tpotMs=500, ttftMs=100)],
        [make_class(maxStallMs=39)],
    ),
    (
        SLOSpec,
        "there are several classes and no default; add defaultClass, the class of requests without x-slo-class",
        [{"classes": TWO[:1]}, {"classes": TWO, "defaultClass": "batch"}],
        [{"classes": TWO}],
    ),
    (
        SLOSpec,
        "defaultClass names none of slo.classes; write the name of one of them, or add a class of that name",
        [{"classes": TWO, "defaultClass": "batch"}],
        [{"classes": TWO, "defaultClass": "bulk"}],
    ),
    (
        PoolSpec,
        "replicas is a fixed size, minReplicas and maxReplicas are bounds; keep one or the other",
        [make_pool(replicas=2), make_pool()],
        [make_pool(replicas=2, minReplicas=2), make_pool(replicas=2, maxReplicas=2)],
    ),
    (
        PoolSpec,
        "the pool has no size; add maxReplicas (and minReplicas, default 1), or replicas for a fixed size",
        [make_pool(minReplicas=None), make_pool(replicas=0)],
        [make_pool(maxReplicas=None), make_pool(minReplicas=None, maxReplicas=None)],
    ),
    (
        PoolSpec,
        "minReplicas is above maxReplicas; lower minReplicas or raise maxReplicas",
        [make_pool(minReplicas=4), make_pool(minReplicas=0)],
        [make_pool(minReplicas=5)],
    ),
    (
        PoolSpec,
        "objects called <service>-router are the router's; give the pool another name",
        [make_pool("routers")],
        [make_pool("router")],
    ),
    (
        PoolSpec,
        "a pool keeps its role; add a pool of another name with the new role and remove this one",
        [make_pool()],
        [make_pool(role="Decode")],
    ),
    (
        EngineSpec,
        "extraArgs holds a flag that Paceline sets itself; remove it, and say it in model, slo, pools or engine",
        [{"extraArgs": ["--portable", "--model-impl=vllm", "--max-num-seqs=64", "-O3"]}, {}],
        [
            {"extraArgs": [a]}
            for a in ("--port", "--port=1", "--max_model_len=9", "-tp=2", "-tp", "--scheduler-cls=x", "--model=y")
        ],
    ),
    (
        LLMServiceSpec,
        "Disaggregated needs a Prefill and a Decode pool; add the missing one, or change topology",
        [spec(topology="Disaggregated", pools=[PREFILL, DECODE]), spec(topology="Auto")],
        [spec(topology="Disaggregated", pools=[PREFILL, MIXED]), spec(topology="Disaggregated", pools=[DECODE])],
    ),
    (
        LLMServiceSpec,
        "Aggregated needs a Mixed pool; add one, or change topology",
        [spec(topology="Aggregated", pools=[MIXED])],
        [spec(topology="Aggregated", pools=[PREFILL, DECODE])],
    ),
    (
        LLMServiceSpec,
        "Auto needs a Mixed pool, or a Prefill and a Decode pool; add what is missing",
        [spec(topology="Auto", pools=[MIXED]), spec(topology="Auto", pools=[PREFILL, DECODE])],
        [spec(topology="Auto", pools=[PREFILL]), spec(topology="Auto", pools=[DECODE])],
    ),
    (
        LLMServiceSpec,
        "pools need more GPUs than maxGPUs even at their smallest; raise maxGPUs, or lower sizes or parallelism",
        [
            spec(maxGPUs=1),
            spec(maxGPUs=8, pools=[make_pool(replicas=2, parallelism={"tensor": 2, "pipeline": 2})]),
            spec(maxGPUs=1, pools=[MIXED, make_pool("spare", minReplicas=0)]),
        ],
        [
            spec(maxGPUs=7, pools=[make_pool(replicas=2, parallelism={"tensor": 2, "pipeline": 2})]),
            spec(maxGPUs=2, pools=[MIXED, PREFILL, make_pool("last", minReplicas=None)]),
            spec(maxGPUs=7, pools=[make_pool(f"pool-{i}") for i in range(8)]),
        ],
    ),
    (
        LLMServiceSpec,
        "a p90 of workload is longer than model.maxContextTokens; raise model.maxContextTokens, or lower that p90",
        [spec(workload={"promptTokens": lengths(16384), "outputTokens": lengths(1)})],
        [
            spec(workload={"promptTokens": lengths(16385), "outputTokens": lengths(1)}),
            spec(workload={"promptTokens": lengths(1), "outputTokens": lengths(16385)}),
        ],
    ),
    (
        EnginePoolSpec,
        "service, pool and role of an EnginePool never change; leave them as they are",
        [POOL, POOL | {"replicas": 3}],
        [POOL | {"role": "Mixed"}, POOL | {"service": "code"}, POOL | {"pool": "prefill"}],
    ),
]
STORED = {PoolSpec: make_pool(), EnginePoolSpec: POOL}


def broken_by(carrier: type[Model], message: str, value: Json) -> list[str]:
    """Messages of the rules of `carrier` with this message that `value` breaks, its defaults applied."""
    raw = carrier.model_json_schema()
    schema = {"properties": {name: node for name, node in raw["properties"].items() if node.get("default") is not None}}
    rules = [{"rule": r.rule, "message": r.message} for r in carrier.CEL if r.message == message]
    assert rules, f"{carrier.__name__} has no rule with this message"
    return violations(rules, with_defaults(schema, value), STORED.get(carrier))


@pytest.mark.parametrize(("carrier", "message", "admitted", "refused"), CASES, ids=[c[1].split(";")[0] for c in CASES])
def test_rule(carrier: type[Model], message: str, admitted: list[Json], refused: list[Json]) -> None:
    assert [broken_by(carrier, message, value) for value in admitted] == [[]] * len(admitted)
    assert [broken_by(carrier, message, value) for value in refused] == [[message]] * len(refused)


def test_every_rule_has_a_case() -> None:
    assert {(c, r.message) for c in CARRIERS for r in c.CEL} == {(case[0], case[1]) for case in CASES}


def test_every_model_with_rules_is_a_carrier() -> None:
    def with_rules(model: type[Model]) -> set[type[Model]]:
        own = {model} if model.CEL else set()
        return own.union(*(with_rules(child) for child in model.__subclasses__()))

    assert with_rules(Model) == set(CARRIERS)


@pytest.mark.parametrize("ttft_ms", [10, 5000], ids=["TTFT below TPOT", "TTFT above TPOT"])
def test_no_rule_stands_between_ttft_and_tpot(ttft_ms: int) -> None:
    value = make_class(ttftMs=ttft_ms, tpotMs=500)
    assert violations([{"rule": r.rule, "message": r.message} for r in SLOClassSpec.CEL], value) == []


def test_the_rules_stand_in_the_crd_at_the_node_of_their_model() -> None:
    spec_node = openapi(LLMService)["properties"]["spec"]
    assert [r["message"] for r in spec_node["x-kubernetes-validations"]] == [r.message for r in LLMServiceSpec.CEL]
    pool = spec_node["properties"]["pools"]["items"]
    assert [r["rule"] for r in pool["x-kubernetes-validations"]] == [r.rule for r in PoolSpec.CEL]
