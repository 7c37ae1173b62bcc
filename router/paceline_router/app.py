"""The router's HTTP surface: which path goes where, and which needs an API key.

Invariants: a handler answers or hands on, and decides nothing; where there are keys, all but OPEN needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import orjson
from paceline_api.outcomes import error_body
from paceline_engine.http1 import Exchange, Header, Refusal, find_header
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from paceline_router.api_keys import APIKeys
from paceline_router.console.serve import Console
from paceline_router.dispatcher import BEARER, NO_KEY, Dispatcher
from paceline_router.openapi import asking_for_keys, document
from paceline_router.passthrough import PATHS
from paceline_router.request import Kind
from paceline_router.shell import Shell

OPEN = frozenset({"/healthz", "/health", "/readyz", "/metrics", "/openapi.json", "/", "/console.json"})
_PLAIN = b"text/plain; charset=utf-8"

Route = Callable[[Exchange], None]


class App:
    """The handler of the HTTP server."""

    def __init__(
        self,
        shell: Shell,
        dispatcher: Dispatcher,
        console: Console,
        registry: CollectorRegistry,
        keys: APIKeys | None = None,
    ) -> None:
        self._shell = shell
        self._dispatcher = dispatcher
        self._keys = keys
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
            **{f"/v1/{kind}": ("POST", partial(dispatcher.accept, kind=kind)) for kind in Kind},
            **dict.fromkeys(PATHS, ("POST", dispatcher.pass_on)),
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
        if self._keys is not None and exchange.path not in OPEN:
            owner = self._keys.owner_of(exchange.header(b"authorization"))
            if owner is None:
                self._dispatcher.turn_away(exchange)
                return
            exchange.caller = owner
        method, route = self._routes.get(exchange.path, ("", None))
        if route is None:
            self._error(exchange, 404, f"there is nothing at {exchange.path[:200]}; see {', '.join(self._routes)}")
        elif exchange.method == method or (exchange.method == "HEAD" and method == "GET"):
            route(exchange)
        else:
            allowed = b"GET, HEAD" if method == "GET" else b"POST"
            self._error(exchange, 405, f"{exchange.path} takes {method}", (b"allow", allowed))

    def judge(self, headers: Sequence[Header]) -> Refusal | None:
        """Before a large body is read: whoever has no key is told so, and holds no memory of ours."""
        if self._keys is None or self._keys.owner_of(find_header(headers, b"authorization")) is not None:
            return None
        return Refusal(NO_KEY.status, NO_KEY.message, (BEARER,))

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
        found = document(self._shell.served, list(self._shell.classes))
        exchange.respond(200, orjson.dumps(asking_for_keys(found, OPEN) if self._keys else found))

    def _error(self, exchange: Exchange, status: int, message: str, *headers: Header) -> None:
        body = error_body("not_found" if status == 404 else "invalid_request", message)
        exchange.respond(status, orjson.dumps(body), headers=headers)
