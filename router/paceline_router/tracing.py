"""Traces of requests, sent to an OpenTelemetry collector. Nothing else imports OpenTelemetry; spans.py has the words.

A thread of the SDK's sends finished spans in batches; requests never wait for it. At most QUEUE_SPANS wait, more are
dropped and counted, so a collector that is away costs spans and nothing else. Invariant: every span of a sampled
request is counted once, as sent, failed or dropped, or still waits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from opentelemetry import trace as otel
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from paceline_api.config import KubernetesDiscovery, RouterConfig, TracingConfig
from paceline_api.headers import TRACEPARENT, TRACESTATE
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from paceline_router import spans
from paceline_router.attempts import Fault, Leg
from paceline_router.metrics import Counters
from paceline_router.replica import Replica
from paceline_router.spans import Ending, Header, Received, Trace

QUEUE_SPANS = 8192  # some 5 kB each: 40 MB while a collector is away
BATCH_SPANS = 256
LONGEST_VALUE = 256  # characters of an attribute: clients choose some of them
DELAY_S = 1.0  # a finished span is sent within this time
FLUSH_S = 2.0  # wall: for the last spans, when the router stops
# Encoding a batch holds the interpreter: so long, and not Python's 5 ms, may a request wait for it at a time.
SWITCH_INTERVAL_S = 0.0005

_log = logging.getLogger(__name__)
_PROPAGATOR = TraceContextTextMapPropagator()


class Exporter(SpanExporter):
    """Counts what is handed over and what becomes of it. Only the SDK's thread calls `export`."""

    def __init__(self, inner: SpanExporter, counts: Counters) -> None:
        self.taken = 0
        self._inner = inner
        self._counts = counts
        for result in ("sent", "failed", "dropped"):
            counts.begin(result)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            self._counts.add("sent" if result is SpanExportResult.SUCCESS else "failed", count=len(spans))
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


class Queue(BatchSpanProcessor):
    """Takes finished spans from the event loop while fewer than QUEUE_SPANS wait. Drops the newest, and counts them."""

    def __init__(self, exporter: Exporter, counts: Counters) -> None:
        super().__init__(exporter, QUEUE_SPANS, DELAY_S * 1000, BATCH_SPANS)
        self._exporter = exporter
        self._counts = counts
        self._given = 0

    @property
    def waiting(self) -> int:
        """Spans whose fate is open."""
        values = self._counts.values
        return self._given - values["sent",] - values["failed",]

    def on_end(self, span: ReadableSpan) -> None:
        if self._given - self._exporter.taken >= QUEUE_SPANS:
            self._counts.add("dropped")
            return
        self._given += 1
        super().on_end(span)


class SpanCounts(Collector):
    """`paceline_trace_spans_total`, with the service's labels."""

    def __init__(self, service: str, namespace: str) -> None:
        self.spans = Counters("paceline_trace_spans", "Finished spans of traces, by what became of them.", ("result",))
        self._service = (service, namespace)

    def collect(self) -> Iterator[Metric]:
        yield self.spans.collect(self._service)


