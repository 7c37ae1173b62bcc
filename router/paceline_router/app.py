"""The router's HTTP surface: which path goes where. Invariant: a handler answers or hands on, and decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import orjson
from paceline_api.outcomes import error_body
from paceline_engine.http1 import Exchange, Header
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from paceline_router.console.serve import Console
from paceline_router.dispatcher import Dispatcher
from paceline_router.openapi import document
from paceline_router.request import Kind
from paceline_router.shell import Shell

_PLAIN = b"text/plain; charset=utf-8"

Route = Callable[[Exchange], None]


class App:
    """The handler of the HTTP server."""

    def __init__(self, shell: Shell, dispatcher: Dispatcher, console: Console, registry: CollectorRegistry) -> None:
        self._shell = shell
        self._registry = registry
        self._models = orjson.dumps(
            {
                "object": "list",
                "data": [
                    {
                        "id": shell.config.model,
                        "object": "model",
                        "owned_by": "paceline",
                        "max_model_len": shell.config.max_context_tokens,
                    }
                ],
            }
        )
        self._routes: dict[str, tuple[str, Route]] = {
            f"/v1/{Kind.CHAT}": ("POST", partial(dispatcher.accept, kind=Kind.CHAT)),
            f"/v1/{Kind.COMPLETION}": ("POST", partial(dispatcher.accept, kind=Kind.COMPLETION)),
            "/v1/models": ("GET", self._list_models),
            "/healthz": ("GET", self._healthz),
            "/health": ("GET", self._healthz),  # vLLM's path: load generators ask there first
            "/openapi.json": ("GET", self._openapi),
            "/readyz": ("GET", self._readyz),
            "/metrics": ("GET", self._metrics),
            "/": ("GET", console.page),
            "/console.json": ("GET", console.figures),
        }

    def handle(self, exchange: Exchange) -> None:
        method, route = self._routes.get(exchange.path, ("", None))
        if route is None:
            self._error(exchange, 404, f"there is nothing at {exchange.path[:200]}; see {', '.join(self._routes)}")
        elif exchange.method == method or (exchange.method == "HEAD" and method == "GET"):
            route(exchange)
        else:
            allowed = b"GET, HEAD" if method == "GET" else b"POST"
            self._error(exchange, 405, f"{exchange.path} takes {method}", (b"allow", allowed))

    def _list_models(self, exchange: Exchange) -> None:
        exchange.respond(200, self._models)

    def _healthz(self, exchange: Exchange) -> None:
        exchange.respond(200, b"ok\n", content_type=_PLAIN)

    def _readyz(self, exchange: Exchange) -> None:
        cause = self._shell.not_ready
        if cause:
            exchange.respond(503, f"{cause}\n".encode(), content_type=_PLAIN)
        else:
            exchange.respond(200, b"ready\n", content_type=_PLAIN)

    def _metrics(self, exchange: Exchange) -> None:
        exchange.respond(200, generate_latest(self._registry), content_type=CONTENT_TYPE_LATEST.encode())

    def _openapi(self, exchange: Exchange) -> None:
        exchange.respond(200, orjson.dumps(document(self._shell.served, list(self._shell.classes))))

    def _error(self, exchange: Exchange, status: int, message: str, *headers: Header) -> None:
        body = error_body("not_found" if status == 404 else "invalid_request", message)
        exchange.respond(status, orjson.dumps(body), headers=headers)
