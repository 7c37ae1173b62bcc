"""The bodies that engines get for one client's request: whole, leg 1 and leg 2.

Invariant: KV parameters that a client sent reach no engine (they could crash one, DESIGN §4), nor does a model's name;
every streamed leg asks for `usage` where an engine does not give it unasked, and no engine is asked to keep a response.
Does no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import orjson
from paceline_engine.pd import KV_PARAMS, decode_leg, prefill_leg, prefill_leg_of_response

from paceline_router.attempts import Leg
from paceline_router.request import Kind, Request

# Of a client's body for the router alone. It has judged the model's name, which may be new to engines that are still
# there: without one an engine serves what it has.
OURS_ALONE = frozenset({KV_PARAMS, "model"})


class LegBodies:
    """Built from the decoded body; the bytes as they came are kept while nothing has to be changed in them."""

    __slots__ = ("_body", "_is_response", "_raw")

    def __init__(self, body: Mapping[str, Any], request: Request, raw: bytes) -> None:
        ours: dict[str, Any] = {}
        self._is_response = request.kind is Kind.RESPONSES
        if self._is_response and body.get("store") is not False:  # what an engine keeps, it keeps for ever
            ours["store"] = False
        elif request.stream and not request.usage_wanted and not self._is_response:
            ours["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        self._raw: bytes | None = None
        if ours or not OURS_ALONE.isdisjoint(body):
            self._body: Mapping[str, Any] = {k: v for k, v in body.items() if k not in OURS_ALONE} | ours
        else:
            self._body, self._raw = body, raw

    def of(self, leg: Leg, kv_params: Mapping[str, Any]) -> bytes:
        """Of one leg; leg 2 takes leg 1's parameters along, as they came."""
        match leg:
            case Leg.PREFILL:
                make = prefill_leg_of_response if self._is_response else prefill_leg
                return orjson.dumps(make(self._body))
            case Leg.FETCH:
                return orjson.dumps(decode_leg(self._body, kv_params))
            case Leg.WHOLE:
                if self._raw is None:
                    self._raw = orjson.dumps(self._body)
                return self._raw
            case _ as never:
                assert_never(never)