class Tracing:
    """The tracer of one router, to be closed when nothing is in flight any more."""

    def __init__(self, config: RouterConfig, to: TracingConfig) -> None:
        self.counts = SpanCounts(config.service, config.namespace)
        self._model = config.model
        self._exporter = Exporter(OTLPSpanExporter(endpoint=to.traces_url), self.counts.spans)
        self._provider = TracerProvider(
            ParentBased(TraceIdRatioBased(to.sample_ratio)),
            resource(config),
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_span_attribute_length=LONGEST_VALUE),
        )
        self._queue = Queue(self._exporter, self.counts.spans)
        self._provider.add_span_processor(self._queue)
        self._tracer = self._provider.get_tracer("paceline_router")

    def begin(self, received: Received) -> Trace:
        """The trace of a request, continued from its client's context or begun here."""
        path = received.path
        span = self._tracer.start_span(
            f"{spans.operation(path)} {self._model}",
            _PROPAGATOR.extract(_carrier(received)),
            SpanKind.SERVER,
            spans.at_begin(path, self._model),
            start_time=time.time_ns() - round((time.monotonic() - received.received_at) * 1e9),
        )
        if not span.is_recording():
            return Trace(_headers(span))
        return Recorded(self._tracer, span, path, self._model)

    async def close(self, within_s: float = FLUSH_S) -> None:
        """Sends what waits, for `within_s` (wall) at most; what is not sent then is lost."""
        flush = threading.Thread(target=self._provider.shutdown, name="flush-spans", daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, within_s)
        if flush.is_alive():
            _log.warning("stopped with spans=%d not sent", self._queue.waiting)
            self._exporter.shutdown()  # nothing is tried again


class Recorded(Trace):
    """A request that is sampled."""

    __slots__ = ("_leg", "_model", "_path", "_span", "_tracer")

    records = True

    def __init__(self, tracer: otel.Tracer, span: otel.Span, path: str, model: str) -> None:
        super().__init__()
        self._tracer = tracer
        self._span = span
        self._path = path
        self._model = model
        self._leg: otel.Span | None = None

    def leg(self, leg: Leg, replica: Replica, host: str, port: int) -> tuple[Header, ...]:
        self._leg = span = self._tracer.start_span(
            f"{leg} {self._model}",
            otel.set_span_in_context(self._span),
            SpanKind.CLIENT,
            spans.of_leg(leg, replica, host, port, self._path, self._model),
        )
        return _headers(span)

    def leg_over(self, result: str, fault: Fault | None) -> None:
        if self._leg is None:
            return
        attributes, failed = spans.leg_end(result, fault)
        _finish(self._leg, attributes, failed)
        self._leg = None

    def first_token(self) -> None:
        self._span.add_event(spans.FIRST_TOKEN)

    def end(self, ending: Ending) -> None:
        _finish(self._span, spans.at_end(ending), spans.has_failed(ending))


def connect(config: RouterConfig, to: TracingConfig) -> Tracing:
    """Starts the thread that sends spans. ValueError where OTEL_* variables of the environment make no sense."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # a line a failed batch, not one a try
    return Tracing(config, to)


def resource(config: RouterConfig, environ: Mapping[str, str] = os.environ) -> Resource:
    """Who sends; OTEL_RESOURCE_ATTRIBUTES adds to it. A pod's host name is its own."""
    pod = environ.get("POD_NAME", "")
    if not pod and isinstance(config.discovery, KubernetesDiscovery):
        pod = environ.get("HOSTNAME", "")
    own = {
        "service.name": "paceline-router",
        "service.namespace": config.namespace,
        "service.instance.id": pod,
        "k8s.pod.name": pod,
        "k8s.namespace.name": config.namespace,
        "paceline.llmservice": config.service,
    }
    return Resource.create({name: value for name, value in own.items() if value})


def _carrier(received: Received) -> dict[str, str]:
    found = {name: received.header(name.encode()) for name in (TRACEPARENT, TRACESTATE)}
    return {name: value.decode("latin-1") for name, value in found.items() if value is not None}


def _headers(span: otel.Span) -> tuple[Header, ...]:
    """The trace context of W3C that names `span` as the parent of what its receiver does."""
    context = span.get_span_context()
    parent = b"00-%032x-%016x-%02x" % (context.trace_id, context.span_id, context.trace_flags)
    state = context.trace_state.to_header()
    named: Header = (TRACEPARENT.encode(), parent)
    return (named, (TRACESTATE.encode(), state.encode())) if state else (named,)


def _finish(span: otel.Span, attributes: spans.Attributes, failed: bool) -> None:
    span.set_attributes(attributes)
    if failed:
        span.set_status(StatusCode.ERROR)
    span.end()
