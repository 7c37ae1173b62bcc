"""One request at the border: drives its legs from callback to callback, as its way says.

A job is in one leg at a time until it ends, and ends exactly once with one outcome. Ending takes everything back: the
call to the engine, the ledger's figures, the alarm. What is decided comes as values from pure modules; here it is
applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any, assert_never

import orjson
from paceline_api.headers import AUTHORIZATION, FAIRNESS_ID, TENANT
from paceline_api.outcomes import Outcome, error_body
from paceline_engine.alarms import Alarm
from paceline_engine.http1 import Call, Exchange, Header

from paceline_router.account import Account
from paceline_router.admission import Admitted, tenant
from paceline_router.answers import PrefillAnswer, client_answer
from paceline_router.attempts import Fault, GiveUp, Leg
from paceline_router.bodies import LegBodies
from paceline_router.facts import Role
from paceline_router.prompt_spans import prompt_spans
from paceline_router.replica import Size
from paceline_router.request import Kind, Request
from paceline_router.shell import Shell
from paceline_router.silence import Owed
from paceline_router.sizing import expected_size
from paceline_router.stream import Usage
from paceline_router.waiting import Claim, Prospect
from paceline_router.way import Failed, Next, Send, Way

_CLOSE_AFTER_S = 0.05  # an error event gets this long on the wire before the connection is closed under it
_TENANT = tuple(name.encode() for name in (TENANT, FAIRNESS_ID, AUTHORIZATION))
_TARGETS = {kind: f"/v1/{kind}".encode() for kind in Kind}


class Job:
    """A received and admitted request until its outcome."""

    def __init__(
        self,
        shell: Shell,
        exchange: Exchange,
        body: Mapping[str, Any],
        request: Request,
        admitted: Admitted,
        id_: bytes,
        accepted_at: float,
    ) -> None:
        self.shell = shell
        self.exchange = exchange
        self.request = request
        self.id = id_
        self.account = Account(shell, exchange, accepted_at, request, admitted)
        self._slo = admitted.effective
        self._bodies = LegBodies(body, request, exchange.body)
        self._way = Way(
            shell.guide,
            self._size(body),
            deadline_s=self.account.course.arrival_s + shell.config.limits.request_timeout_s,
            streamed=request.stream,
            whole=request.whole,
            on_failed=self._leg_failed,
        )
        self._call: Call | None = None
        self._presumed: Alarm | None = None
        self._kv_params: Mapping[str, Any] = {}
        self._told = False  # the client has all of its stream
        self._usage: Usage | None = None
        shell.remember(self)
        exchange.on_gone = self._client_gone

    @property
    def role(self) -> Role:
        """Of the replica that has it now."""
        replica = self.shell.ledger.replicas.get(self._way.replica)
        return Role.MIXED if replica is None else replica.role

    @property
    def waiting_since_s(self) -> float | None:
        """Its arrival, until its first token was sent; until its end if it is not streamed."""
        course = self.account.course
        return course.arrival_s if course.first_token_s is None else None

    @property
    def claim(self) -> Claim:
        """What it brings to a waiting room."""
        header = self.exchange.header
        return self._way.claim(self._slo.name, tenant(self.exchange.caller, *(header(name) for name in _TENANT)))

    def prospect(self, now: float) -> Prospect:
        """What to start it now would bring."""
        return self._way.prospect(now)

    def shed(self, retry_after_s: int) -> None:
        """It cannot meet its objective any more, and serving it would harm others."""
        message = f"the service is too busy to answer in time; try again in {retry_after_s} s"
        self.give_up(Outcome.SHED, message, (b"retry-after", b"%d" % retry_after_s))

    def start(self) -> None:
        """Sends its first leg."""
        self._go(self._way.start(self.shell.clock.now()))

    # --- what an answer tells

    def prefilled(self, kv_params: Mapping[str, Any]) -> None:
        """Leg 1 is done; leg 2 takes its parameters along."""
        self._close_leg("completed")
        now = self.shell.clock.now()
        self._kv_params = kv_params
        self.account.prefilled(now)
        self._way.prefilled(now)
        self._go(self._way.fetch(now))

    def begin_stream(self, headers: list[Header]) -> None:
        """The first content is about to be sent."""
        now = self.shell.clock.now()
        self.exchange.start(200, [*headers, (b"x-request-id", self.id)])
        self.account.answered(200, headers)
        self.account.first_token(now)
        self.shell.ledger.first_token(self._way.held, now)

    def count_tokens(self, count: int) -> None:
        """`count` events with content are about to be sent."""
        self.account.tokens(count, self.shell.clock.now())
        self.shell.ledger.tokens(self._way.held, count)

    def told_all(self, usage: Usage | None) -> None:
        """`[DONE]` was sent: clients leave there, so the request is complete whatever becomes of leg and connection."""
        self._told, self._usage = True, usage

    def end_stream(self, result: str) -> None:
        """The leg of a stream that was told to its end is over."""
        self._close_leg(result)
        self.exchange.end()
        self._end(Outcome.COMPLETED, self._usage)

    def relay_whole(self, body: bytes, headers: list[Header], usage: Usage) -> None:
        """A whole answer for the client."""
        self._close_leg("completed")
        self._respond(200, body, headers)
        self._end(Outcome.COMPLETED, usage)

    def relay_rejection(self, status: int, body: bytes, headers: list[Header]) -> None:
        """The engine found the client's own fault."""
        self._close_leg("refused")
        self._respond(status, body, headers)
        self._end(Outcome.REJECTED)

    def leg_failed(self, fault: Fault, result: str, message: str) -> None:
        """The leg is over without the answer that it was sent for."""
        if self._told:
            self.end_stream(result)
            return
        self._close_leg(result, fault)
        now, begun = self.shell.clock.now(), self.exchange.started
        self._go(self._way.failed(fault, message, now, client_has_bytes=begun))

    @property
    def owed(self) -> tuple[str, Owed] | None:
        """What an engine owes it now, and which; None where it waits for none, or its client for nothing."""
        way, call = self._way, self._call
        if call is None or call.paused or self._told:
            return None
        return way.replica, Owed(
            way.leg, way.size.prompt_tokens, way.sent_s, self.exchange.started, self.request.stream
        )

    def abandon_leg(self, replica: str, fault: Fault, why: str) -> None:
        """`replica` no longer answers: if the request is there, it waits no longer."""
        if self._way.replica == replica and self._call is not None:
            self._call.abort()
            self.leg_failed(fault, "aborted", why)

    def give_up(self, outcome: Outcome, message: str, *headers: Header) -> None:
        """Ends the request at whatever point it is: with an error, unless its client was told all."""
        if self._call is not None:
            self._call.abort()
            if self._told:
                self.end_stream("aborted")
                return
            self._close_leg("aborted")
        body = orjson.dumps(error_body(outcome, message))
        if self.exchange.started:
            self.exchange.on_gone = None
            self.exchange.write(b"data: " + body + b"\n\n")
            self.shell.loop.call_later(_CLOSE_AFTER_S, self.exchange.abort)
        else:
            self._respond(outcome.http_status, body, [(b"content-type", b"application/json"), *headers])
        self._end(outcome)

    # --- what is decided, applied

    def _go(self, step: Next) -> None:
        match step:
            case GiveUp(outcome, message):
                self.give_up(outcome, message)
            case Send(leg, replica, choice):
                if choice is not None:
                    self.account.chosen(choice, self.shell.clock.now())
                self._send(leg, replica)
            case _ as never:
                assert_never(never)

    def _send(self, leg: Leg, name: str) -> None:
        now = self.shell.clock.now()
        answer = PrefillAnswer(self) if leg is Leg.PREFILL else client_answer(self)
        left_s = self.account.ttft_left_s(self._slo, now) - self._way.after_leg_s
        replica, pool = self.shell.ledger.replicas[name], self.shell.upstreams.pools[name]
        trace = self.account.trace.leg(leg, replica, pool.host, pool.port)
        headers = self.shell.headers.build(self._slo, left_s, self.id, trace)
        target = _TARGETS[self.request.kind]
        body = self._bodies.of(leg, self._kv_params)
        self._call = answer.call = pool.request(b"POST", target, headers, body, answer)
        self.account.leg_sent(leg, replica, now)
        if leg is not Leg.PREFILL and not self.request.stream:
            wait_s = self.shell.clock.wall(self.account.predicted_wait_s(now))
            self._presumed = self.shell.alarms.set(monotonic() + wait_s, self._presume_first_token)

    def _leg_failed(self, failed: Failed) -> None:
        self.account.leg_failed(self.id, failed)

    def _presume_first_token(self) -> None:
        """Of an unstreamed answer the ledger takes the predicted moment."""
        self.shell.ledger.first_token(self._way.held, self.shell.clock.now())

    # --- the end

    def _respond(self, status: int, body: bytes, headers: list[Header]) -> None:
        content_type = next((value for name, value in headers if name == b"content-type"), b"application/json")
        others = [header for header in headers if header[0] != b"content-type"]
        self.exchange.on_gone = None
        self.account.answered(status, headers)
        self.exchange.respond(status, body, content_type=content_type, headers=[*others, (b"x-request-id", self.id)])

    def _client_gone(self) -> None:
        if self._call is not None:
            self._call.abort()
            if self._told:
                self.end_stream("aborted")
                return
            self._close_leg("aborted")
        self._end(Outcome.CLIENT_GONE)

    def _close_leg(self, result: str, fault: Fault | None = None) -> None:
        self._call = None
        if self._presumed is not None:
            self._presumed.cancel()
            self._presumed = None
        if result == "completed" and fault is None:
            self.shell.ledger.completed(self._way.replica)
        self.account.leg_over(self.role, result, fault)

    def _end(self, outcome: Outcome, usage: Usage | None = None) -> None:
        now = self.shell.clock.now()
        self.exchange.on_writable = None
        self._way.end(now)
        self.shell.forget(self)
        self.account.end(self.id, outcome, usage, now)

    def _size(self, body: Mapping[str, Any]) -> Size:
        shell, request = self.shell, self.request
        spans = prompt_spans(request.kind, body) if shell.guide.picker.reads_prefixes else ()
        arrival_s = self.account.course.arrival_s
        return expected_size(self._slo, shell.lengths, arrival_s, request.prompt_tokens, request.max_tokens, spans)
