"""An OTLP/HTTP collector for tests: keeps the spans that are posted to it, decoded, and the bytes that they came in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from paceline_engine.http1 import Exchange, serve

Value = str | int | float | bool
ERROR = 2  # Status.STATUS_CODE_ERROR


@dataclass(frozen=True, slots=True)
class Got:
    """One span as it arrived; ids in hex, empty without a parent; times in ns of the wall clock."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Value]
    events: dict[str, int]
    failed: bool

    @property
    def context(self) -> str:
        """The traceparent that names it, without the flags."""
        return f"00-{self.trace_id}-{self.span_id}"


@dataclass(slots=True)
class OtlpCollector:
    """Listens on `port`. `status`: of its answers, None: it never answers."""

    port: int = 0
    status: int | None = 200
    spans: list[Got] = field(default_factory=list)
    resource: dict[str, Value] = field(default_factory=dict)
    raw: bytes = b""
    posted: asyncio.Event = field(default_factory=asyncio.Event)  # set with the first post

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def server_span(self) -> Got:
        """The one of the only request."""
        (found,) = [span for span in self.spans if span.kind == "SERVER"]
        return found

    @property
    def legs(self) -> list[Got]:
        """Of the only request, in the order of their starts."""
        found = [span for span in self.spans if span.kind == "CLIENT"]
        return sorted(found, key=lambda span: span.start_ns)

    def handle(self, exchange: Exchange) -> None:
        assert (exchange.method, exchange.path) == ("POST", "/v1/traces")
        self.posted.set()
        if self.status is None:
            return
        if self.status == 200:
            self.raw += exchange.body
            self._keep(ExportTraceServiceRequest.FromString(exchange.body))
        exchange.respond(self.status)

    def _keep(self, request: ExportTraceServiceRequest) -> None:
        for group in request.resource_spans:
            self.resource = _values(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans += map(_got, scope.spans)


@asynccontextmanager
async def collector(status: int | None = 200) -> AsyncIterator[OtlpCollector]:
    made = OtlpCollector(status=status)
    server = await serve(made.handle, "127.0.0.1", 0)
    made.port = server.port
    try:
        yield made
    finally:
        await server.close()


def _got(span: Span) -> Got:
    return Got(
        span.name,
        Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.trace_state,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _values(span.attributes),
        {event.name: event.time_unix_nano for event in span.events},
        span.status.code == ERROR,
    )


def _values(attributes: Iterable[KeyValue]) -> dict[str, Value]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in attributes}
