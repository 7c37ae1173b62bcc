"""The API `paceline.dev/v1alpha1` (DESIGN §3): LLMService, which a person writes; EnginePool stands in `enginepool`.

Every field, default and bound is said here once: `crdgen` turns the models into the CRDs, `validate` runs the result on
files. A rule over several fields is a CEL string in its model's `CEL`, written with core functions only; its message
says what to change. Invariant: what the CRD admits, these models parse.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from paceline_api.enginepool import EnginePool, EnginePoolPlan, EnginePoolSpec, EnginePoolStatus
from paceline_api.pools import LEAST_GPUS, EngineSpec, KVTransferSpec, Parallelism, PoolSpec
from paceline_api.router_spec import APIKeysSpec, RouterSpec, TLSSpec, TracingSpec
from paceline_api.schema import (
    API_VERSION,
    GROUP,
    MAX_CLASSES,
    MAX_POOLS,
    VERSION,
    AutoscalingMode,
    DnsLabel,
    Model,
    ObjectMeta,
    ObjectName,
    OnFailure,
    Percent,
    Rate,
    Role,
    RouterPolicy,
    Rule,
    Runtime,
    Switch,
    Tokens,
    Topology,
    list_map,
)
from paceline_api.slo import SLOClass
from paceline_api.status import Condition, LLMServiceStatus

__all__ = [
    "API_VERSION",
    "GROUP",
    "VERSION",
    "APIKeysSpec",
    "AutoscalingMode",
    "AutoscalingSpec",
    "CacheSpec",
    "Condition",
    "EnginePool",
    "EnginePoolPlan",
    "EnginePoolSpec",
    "EnginePoolStatus",
    "EngineSpec",
    "KVTransferSpec",
    "LLMService",
    "LLMServiceSpec",
    "LLMServiceStatus",
    "Lengths",
    "ModelSpec",
    "ObjectMeta",
    "OnFailure",
    "Parallelism",
    "PoolSpec",
    "Role",
    "RouterPolicy",
    "RouterSpec",
    "Runtime",
    "SLOClassSpec",
    "SLOSpec",
    "SecretKey",
    "Switch",
    "TLSSpec",
    "Topology",
    "TracingSpec",
    "WorkloadSpec",
]


class SecretKey(Model):
    name: ObjectName = Field(description="Name of the Secret, in the namespace of the service.")
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = Field(
        default="HF_TOKEN", description="Key within the Secret."
    )


class CacheSpec(Model):
    claim_name: ObjectName = Field(description="PersistentVolumeClaim that keeps downloaded weights between starts.")


class ModelSpec(Model):
    CEL = (
        Rule(
            "self.uri.startsWith('hf://') || self.uri.startsWith('pvc://') || self.uri.startsWith('file://')",
            "uri has no known scheme; begin it with hf://ORG/NAME, pvc://CLAIM/PATH or, with `paceline up`, file:///PATH",
            ".uri",
        ),
        Rule(
            "!self.uri.startsWith('hf://') || self.uri.matches("
            "'^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$')",
            "a Hugging Face model is hf://ORG/NAME; write it so, and put a branch or commit into revision",
            ".uri",
        ),
        Rule(
            "!self.uri.startsWith('pvc://') || self.uri.matches("
            "'^pvc://[a-z0-9]([-.a-z0-9]*[a-z0-9])?(/[A-Za-z0-9_][A-Za-z0-9._-]*)*/?$')",
            "a model on a volume is pvc://CLAIM/PATH without '..'; write it so",
            ".uri",
        ),
        Rule(
            "!self.uri.startsWith('file://') || self.uri.startsWith('file:///')",
            "a model on this machine is file:///ABSOLUTE/PATH; write the whole path after file://",
            ".uri",
        ),
        Rule(
            "!self.uri.startsWith('file://')",
            "file:// works only with `paceline up`; put the weights on a volume and use pvc://CLAIM/PATH",
            ".uri",
            "FieldValueForbidden",
            cluster_only=True,
        ),
        Rule(
            "!has(self.tokenSecret) || self.uri.startsWith('hf://')",
            "only an hf:// model is downloaded with a token; remove tokenSecret",
            ".tokenSecret",
            "FieldValueForbidden",
        ),
        Rule(
            "!has(self.cache) || self.uri.startsWith('hf://')",
            "only an hf:// model is downloaded; remove cache",
            ".cache",
            "FieldValueForbidden",
        ),
    )
    uri: Annotated[str, Field(min_length=6, max_length=512)] = Field(
        description="Where the weights are: hf://ORG/NAME, pvc://CLAIM/PATH; file:///PATH only with `paceline up`."
    )
    revision: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]*$", max_length=128)] = Field(
        default="", description="Branch, tag or commit of an hf:// model; empty: its default branch."
    )
    served_name: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._:/-]*)?$", max_length=128)] = Field(
        default="", description="The `model` of requests; empty: the uri without its scheme."
    )
    max_context_tokens: Tokens = Field(description="Most tokens, prompt and answer together, that a request may have.")
    token_secret: SecretKey | None = Field(default=None, description="Secret with the token of a gated hf:// model.")
    cache: CacheSpec | None = Field(default=None, description="Volume on which downloaded weights are kept.")


class SLOClassSpec(Model):
    CEL = (
        Rule(
            "!has(self.maxStallMs) || self.maxStallMs >= self.tpotMs",
            "maxStallMs is below tpotMs; raise it, or remove it for the default of 3 × tpotMs",
            ".maxStallMs",
        ),
    )
    name: DnsLabel = Field(description="What requests say in the header x-slo-class.")
    ttft_ms: Annotated[int, Field(ge=1, le=3_600_000)] = Field(
        description="Limit of the time to first token, in milliseconds, measured at the router."
    )
    tpot_ms: Annotated[int, Field(ge=1, le=60_000)] = Field(
        description="Limit of the mean time per output token of one request, in milliseconds."
    )
    attainment_percent: Percent = Field(
        default=90, description='Share of requests that must meet both limits, in percent: 95 or "99.9".'
    )
    max_stall_ms: Annotated[int, Field(ge=1, le=3_600_000)] | None = Field(
        default=None,
        description="Longest gap between tokens that is no stall, in milliseconds; absent: 3 × tpotMs.",
    )
    ttft_ms_per_1k_prompt_tokens: Annotated[int, Field(ge=0, le=600_000)] = Field(
        default=0, alias="ttftMsPer1kPromptTokens", description="Added to ttftMs for each 1000 prompt tokens."
    )
    priority: Annotated[int, Field(ge=-1000, le=1000)] = Field(
        default=0, description="Turn among the classes in the waiting room (router.waitingRoom): the lower goes first."
    )

    def to_slo(self) -> SLOClass:
        """This class in seconds and ratios."""
        return SLOClass(
            name=self.name,
            ttft_s=self.ttft_ms / 1000,
            tpot_s=self.tpot_ms / 1000,
            target_ratio=float(Decimal(self.attainment_percent) / 100),
            max_stall_s=(self.max_stall_ms or 0) / 1000,
            ttft_s_per_1k_prompt_tokens=self.ttft_ms_per_1k_prompt_tokens / 1000,
        )


class SLOSpec(Model):
    CEL = (
        Rule(
            "size(self.classes) <= 1 || has(self.defaultClass)",
            "there are several classes and no default; add defaultClass, the class of requests without x-slo-class",
            ".defaultClass",
            "FieldValueRequired",
        ),
        Rule(
            "!has(self.defaultClass) || self.classes.exists(c, c.name == self.defaultClass)",
            "defaultClass names none of slo.classes; write the name of one of them, or add a class of that name",
            ".defaultClass",
        ),
    )
    default_class: DnsLabel | None = Field(
        default=None, description="Class of requests without x-slo-class; required when there are several."
    )
    classes: tuple[SLOClassSpec, ...] = Field(
        min_length=1, max_length=MAX_CLASSES, description="The objectives.", json_schema_extra=list_map("name")
    )


class Lengths(Model):
    mean: Tokens = Field(description="Mean, in tokens.")
    p90: Tokens = Field(description="90th percentile, in tokens.")


class WorkloadSpec(Model):
    requests_per_second: Rate | None = Field(default=None, description='Expected arrivals: 8 or "0.5".')
    prompt_tokens: Lengths = Field(description="Lengths of prompts.")
    output_tokens: Lengths = Field(description="Lengths of answers.")


class AutoscalingSpec(Model):
    mode: AutoscalingMode = Field(
        default=AutoscalingMode.ENABLED, description="Recommend decides and records without acting."
    )
    scale_down_stabilization_seconds: Annotated[int, Field(ge=0, le=86_400)] = Field(
        default=300, description="A smaller size must have been enough for this long."
    )


class LLMServiceSpec(Model):
    CEL = (
        Rule(
            "self.topology != 'Disaggregated' || (self.pools.exists(p, p.role == 'Prefill') && "
            "self.pools.exists(p, p.role == 'Decode'))",
            "Disaggregated needs a Prefill and a Decode pool; add the missing one, or change topology",
            ".pools",
        ),
        Rule(
            "self.topology != 'Aggregated' || self.pools.exists(p, p.role == 'Mixed')",
            "Aggregated needs a Mixed pool; add one, or change topology",
            ".pools",
        ),
        Rule(
            "self.topology != 'Auto' || self.pools.exists(p, p.role == 'Mixed') || "
            "(self.pools.exists(p, p.role == 'Prefill') && self.pools.exists(p, p.role == 'Decode'))",
            "Auto needs a Mixed pool, or a Prefill and a Decode pool; add what is missing",
            ".pools",
        ),
        Rule(
            f"!has(self.maxGPUs) || {LEAST_GPUS} <= self.maxGPUs",
            "pools need more GPUs than maxGPUs even at their smallest; raise maxGPUs, or lower sizes or parallelism",
            ".maxGPUs",
        ),
        Rule(
            "!has(self.router) || !has(self.router.localPrefill) || self.router.localPrefill == 'Disabled' || "
            "!has(self.engine) || !has(self.engine.kvTransfer) || !has(self.engine.kvTransfer.onFailure) || "
            "self.engine.kvTransfer.onFailure == 'Recompute'",
            "localPrefill has decode replicas compute prompts, onFailure Fail forbids it; change one of them",
            ".router",
        ),
        Rule(
            "!has(self.workload) || (self.workload.promptTokens.p90 <= self.model.maxContextTokens && "
            "self.workload.outputTokens.p90 <= self.model.maxContextTokens)",
            "a p90 of workload is longer than model.maxContextTokens; raise model.maxContextTokens, or lower that p90",
            ".workload",
        ),
    )
    model: ModelSpec = Field(description="What is served.")
    slo: SLOSpec = Field(description="Within which latency.")
    topology: Topology = Field(
        default=Topology.AUTO, description="Separate prefill and decode pools, one mixed pool, or what the plan finds."
    )
    workload: WorkloadSpec | None = Field(default=None, description="Hint for the first plan, until there is traffic.")
    max_gpus: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, alias="maxGPUs", description="Most GPUs over all pools."
    )
    pools: tuple[PoolSpec, ...] = Field(
        min_length=1,
        max_length=MAX_POOLS,
        description="Engine replicas by role and accelerator; a topology uses the pools of its roles.",
        json_schema_extra=list_map("name"),
    )
    engine: EngineSpec = Field(default=EngineSpec(), description="How each replica runs.")
    router: RouterSpec = Field(default=RouterSpec(), description="The routers in front.")
    autoscaling: AutoscalingSpec = Field(default=AutoscalingSpec(), description="Who changes the sizes of pools.")


class LLMService(Model):
    """A model served within latency objectives at the lowest GPU cost."""

    api_version: Literal["paceline.dev/v1alpha1"] = "paceline.dev/v1alpha1"
    kind: Literal["LLMService"] = "LLMService"
    metadata: ObjectMeta
    spec: LLMServiceSpec = Field(description="What is wanted.")
    status: LLMServiceStatus | None = Field(default=None, description="What is.")

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def served_name(self) -> str:
        """The `model` of requests."""
        return self.spec.model.served_name or self.spec.model.uri.split("://", 1)[1]

    @property
    def default_class_name(self) -> str:
        return self.spec.slo.default_class or self.spec.slo.classes[0].name

    def slo_classes(self) -> dict[str, SLOClass]:
        """Class name → objective, in the order of the file."""
        return {c.name: c.to_slo() for c in self.spec.slo.classes}
