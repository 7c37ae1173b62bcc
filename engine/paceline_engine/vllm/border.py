"""The border of a vLLM engine: ASGI middleware for `--middleware=paceline_engine.vllm.border.Border`, without vLLM.

Every request passes here before vLLM sees it. What only the router may say (objectives, KV hand-overs, the call to
drain) counts with the service's token and is taken out without it; nobody has the token when none is set. `/readyz`
and the drain are answered here, everything else is vLLM's. Invariant: once draining, no request is taken on, and after
the drain's time each one that is still open ends with an error. Wall seconds.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import time
from collections.abc import Callable, Mapping

from paceline_api import headers
from prometheus_client import CollectorRegistry, Counter, Gauge

from paceline_engine.request import Leg
from paceline_engine.sim.api import Refused
from paceline_engine.sim.metrics import LegResult
from paceline_engine.vllm.bodies import Admitted, admit, is_unicode, stamped
from paceline_engine.vllm.life import Life, Phase
from paceline_engine.vllm.passage import (
    RETRY_AFTER,
    App,
    Given,
    Message,
    Passage,
    Receive,
    Scope,
    Send,
    TooLarge,
    error,
    read_body,
    respond,
)
from paceline_engine.vllm.rules import read_rules

_log = logging.getLogger(f"vllm.{__name__}")  # vLLM prints what is below its own name
_READS = ("GET", "HEAD", "OPTIONS")
_HEALTH_TIMEOUT_S = 2.0
_FORBIDDEN = Refused(f"{headers.TOKEN} is missing or wrong", status=403, code="forbidden")
_DEEP = Refused("the body is nested too deeply")
_TORN = Refused("the body holds half a surrogate pair, which is no text")
_FORMS = (b"application/x-www-form-urlencoded", b"multipart/form-data")  # vLLM takes vllm_xargs from them too
_NO_FORMS = Refused("the body must be JSON: forms are not looked into", status=415, code="unsupported_media_type")


class BorderMetrics:
    """Under the simulated engine's names; on vLLM's page where PROMETHEUS_MULTIPROC_DIR is set."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.legs = Counter("paceline_engine_legs", "Requests by their end", ("result",), registry=registry)
        self.received = Counter("paceline_engine_legs_received", "Requests", (), registry=registry)
        self.in_progress = Gauge(
            "paceline_engine_legs_in_progress",
            "Requests that have not ended",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.late = Counter(
            "paceline_kv_transfer_failures", "KV that could not be had", ("cause",), registry=registry
        ).labels("late")
        self.dropped = Counter(
            "paceline_dropped_fields", "Requests with fields that only the router may send", (), registry=registry
        )
        self.in_progress.set(0)
        self.start_s = Gauge(
            "paceline_engine_start_seconds",
            "From the start of the process until it serves",
            multiprocess_mode="mostrecent",
            registry=registry,
        )


class Border:
    """vLLM makes one, with the application behind it; the rest is for tests."""

    def __init__(
        self,
        app: App,
        environ: Mapping[str, str] = os.environ,
        now: Callable[[], float] = time.time,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._app = app
        self.rules = read_rules(environ)
        self._token = environ.get(headers.TOKEN_ENV, "").encode()
        self._now = now
        self._open: set[Passage] = set()
        self.registry = registry or CollectorRegistry()
        self.metrics = BorderMetrics(self.registry)
        self.life = Life(self.rules, self._cut)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # begins when vLLM has loaded, and is about to listen
            self.life.mind_sigterm()
            if self.rules.started_s:
                self.metrics.start_s.set(self._now() - self.rules.started_s)
        if scope["type"] == "websocket":  # the router sends none, and what comes in one is not looked at here
            await send({"type": "websocket.close", "code": 1008, "reason": "no websockets"})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Given(scope)
        trusted = bool(self._token) and hmac.compare_digest(given.header(headers.TOKEN.encode()) or b"", self._token)
        match scope["method"], scope["path"]:
            case ("GET" | "HEAD", "/readyz"):
                await self._readyz(scope, send)
            case ("POST", "/paceline/drain"):
                await self._drain(send, trusted=trusted)
            case (method, _) if method in _READS:
                await self._app(given.stripped(), receive, send)
            case _:
                await self._pass(given, receive, send, trusted=trusted)

    # --- requests

    async def _pass(self, given: Given, receive: Receive, send: Send, *, trusted: bool) -> None:
        """To vLLM and back, or a refusal."""
        raw: bytes | None = None
        self.metrics.received.inc()
        try:
            if self.life.phase is not Phase.DRAINING:
                raw = await read_body(receive, self.rules.max_body_bytes)
        except TooLarge:
            message = f"the body is larger than {self.rules.max_body_bytes} bytes"
            await self._refuse(send, Refused(message, status=413, code="request_too_large"))
            return
        if self.life.phase is Phase.DRAINING:  # or has come to it while the body came
            message = f"the engine is {self.life.phase.value}; send the request to another replica"
            await self._refuse(send, Refused(message, status=503, code="no_endpoint"))
            return
        if raw is None:
            self.metrics.legs.labels(LegResult.ABORTED).inc()
            return
        try:
            read = self._read(given, raw, trusted=trusted)
        except RecursionError:
            read = _DEEP
        if isinstance(read, Refused):
            await self._refuse(send, read)
            return
        raw, leg = read
        passage = Passage(raw, receive, send, self._stamp if leg is Leg.PREFILL else None)
        await self._carry(passage, given.stripped(len(raw)))

    def _read(self, given: Given, raw: bytes, *, trusted: bool) -> tuple[bytes, Leg] | Refused:
        """The bytes that go on. The parser is vLLM's: what is no JSON here is none there, and left to it."""
        kind = (given.header(b"content-type") or b"").lower()
        if any(form in kind for form in _FORMS):
            return _NO_FORMS
        try:
            body: object = json.loads(raw)
        except ValueError:
            return raw, Leg.WHOLE
        if not is_unicode(raw, body):
            return _TORN
        now = self._now()
        admitted = admit(given.scope["path"], body, given.header, self.rules, trusted=trusted, now=now)
        if isinstance(admitted, Refused):
            return admitted
        self._count(admitted)
        if admitted.changed:
            raw = json.dumps(admitted.body, separators=(",", ":")).encode()
        return raw, admitted.leg

    def _count(self, admitted: Admitted) -> None:
        if admitted.dropped:
            self.metrics.dropped.inc()
        if admitted.late:
            self.metrics.late.inc()
            _log.warning("paceline: kv transfer failed cause=late recompute=True")

    async def _carry(self, passage: Passage, scope: Scope) -> None:
        result = LegResult.FAILED
        self._open.add(passage)
        self.metrics.in_progress.set(len(self._open))
        try:
            await passage.go(self._app, scope)
            result = _result(passage)
        finally:
            self._open.discard(passage)
            self.metrics.in_progress.set(len(self._open))
            self.metrics.legs.labels(result).inc()

    def _stamp(self, body: bytes) -> bytes:
        try:
            answer = stamped(json.loads(body), self.rules.kv_lease_s, self._now())
        except ValueError:
            return body
        return body if answer is None else json.dumps(answer, separators=(",", ":")).encode()

    async def _refuse(self, send: Send, refused: Refused) -> None:
        unserved = refused.status in (500, 503)
        self.metrics.legs.labels(_BY_STATUS.get(refused.status, LegResult.REJECTED)).inc()
        await _answer(send, refused, *((RETRY_AFTER,) if unserved else ()))

    # --- health and the end

    async def _readyz(self, scope: Scope, send: Send) -> None:
        state = self.life.phase.value
        if self.life.phase is Phase.READY and not await self._is_alive(scope):
            state = "dead"
        await respond(send, 200 if state == "ready" else 503, state.encode(), kind="text/plain")

    async def _is_alive(self, scope: Scope) -> bool:
        """What vLLM's own `/health` says."""
        status = 0

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)

        ask = {**scope, "method": "GET", "path": "/health", "raw_path": b"/health", "query_string": b""}
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                await self._app(ask, receive, send)
        except TimeoutError:
            return False
        return status == 200

    async def _drain(self, send: Send, *, trusted: bool) -> None:
        """Begins to drain and answers at once; progress shows on /metrics."""
        if not trusted:
            await _answer(send, _FORBIDDEN)
            return
        if self.life.drain():
            _log.info("paceline: draining requests=%d notice_s=%g", len(self._open), self.rules.drain_notice_s)
        await respond(send, 202, b'{"draining":true}')

    def _cut(self) -> None:
        if self._open:
            _log.warning("paceline: drain timeout requests=%d", len(self._open))
        for passage in tuple(self._open):
            passage.cut()


_BY_STATUS = {500: LegResult.FAILED, 503: LegResult.REFUSED}


def _result(passage: Passage) -> LegResult:
    """How a leg ended. A server drops what is sent to a client that left: such an answer may look complete."""
    if passage.is_cut or passage.status >= 500:
        return LegResult.FAILED
    if passage.is_left:
        return LegResult.ABORTED
    if passage.status >= 400:
        return LegResult.REJECTED
    return LegResult.FINISHED if passage.complete else LegResult.FAILED


async def _answer(send: Send, refused: Refused, *extra: tuple[bytes, bytes]) -> None:
    body = error(refused.message, code=refused.code, status=refused.status, param=refused.param)
    await respond(send, refused.status, body, *extra)
