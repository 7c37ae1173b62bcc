"""`spec.router` of an LLMService: how its routers pick, who may ask them, and how they are reached and traced.

Secrets are named here and read by routers alone, from where the kubelet mounts them. A rule over several fields is CEL,
as in `v1alpha1`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from paceline_api.schema import MeasuredPercent, Model, ObjectName, RouterPolicy, Rule, Switch

_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
COLLECTOR = f"^https?://[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?(:{_PORT})?(/[-._~/A-Za-z0-9]*)?$"


class APIKeysSpec(Model):
    secret_name: ObjectName = Field(
        description="Secret in the namespace of the service: each entry's value is one key, its name the key's owner."
    )


class TLSSpec(Model):
    secret_name: ObjectName = Field(
        description="Secret of type kubernetes.io/tls in the namespace of the service: tls.crt and tls.key."
    )


class TracingSpec(Model):
    CEL = (
        Rule(
            f"self.endpoint.matches('{COLLECTOR}')",
            "endpoint is no collector's address; write http://HOST:PORT or https://HOST:PORT, mostly of port 4318",
            ".endpoint",
        ),
    )
    endpoint: Annotated[str, Field(min_length=8, max_length=512)] = Field(
        description="OTLP/HTTP collector of OpenTelemetry traces, such as http://collector.monitoring:4318."
    )
    sample_percent: MeasuredPercent = Field(
        default=100, description='Share of requests that are traced where the client decides nothing: 10 or "0.5".'
    )


class RouterSpec(Model):
    CEL = (
        Rule(
            "!has(self.localPrefill) || self.localPrefill == 'Disabled' || "
            "!has(self.policy) || self.policy == 'LeastMisses'",
            "localPrefill needs predictions that this policy does not make; remove policy, or disable localPrefill",
            ".localPrefill",
        ),
        Rule(
            "!has(self.apiKeys) || !has(self.tls) || self.apiKeys.secretName != self.tls.secretName",
            "apiKeys and tls name one Secret, whose every entry would be a key; give each its own",
            ".apiKeys",
        ),
    )
    replicas: Annotated[int, Field(ge=1, le=64)] = Field(default=2, description="Routers behind the service.")
    policy: RouterPolicy = Field(
        default=RouterPolicy.LEAST_MISSES,
        description="How a request's replicas are picked: by expected misses, or as one of the rivals does.",
    )
    local_prefill: Switch = Field(
        default=Switch.DISABLED, description="Decode replicas compute prompts wherever that is the shorter way."
    )
    waiting_room: Switch = Field(
        default=Switch.DISABLED,
        description="Requests wait while serving them would make others miss, and late ones are refused (429).",
    )
    api_keys: APIKeysSpec | None = Field(
        default=None, description="Requests need one of these keys (Authorization: Bearer); absent: they need none."
    )
    tls: TLSSpec | None = Field(default=None, description="Routers serve HTTPS; absent: HTTP.")
    tracing: TracingSpec | None = Field(default=None, description="Requests are traced; absent: none is.")
