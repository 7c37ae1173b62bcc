"""What the models of the API are made of: bounded field types, closed enums, CEL rules and the model that carries them.

Every string, list and integer type here has a bound, so that the API server accepts the CEL rules' cost. Decimals are
int-or-string: the API has no floats. No enum value is a YAML 1.1 boolean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

GROUP = "paceline.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

MAX_POOLS = 8
MAX_CLASSES = 8
MAX_REPLICAS = 1000
SERVICE_NAME_MAX = 30
POOL_NAME_MAX = 20  # <service>-<pool>-<revision> stays a label of at most 63 characters

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
SERVICE_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"  # of a Kubernetes Service up to 1.35 (RFC 1035)
DNS_NAME = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule over `self`; its message is "cause; what to change".

    `field` is the path that the API server names; `paceline up` lifts what is `cluster_only`.
    """

    rule: str
    message: str
    field: str = ""
    reason: Literal["FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired"] = "FieldValueInvalid"
    cluster_only: bool = False


@dataclass(frozen=True, slots=True)
class IntOrString:
    """An integer in [least, most], or a string that matches `pattern`: how a decimal is written without floats."""

    pattern: str
    least: int
    most: int

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.union_schema(
            [
                core_schema.int_schema(strict=True, ge=self.least, le=self.most),
                core_schema.no_info_after_validator_function(self._match, core_schema.str_schema(strict=True)),
            ]
        )

    def _match(self, value: str) -> str:
        if not re.search(self.pattern, value):
            raise ValueError(f"does not match {self.pattern}")
        return value

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        bounds = {"minimum": self.least, "maximum": self.most, "pattern": self.pattern, "maxLength": 16}
        return {"x-kubernetes-int-or-string": True, **bounds}


class Model(BaseModel):
    """Frozen, camelCase on the wire, no unknown fields; its CEL rules stand in its schema node."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)
    CEL: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        node = handler.resolve_ref_schema(handler(schema))
        if cls.CEL:
            node["x-paceline-rules"] = list(cls.CEL)
        return node


def list_map(key: str) -> dict[str, Any]:
    """Server-side apply merges this list by `key`, which is unique in it."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}

DnsLabel = Annotated[str, Field(pattern=DNS_LABEL, min_length=1, max_length=SERVICE_NAME_MAX)]
ServiceName = Annotated[str, Field(pattern=SERVICE_NAME, min_length=1, max_length=SERVICE_NAME_MAX)]
ObjectName = Annotated[str, Field(pattern=DNS_NAME, min_length=1, max_length=253)]
PoolName = Annotated[str, Field(pattern=DNS_LABEL, min_length=1, max_length=POOL_NAME_MAX)]
Hash = Annotated[str, Field(pattern="^[a-z0-9]*$", max_length=64)]
Text = Annotated[str, Field(max_length=512)]
Timestamp = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
Percent = Annotated[int | str, IntOrString(r"^(100(\.0{1,3})?|[1-9][0-9]?(\.[0-9]{1,3})?)$", 1, 100)]
MeasuredPercent = Annotated[int | str, IntOrString(r"^(100(\.0{1,3})?|[0-9]{1,2}(\.[0-9]{1,3})?)$", 0, 100)]
Rate = Annotated[int | str, IntOrString(r"^[0-9]{1,7}(\.[0-9]{1,6})?$", 0, 9_999_999)]
TokenBudget = Annotated[int | str, IntOrString("^Auto$", 16, 1_048_576)]
Manifest = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
Replicas = Annotated[int, Field(ge=0, le=MAX_REPLICAS)]
Degree = Annotated[int, Field(ge=1, le=64)]
Tokens = Annotated[int, Field(ge=1, le=10_485_760)]
Milliseconds = Annotated[int, Field(ge=0, le=86_400_000)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class Topology(StrEnum):
    AUTO = "Auto"
    DISAGGREGATED = "Disaggregated"
    AGGREGATED = "Aggregated"


class Role(StrEnum):
    PREFILL = "Prefill"
    DECODE = "Decode"
    MIXED = "Mixed"


class Runtime(StrEnum):
    VLLM = "VLLM"
    SIMULATED = "Simulated"


class OnFailure(StrEnum):
    RECOMPUTE = "Recompute"
    FAIL = "Fail"


class RouterPolicy(StrEnum):
    """Member names are those of `config.PolicyName`, in capitals."""

    LEAST_MISSES = "LeastMisses"
    LEAST_PREDICTED_TTFT = "LeastPredictedTTFT"
    LMETRIC = "LMetric"
    PREFIX_AFFINITY = "PrefixAffinity"
    LEAST_REQUESTS = "LeastRequests"
    POWER_OF_TWO = "PowerOfTwo"
    ROUND_ROBIN = "RoundRobin"
    RANDOM = "Random"


class Switch(StrEnum):
    DISABLED = "Disabled"
    ENABLED = "Enabled"


class AutoscalingMode(StrEnum):
    DISABLED = "Disabled"
    RECOMMEND = "Recommend"
    ENABLED = "Enabled"


class ObjectMeta(BaseModel):
    """What Paceline reads of metadata; the rest is Kubernetes'."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)
    name: ServiceName = Field(description="At most 30 characters, a DNS label that begins with a letter.")
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    labels: dict[str, str] = Field(default={})
    annotations: dict[str, str] = Field(default={})
