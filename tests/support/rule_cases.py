"""Each CEL rule of the CRDs with objects that it admits and objects that it refuses, values of the rule's own node.

The unit tests judge them with cel-python, the end-to-end suite with a real API server.
"""

from __future__ import annotations

from typing import Any

from factories_api import make_class, make_manifest, make_model, make_pool
from paceline_api.enginepool import EnginePoolSpec
from paceline_api.pools import EngineSpec, PoolSpec
from paceline_api.schema import Model
from paceline_api.v1alpha1 import LLMServiceSpec, ModelSpec, RouterSpec, SLOClassSpec, SLOSpec, TracingSpec

Json = dict[str, Any]
CARRIERS: tuple[type[Model], ...] = (
    *(ModelSpec, SLOClassSpec, SLOSpec, PoolSpec),
    *(EngineSpec, RouterSpec, TracingSpec, LLMServiceSpec, EnginePoolSpec),
)
PREFILL, DECODE, MIXED = make_pool("prefill", "Prefill"), make_pool("decode", "Decode"), make_pool()
TOKEN = {"name": "hf", "key": "HF_TOKEN"}
TWO = [make_class(), make_class("batch")]
POOL = {"service": "chat", "pool": "decode", "role": "Decode"}
COLLECTORS = [
    "http://collector:4318",
    "https://otel.monitoring.svc/v1/traces",
    "http://10.0.0.1:1/",
    "http://c:65535",
]
NO_COLLECTORS = [
    "collector:4318",
    "grpc://collector:4317",
    "http://collector:0",
    "http://collector:65536",
    "http://user:password@collector:4318",
    "http://collector:4318/?a=b",
    "http://",
    "http:///v1/traces",
]


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
        RouterSpec,
        "localPrefill needs predictions that this policy does not make; remove policy, or disable localPrefill",
        [{"localPrefill": "Enabled"}, {"localPrefill": "Enabled", "policy": "LeastMisses"}, {"policy": "RoundRobin"}],
        [{"localPrefill": "Enabled", "policy": "LMetric"}],
    ),
    (
        RouterSpec,
        "apiKeys and tls name one Secret, whose every entry would be a key; give each its own",
        [{"apiKeys": {"secretName": "a"}}, {"apiKeys": {"secretName": "a"}, "tls": {"secretName": "b"}}],
        [{"apiKeys": {"secretName": "a"}, "tls": {"secretName": "a"}}],
    ),
    (
        TracingSpec,
        "endpoint is no collector's address; write http://HOST:PORT or https://HOST:PORT, mostly of port 4318",
        [{"endpoint": url} for url in COLLECTORS],
        [{"endpoint": url} for url in NO_COLLECTORS],
    ),
    (
        LLMServiceSpec,
        "localPrefill has decode replicas compute prompts, onFailure Fail forbids it; change one of them",
        [
            spec(router={"localPrefill": "Enabled"}, engine={"kvTransfer": {"onFailure": "Recompute"}}),
            spec(engine={"kvTransfer": {"onFailure": "Fail"}}),
        ],
        [spec(router={"localPrefill": "Enabled"}, engine={"kvTransfer": {"onFailure": "Fail"}})],
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
TRANSITIONS = {rule.message for carrier in CARRIERS for rule in carrier.CEL if "oldSelf" in rule.rule}


def refused_service(carrier: type[Model], value: Json, name: str) -> Json:
    """An LLMService that holds `value` at the node of `carrier`, and is right elsewhere as far as that goes."""
    around: dict[type[Model], Json] = {
        ModelSpec: {"model": value},
        SLOClassSpec: {"slo": {"classes": [value]}},
        SLOSpec: {"slo": value},
        PoolSpec: {"pools": [value]},
        EngineSpec: {"engine": value},
        RouterSpec: {"router": value},
        TracingSpec: {"router": {"tracing": value}},
        LLMServiceSpec: value,
    }
    return make_manifest(name, **around[carrier])
