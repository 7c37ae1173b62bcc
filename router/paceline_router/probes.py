"""The port of a process that serves no requests, operator and autoscaler: /healthz and /metrics.

Healthy is a process whose event loop turns; waiting for the Lease is healthy too.
"""

from __future__ import annotations

from paceline_engine.http1 import Exchange
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_PLAIN = b"text/plain; charset=utf-8"


class Probes:
    """The handler of the HTTP server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def handle(self, exchange: Exchange) -> None:
        match exchange.path:
            case "/healthz":
                exchange.respond(200, b"ok\n", content_type=_PLAIN)
            case "/metrics":
                exchange.respond(200, generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST.encode())
            case _:
                exchange.respond(404, b"see /healthz and /metrics\n", content_type=_PLAIN)
