"""The router's HTTP surface as an OpenAPI 3.1 document: paths, statuses, and what the router checks of a request.

What is not named of a body is the engine's to judge (request.py), and its 4xx is relayed. Pure; invariant: a body that
the document refuses, the router refuses.
"""

from __future__ import annotations

from typing import Any

from paceline_api.headers import CLIENT_TPOT_MS, CLIENT_TTFT_MS, REQUEST_ID, SLO_CLASS
from paceline_api.outcomes import Outcome

from paceline_router.request import Kind, Served

_TEXT = {"type": "string"}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["message"], "properties": {"message": _TEXT}}},
}
_CONTENT = {"type": ["string", "array", "null"], "items": {"type": "object"}}
_MESSAGE = {"type": "object", "required": ["role"], "properties": {"role": _TEXT, "content": _CONTENT}}
_TOKEN_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_PROMPT = {"anyOf": [{"type": "string", "minLength": 1}, _TOKEN_IDS]}
_USAGE = {"type": "object", "required": ["prompt_tokens"]}
_ANSWER = {"type": "object", "required": ["choices", "usage"], "properties": {"usage": _USAGE}}
_MODELS = {"type": "object", "required": ["object", "data"], "properties": {"data": {"type": "array", "minItems": 1}}}


def document(served: Served, classes: list[str]) -> dict[str, Any]:
    """Of a router that offers `served` with these SLO classes."""
    chat = {"messages": {"type": "array", "minItems": 1, "items": _MESSAGE}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Paceline router", "version": "v1"},
        "paths": {
            f"/v1/{Kind.CHAT}": _generation("chat", chat, served, classes),
            f"/v1/{Kind.COMPLETION}": _generation("complete", {"prompt": _PROMPT}, served, classes),
            "/v1/models": _reading("models", _json("The one model that is served.", _MODELS)),
            "/healthz": _reading("healthz", _plain("The process turns.")),
            "/readyz": _reading("readyz", _plain("It can serve."), {"503": _plain("It cannot, and why.")}),
            "/metrics": _reading("metrics", _plain("Prometheus' text format.")),
        },
    }


def _generation(name: str, own: dict[str, Any], served: Served, classes: list[str]) -> dict[str, Any]:
    fields = {
        **own,
        "model": {"type": ["string", "null"], "enum": [served.model, None]},
        "max_tokens": _limit(served),
        "max_completion_tokens": _limit(served),
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {"type": ["object", "null"]},
        "n": {"enum": [1, None]},
    }
    body = {"type": "object", "required": list(own), "properties": fields}
    limit = {"type": "number", "exclusiveMinimum": 0}
    return {
        "post": {
            "operationId": name,
            "parameters": [
                _header(SLO_CLASS, {"type": "string", "enum": classes}),
                _header(CLIENT_TTFT_MS, limit),
                _header(CLIENT_TPOT_MS, limit),
                _header(REQUEST_ID, _TEXT),
            ],
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {
                "200": {
                    "description": "The answer, whole or as server-sent events.",
                    "content": {"application/json": {"schema": _ANSWER}, "text/event-stream": {"schema": _TEXT}},
                },
                "404": _json("Another model.", _ERROR),
                "405": _json("Another method.", _ERROR),
                "413": _json("A body above the limit.", _ERROR),
                **{str(o.http_status): _json(o, _ERROR) for o in Outcome if o.http_status not in (200, 499)},
            },
        }
    }


def _reading(name: str, good: dict[str, Any], others: dict[str, Any] | None = None) -> dict[str, Any]:
    refused = {"400": _json("No HTTP.", _ERROR), "405": _json("Another method.", _ERROR)}
    return {"get": {"operationId": name, "responses": {"200": good, **refused, **(others or {})}}}


def _limit(served: Served) -> dict[str, Any]:
    return {"type": ["integer", "null"], "minimum": 1, "maximum": served.max_context_tokens - 1}


def _header(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": schema}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _plain(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"text/plain": {"schema": _TEXT}}}
