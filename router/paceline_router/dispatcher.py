"""Takes requests in: decode, parse, admit, then a job; or an answer at once for what is refused.

Invariant: every request for tokens that comes in here is counted received once and gets exactly one outcome; every
other one is counted once with its status (passthrough.py).
"""

from __future__ import annotations

import re
import time
from itertools import count
from typing import Any

import orjson
from paceline_api.headers import CLIENT_TPOT_MS, CLIENT_TTFT_MS, SLO_CLASS
from paceline_api.outcomes import Outcome, error_body
from paceline_engine.http1 import Exchange

from paceline_router.admission import admit
from paceline_router.job import Job
from paceline_router.passthrough import PATHS, Errand
from paceline_router.request import Kind, Rejected, parse, passing_fault
from paceline_router.shell import Shell
from paceline_router.spans import Ending

NO_KEY = Rejected("the API key is missing or wrong; send Authorization: Bearer KEY", None, 401, "invalid_api_key")
BEARER = (b"www-authenticate", b"Bearer")
NO_CLASS = ""  # slo_class of what was refused before its class was known
_CLASS, _TTFT, _TPOT = (name.encode() for name in (SLO_CLASS, CLIENT_TTFT_MS, CLIENT_TPOT_MS))
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")


class Dispatcher:
    """The border between the HTTP server and jobs."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._ids = count(1)
        self._turns = count()

    def accept(self, exchange: Exchange, kind: Kind) -> None:
        """One request for tokens."""
        accepted_at = time.monotonic()
        id_ = self._request_id(exchange.header(b"x-request-id"))
        shell = self._shell
        admitted = admit(
            _text(exchange.header(_CLASS)),
            _text(exchange.header(_TTFT)),
            _text(exchange.header(_TPOT)),
            shell.classes,
            shell.config.default_class,
        )
        if isinstance(admitted, Rejected):
            self._refuse(exchange, id_, NO_CLASS, admitted)
            return
        body = _decoded(exchange.body)
        request = body if isinstance(body, Rejected) else parse(kind, body, shell.served)
        if isinstance(request, Rejected):
            self._refuse(exchange, id_, admitted.slo.name, request)
            return
        shell.door.arrive(Job(shell, exchange, body, request, admitted, id_, accepted_at))

    def pass_on(self, exchange: Exchange) -> None:
        """A request that any engine can answer without computing tokens."""
        id_ = self._request_id(exchange.header(b"x-request-id"))
        body = _decoded(exchange.body)
        why = body if isinstance(body, Rejected) else passing_fault(body, self._shell.served)
        if why is not None:
            self._shell.metrics.passthrough.add(exchange.path, str(why.status))
            _answer(exchange, id_, why)
            return
        Errand(self._shell, exchange, body, id_, next(self._turns)).start()

    def turn_away(self, exchange: Exchange) -> None:
        """A request without an API key of the service."""
        id_ = self._request_id(exchange.header(b"x-request-id"))
        if exchange.path in PATHS:
            self._shell.metrics.passthrough.add(exchange.path, str(NO_KEY.status))
            _answer(exchange, id_, NO_KEY)
        else:  # nor has it a trace: whoever has no key decides neither what is recorded nor how much
            self._count_rejected(NO_CLASS)
            _answer(exchange, id_, NO_KEY)

    def malformed(self, status: int, message: str) -> bytes:
        """The body of an answer that the HTTP server gives by itself; a client's fault counts as a rejected request."""
        if status == 500:  # a bug of ours
            return orjson.dumps(error_body("internal_error", message, type_="server_error"))
        self._count_rejected(NO_CLASS)
        return orjson.dumps(error_body(NO_KEY.code if status == NO_KEY.status else Outcome.REJECTED, message))

    def _refuse(self, exchange: Exchange, id_: bytes, slo_class: str, why: Rejected) -> None:
        self._count_rejected(slo_class)
        trace = self._shell.tracer.begin(exchange)
        trace.end(Ending(Outcome.REJECTED, why.status, id_.decode(), slo_class))
        _answer(exchange, id_, why)

    def _count_rejected(self, slo_class: str) -> None:
        self._shell.metrics.received.add(slo_class)
        self._shell.metrics.outcomes.add(slo_class, Outcome.REJECTED)

    def _request_id(self, given: bytes | None) -> bytes:
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        return f"{self._shell.id_prefix}-{next(self._ids):x}".encode()


def _decoded(raw: bytes) -> Any:
    """The body as JSON has it, or a Rejected."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as e:
        return Rejected(f"the body is not JSON: {e}")


def _answer(exchange: Exchange, id_: bytes, why: Rejected) -> None:
    body = orjson.dumps(error_body(why.code, why.message, param=why.param))
    headers = [(b"x-request-id", id_)]
    if why is NO_KEY:
        headers.append(BEARER)
    exchange.respond(why.status, body, headers=headers)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
