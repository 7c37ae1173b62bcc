"""The router's configuration: the one file that `paceline up` and the operator write and the router reads (DESIGN §8).

It holds the service, its classes, the policy and where the engines are; everything else about an engine the router
learns from that engine's /metrics. Times are seconds. Invariant: a file that `RouterConfig.read` returns is whole and
consistent (the default class exists, names are unique), so the router checks nothing again.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from paceline_api.slo import SLOClass

RoleName = Literal["prefill", "decode", "mixed"]
PolicyName = Literal[
    "least-misses",
    "least-predicted-ttft",
    "lmetric",
    "prefix-affinity",
    "least-requests",
    "power-of-two",
    "round-robin",
    "random",
]
DEFAULT_POLICY: PolicyName = "least-misses"
Name = Annotated[str, Field(min_length=1, max_length=253)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
OptionalSeconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ConfigError(Exception):
    """The configuration cannot be used; one line per problem."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.port == 0 or parts.path not in ("", "/"):
        raise ValueError("must be http://HOST:PORT without a path")
    return url.rstrip("/")


def _collector_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or parts.query or parts.fragment:
        raise ValueError("must be http://HOST:PORT or https://HOST:PORT, and may have a path")
    return url


class ClassConfig(_Part):
    name: Name
    ttft_s: Seconds
    tpot_s: Seconds
    target_ratio: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_stall_s: OptionalSeconds = 0.0  # 0: the default of slo.SLOClass
    ttft_s_per_1k_prompt_tokens: OptionalSeconds = 0.0
    priority: int = 0  # in the waiting room: the lower goes first

    @classmethod
    def of(cls, slo: SLOClass, priority: int = 0) -> Self:
        return cls(
            priority=priority,
            name=slo.name,
            ttft_s=slo.ttft_s,
            tpot_s=slo.tpot_s,
            target_ratio=slo.target_ratio,
            max_stall_s=slo.max_stall_s,
            ttft_s_per_1k_prompt_tokens=slo.ttft_s_per_1k_prompt_tokens,
        )

    def to_slo(self) -> SLOClass:
        return SLOClass(**self.model_dump(exclude={"priority"}))


class ReplicaConfig(_Part):
    name: Name
    url: Annotated[str, AfterValidator(_http_url)]
    role: RoleName
    pool: Name
    revision: str = ""
    gpus: Annotated[int, Field(ge=1)] = 1


class StaticDiscovery(_Part):
    kind: Literal["static"] = "static"
    replicas: tuple[ReplicaConfig, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for what, values in (("name", [r.name for r in self.replicas]), ("url", [r.url for r in self.replicas])):
            if twice := [v for v, n in Counter(values).items() if n > 1]:
                raise ValueError(f"replicas share the {what} {', '.join(twice)}; give each its own")
        return self


class KubernetesDiscovery(_Part):
    kind: Literal["kubernetes"] = "kubernetes"
    namespace: Name
    service: Name


class KVTransferConfig(_Part):
    timeout_s: Seconds = 5.0
    on_failure: Literal["recompute", "fail"] = "recompute"
    lease_s: Seconds = 30.0  # how long a prefill engine keeps KV that nobody has fetched


class LimitsConfig(_Part):
    max_body_bytes: Annotated[int, Field(ge=1024)] = 16 * 2**20
    request_timeout_s: Seconds = 3600.0
    drain_timeout_s: Seconds = 300.0


class TracingConfig(_Part):
    """Where the router sends OpenTelemetry traces; without it there are none."""

    endpoint: Annotated[str, AfterValidator(_collector_url)]  # of an OTLP/HTTP collector, such as http://collector:4318
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0  # of the requests whose clients decided nothing

    @property
    def traces_url(self) -> str:
        """Where spans are posted: the endpoint, with OTLP's own path where it names none."""
        parts = urlsplit(self.endpoint)
        return self.endpoint if parts.path not in ("", "/") else parts._replace(path="/v1/traces").geturl()


class TLSConfig(_Part):
    """PEM files, read again when they change: the certificate, with what leads to its authority, and its key."""

    certificate: Path
    key: Path


LIVE_FIELDS = frozenset({"classes", "default_class"})  # what a running router takes on; the rest is read at its start


class RouterConfig(_Part):
    """One service as its routers see it."""

    service: Name
    namespace: str = ""
    model: Name  # the served name: the `model` of requests
    max_context_tokens: Annotated[int, Field(ge=1)]
    default_class: Name
    classes: Annotated[tuple[ClassConfig, ...], Field(min_length=1)]
    policy: PolicyName = DEFAULT_POLICY
    local_prefill: bool = False  # decode replicas may compute prompts wherever that is the shorter way
    waiting_room: bool = False  # requests wait while serving them would make others miss, and late ones are shed
    discovery: Annotated[StaticDiscovery | KubernetesDiscovery, Field(discriminator="kind")]
    kv_transfer: KVTransferConfig = KVTransferConfig()
    limits: LimitsConfig = LimitsConfig()
    tracing: TracingConfig | None = None
    tls: TLSConfig | None = None  # None: plain HTTP
    api_keys_dir: Path | None = None  # a file for each key, read again when it changes; None: requests need no key

    @model_validator(mode="after")
    def _classes_are_consistent(self) -> Self:
        names = [c.name for c in self.classes]
        if len(set(names)) < len(names):
            raise ValueError(f"classes share a name ({', '.join(names)}); give each its own")
        if self.default_class not in names:
            raise ValueError(f"default_class {self.default_class!r} is none of the classes ({', '.join(names)})")
        return self

    @model_validator(mode="after")
    def _prompts_may_be_computed_locally(self) -> Self:
        if self.local_prefill and (self.policy != DEFAULT_POLICY or self.kv_transfer.on_failure == "fail"):
            raise ValueError(f"local_prefill needs the policy {DEFAULT_POLICY} and kv_transfer.on_failure recompute")
        return self

    @property
    def gpus_by_role(self) -> dict[RoleName, int]:
        """GPUs of the static replicas of each role; empty where Kubernetes knows them."""
        gpus: dict[RoleName, int] = {}
        if isinstance(self.discovery, StaticDiscovery):
            for replica in self.discovery.replicas:
                gpus[replica.role] = gpus.get(replica.role, 0) + replica.gpus
        return gpus

    def slo_classes(self) -> dict[str, SLOClass]:
        """Class name → objective."""
        return {c.name: c.to_slo() for c in self.classes}

    def to_json(self) -> str:
        """Without what nobody asked for, so that routers of an earlier release, which go on, know all that is there."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """The configuration in `path`; ConfigError with one line per problem, each with the file and the field."""
        try:
            text = Path(path).read_bytes()
        except OSError as e:
            raise ConfigError(f"{path}: cannot be read: {e.strerror}") from e
        try:
            return cls.model_validate_json(text)
        except ValidationError as e:
            lines = [
                f"{path}: {'.'.join(map(str, p['loc'])) or 'file'}: {p['msg'].removeprefix('Value error, ')}"
                for p in e.errors(include_url=False)
            ]
            raise ConfigError("\n".join(lines)) from e
