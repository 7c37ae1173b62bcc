"""The router's HTTP surface as an OpenAPI 3.1 document: paths, statuses, and what the router checks of a request.

What is not named of a body is the engine's to judge (request.py), and its 4xx is relayed. Pure; invariant: a body that
the document refuses, the router refuses.
"""

from __future__ import annotations

from collections.abc import Collection
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
_ITEM = {"type": "object", "properties": {"content": _CONTENT}}
_RESPONSE_INPUT = {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": _ITEM}]}
_RESPONSE = {
    "type": "object",
    "required": ["object", "output", "usage"],
    "properties": {"object": {"const": "response"}},
}
_EMBEDDED = {"anyOf": [_PROMPT, {"type": "array", "minItems": 1, "items": {"anyOf": [_TEXT, _TOKEN_IDS]}}]}
_EMBEDDINGS = {"type": "object", "required": ["data", "usage"], "properties": {"usage": _USAGE}}
_TOKENS = {"type": "object", "required": ["count", "max_model_len", "tokens"]}
_DETOKENIZED = {"type": "object", "required": ["prompt"], "properties": {"prompt": _TEXT}}
_NEVER = {"enum": [None]}
_STREAMS = {
    "stream": {"type": ["boolean", "null"]},
    "stream_options": {"type": ["object", "null"]},
    "n": {"enum": [1, None]},
}
_MODELS = {"type": "object", "required": ["object", "data"], "properties": {"data": {"type": "array", "minItems": 1}}}


def document(served: Served, classes: list[str]) -> dict[str, Any]:
    """Of a router that offers `served` with these SLO classes."""
    limits = {name: _limit(served) for name in ("max_tokens", "max_completion_tokens")}
    chat = {"messages": {"type": "array", "minItems": 1, "items": _MESSAGE}}
    response = {"max_output_tokens": _limit(served), "background": {"enum": [False, None]}}
    response |= {"instructions": {"type": ["string", "null"]}, "previous_response_id": _NEVER, "conversation": _NEVER}
    bodies = {
        Kind.CHAT: ("chat", _body(served, chat, {**limits, **_STREAMS}), _ANSWER),
        Kind.COMPLETION: ("complete", _body(served, {"prompt": _PROMPT}, {**limits, **_STREAMS}), _ANSWER),
        Kind.RESPONSES: ("respond", _body(served, {"input": _RESPONSE_INPUT}, {**response, **_STREAMS}), _RESPONSE),
        Kind.EMBEDDINGS: ("embed", _body(served, {"input": _EMBEDDED}, {}), _EMBEDDINGS),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Paceline router", "version": "v1"},
        "paths": {
            **{f"/v1/{kind}": _generation(*bodies[kind], classes) for kind in Kind},
            "/tokenize": _passing("tokenize", _body(served, {}, {}), _TOKENS),
            "/detokenize": _passing("detokenize", _body(served, {}, {}), _DETOKENIZED),
            "/v1/models": _reading("models", _json("The one model that is served.", _MODELS)),
            "/healthz": _reading("healthz", _plain("The process turns.")),
            "/readyz": _reading("readyz", _plain("It can serve."), {"503": _plain("It cannot, and why.")}),
            "/metrics": _reading("metrics", _plain("Prometheus' text format.")),
        },
    }


def asking_for_keys(document: dict[str, Any], open_paths: Collection[str]) -> dict[str, Any]:
    """The same of a router that wants an API key everywhere else."""
    refused = {"401": _json("The API key is missing or wrong.", _ERROR)}
    paths = {
        path: {
            method: {**operation, "security": [{"key": []}], "responses": {**operation["responses"], **refused}}
            for method, operation in operations.items()
        }
        for path, operations in document["paths"].items()
        if path not in open_paths
    }
    schemes = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return {**document, "paths": {**document["paths"], **paths}, "components": schemes}


def _body(served: Served, required: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    model = {"type": ["string", "null"], "enum": [served.model, None]}
    return {"type": "object", "required": list(required), "properties": {**required, **others, "model": model}}


def _generation(name: str, body: dict[str, Any], answer: dict[str, Any], classes: list[str]) -> dict[str, Any]:
    limit = {"type": "number", "exclusiveMinimum": 0}
    good = _json("The answer, whole or as server-sent events.", answer)
    if "stream" in body["properties"]:
        good["content"]["text/event-stream"] = {"schema": _TEXT}
    headers = [
        _header(SLO_CLASS, {"type": "string", "enum": classes}),
        _header(CLIENT_TTFT_MS, limit),
        _header(CLIENT_TPOT_MS, limit),
    ]
    return _posting(name, body, good, headers, [o for o in Outcome if o.http_status not in (200, 499)])


def _passing(name: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    outcomes = [Outcome.REJECTED, Outcome.NO_ENDPOINT, Outcome.UPSTREAM_FAILED, Outcome.TIMED_OUT]
    return _posting(name, body, _json("An engine's answer.", answer), [], outcomes)


def _posting(
    name: str, body: dict[str, Any], good: dict[str, Any], headers: list[dict[str, Any]], outcomes: list[Outcome]
) -> dict[str, Any]:
    return {
        "post": {
            "operationId": name,
            "parameters": [*headers, _header(REQUEST_ID, _TEXT)],
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {
                "200": good,
                "404": _json("Another model, or nothing that the engines offer.", _ERROR),
                "405": _json("Another method.", _ERROR),
                "413": _json("A body above the limit.", _ERROR),
                **{str(o.http_status): _json(o, _ERROR) for o in outcomes},
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
