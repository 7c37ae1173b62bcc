"""One request on its way: drives its legs from callback to callback, as `pick` and `attempts` decide.

A job is in one leg at a time until it ends, and ends exactly once with one outcome. Ending takes everything back: the
call to the engine, the ledger's figures, the timer. What is decided comes as values from pure modules; here it is
applied.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, assert_never

import orjson
from paceline_api.outcomes import Outcome, error_body
from paceline_engine.http1 import Call, Exchange, Header

from paceline_router import attempts
from paceline_router.account import Account
from paceline_router.admission import Admitted
from paceline_router.answers import Answer, PrefillAnswer, StreamedAnswer, WholeAnswer
from paceline_router.attempts import Again, DecodeElsewhere, Fault, GiveUp, Leg, NextStep, PrefillElsewhere, Recompute
from paceline_router.bodies import LegBodies
from paceline_router.facts import Role
from paceline_router.pick import Choice, NoEndpoint
from paceline_router.replica import OUTPUT_QUANTILE, Flight, Size
from paceline_router.request import Kind, Request
from paceline_router.shell import Shell
from paceline_router.stream import Usage

_CLOSE_AFTER_S = 0.05  # an error event gets this long on the wire before the connection is closed under it
_TRACEPARENT = re.compile(rb"[0-9a-f-]{1,128}")
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
        self.account = Account(shell, exchange.received_at, accepted_at, request, admitted)
        self._slo = admitted.effective
        trace = exchange.header(b"traceparent")
        self._trace = trace if trace is not None and _TRACEPARENT.fullmatch(trace) else None
        self._bodies = LegBodies(body, request, exchange.body)
        self._deadline_s = self.account.course.arrival_s + shell.config.limits.request_timeout_s
        self._timer = shell.loop.call_later(shell.clock.wall(shell.config.limits.request_timeout_s), self._time_out)
        self._size = Size(
            request.prompt_tokens,
            min(request.max_tokens, shell.lengths.remaining(admitted.slo.name, 0, OUTPUT_QUANTILE)),
        )
        self._flight: Flight | None = None
        self._call: Call | None = None
        self._presumed: asyncio.TimerHandle | None = None
        self._leg = Leg.WHOLE
        self._replica = ""
        self._avoid: frozenset[str] = frozenset()
        self._kv_params: Mapping[str, Any] = {}
        self._failures = 0
        self._prefill_failures = 0
        self._parked_at_s: float | None = None
        shell.jobs.add(self)
        exchange.on_gone = self._client_gone

    @property
    def role(self) -> Role:
        """Of the replica that has it now."""
        replica = self.shell.ledger.replicas.get(self._replica)
        return Role.MIXED if replica is None else replica.role

    @property
    def waiting_since_s(self) -> float | None:
        """Its arrival, until its first token was sent; until its end if it is not streamed."""
        course = self.account.course
        return course.arrival_s if course.first_token_s is None else None

    def start(self) -> None:
        """Chooses where the request goes, and sends it there."""
        shell = self.shell
        now = shell.clock.now()
        match shell.picker.choose(shell.ledger, self._size, now, self._avoid):
            case NoEndpoint(message):
                self._apply(attempts.without_replica(self._progress(), message))
            case Choice() as choice:
                self._flight = shell.ledger.begin(self._size, choice.prefill, choice.decode, now)
                self.account.chosen(choice, now)
                if choice.prefill is None:
                    self._send_whole(choice.decode)
                else:
                    self._send_prefill(choice.prefill)
            case _ as never:
                assert_never(never)

    # --- what an answer tells

    def prefilled(self, kv_params: Mapping[str, Any]) -> None:
        """Leg 1 is done; leg 2 takes its parameters along."""
        self._close_leg("completed")
        now = self.shell.clock.now()
        self._kv_params = kv_params
        self._parked_at_s = now
        self.account.prefilled(now)
        self.shell.ledger.prefilled(self._held, now)
        self._fetch()

    def begin_stream(self, headers: list[Header]) -> None:
        """The first content is about to be sent."""
        now = self.shell.clock.now()
        self.exchange.start(200, [*headers, (b"x-request-id", self.id)])
        self.account.first_token(now)
        self.shell.ledger.first_token(self._held, now)

    def count_tokens(self, count: int) -> None:
        """`count` events with content are about to be sent."""
        self.account.tokens(count, self.shell.clock.now())
        self.shell.ledger.tokens(self._held, count)

    def end_stream(self, usage: Usage | None) -> None:
        """The engine's stream is complete and passed on."""
        self._close_leg("completed")
        self.exchange.end()
        self._end(Outcome.COMPLETED, usage)

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
        shell = self.shell
        self._close_leg(result)
        self._failures += 1
        self._prefill_failures += attempts.counts_as_prefill_failure(self._leg, fault)
        source = self._flight.prefill if self._flight is not None else None
        self._avoid |= {attempts.suspected(self._leg, fault, self._replica, source.name if source else None)}
        if attempts.blames_replica(fault):
            shell.mark_unready(self._replica)
        step = attempts.next_step(
            self._leg,
            fault,
            self._progress(),
            shell.clock.now(),
            recompute=self._may_recompute,
            lease_s=shell.config.kv_transfer.lease_s,
        )
        self.account.leg_failed(self.id, self._leg, fault, step, self._replica, message)
        self._apply(step)

    def abandon_leg(self, replica: str) -> None:
        """`replica` no longer answers anyone: if the request is there, it waits no longer."""
        if self._replica == replica and self._call is not None:
            self._call.abort()
            self.leg_failed(Fault.LOST, "aborted", "the replica no longer answers")

    def give_up(self, outcome: Outcome, message: str) -> None:
        """Ends the request with an error, at whatever point it is."""
        if self._call is not None:
            self._call.abort()
            self._close_leg("aborted")
        body = orjson.dumps(error_body(outcome, message))
        if self.exchange.started:
            self.exchange.on_gone = None
            self.exchange.write(b"data: " + body + b"\n\n")
            self.shell.loop.call_later(_CLOSE_AFTER_S, self.exchange.abort)
        else:
            self._respond(outcome.http_status, body, [(b"content-type", b"application/json")])
        self._end(outcome)

    # --- what is decided, applied

    def _apply(self, step: NextStep) -> None:
        shell = self.shell
        now = shell.clock.now()
        match step:
            case Again():
                shell.ledger.end(self._held, now)
                self.start()
            case PrefillElsewhere():
                self._prefill_elsewhere(now)
            case DecodeElsewhere():
                self._fetch()
            case Recompute():
                self._recompute(now)
            case GiveUp(outcome, message):
                self.give_up(outcome, message)
            case _ as never:
                assert_never(never)

    def _prefill_elsewhere(self, now: float) -> None:
        shell = self.shell
        name = shell.picker.choose_prefill(shell.ledger, self._size, now, self._avoid)
        if isinstance(name, NoEndpoint):
            self._apply(attempts.without_prefill(recompute=self._may_recompute))
            return
        shell.ledger.prefill_on(self._held, name, now)
        self._parked_at_s = None
        self._send_prefill(name)

    def _recompute(self, now: float) -> None:
        shell = self.shell
        choice = shell.picker.choose_computing(shell.ledger, self._size, now, self._avoid)
        if isinstance(choice, NoEndpoint):
            self._apply(attempts.without_replica(self._progress(), choice.message))
            return
        shell.ledger.compute_on(self._held, choice.decode, now)
        self.account.chosen(choice, now)
        self._send_whole(choice.decode)

    def _fetch(self) -> None:
        """Leg 2, to the decode replica that is best now."""
        shell = self.shell
        flight = self._held
        shell.ledger.give_back_decode(flight)
        revision = flight.prefill.revision if flight.prefill is not None else ""
        name = shell.picker.choose_decode(shell.ledger, self._size, shell.clock.now(), self._avoid, revision)
        if isinstance(name, NoEndpoint):
            self._without_decoder(flight.decode.name, name.message)
            return
        shell.ledger.decode_on(flight, name)
        self._send(Leg.FETCH, name, self._bodies.fetch(self._kv_params), self._client_answer())

    def _without_decoder(self, last: str, message: str) -> None:
        elsewhere = self.shell.picker.can_serve(self.shell.ledger)
        step = attempts.without_decoder(self._progress(), message, elsewhere=elsewhere)
        if isinstance(step, Again):
            self._failures += 1
            self.account.leg_failed(self.id, Leg.FETCH, Fault.UNREACHED, step, last, message)
        self._apply(step)

    def _send_prefill(self, name: str) -> None:
        self._send(Leg.PREFILL, name, self._bodies.prefill(), PrefillAnswer(self))

    def _send_whole(self, name: str) -> None:
        self._send(Leg.WHOLE, name, self._bodies.whole(), self._client_answer())

    def _client_answer(self) -> Answer:
        if self.request.stream:
            return StreamedAnswer(self, hide_usage=not self.request.usage_wanted)
        return WholeAnswer(self)

    def _send(self, leg: Leg, name: str, body: bytes, answer: Answer) -> None:
        self._leg, self._replica = leg, name
        now = self.shell.clock.now()
        left_s = self.account.ttft_left_s(self._slo, now)
        headers = self.shell.headers.build(self._slo, left_s, self.id, self._trace)
        target = _TARGETS[self.request.kind]
        self._call = answer.call = self.shell.upstreams.pools[name].request(b"POST", target, headers, body, answer)
        self.account.leg_sent(leg, self.shell.ledger.replicas[name], now)
        if leg is not Leg.PREFILL and not self.request.stream:
            wait_s = self.shell.clock.wall(self.account.predicted_wait_s(now))
            self._presumed = self.shell.loop.call_later(wait_s, self._presume_first_token)

    def _presume_first_token(self) -> None:
        """Nothing tells when an unstreamed answer's first token came: the ledger takes the predicted moment."""
        self.shell.ledger.first_token(self._held, self.shell.clock.now())

    # --- the end

    def _respond(self, status: int, body: bytes, headers: list[Header]) -> None:
        content_type = next((value for name, value in headers if name == b"content-type"), b"application/json")
        others = [header for header in headers if header[0] != b"content-type"]
        self.exchange.on_gone = None
        self.exchange.respond(status, body, content_type=content_type, headers=[*others, (b"x-request-id", self.id)])

    def _client_gone(self) -> None:
        if self._call is not None:
            self._call.abort()
            self._close_leg("aborted")
        self._end(Outcome.CLIENT_GONE)

    def _time_out(self) -> None:
        self.give_up(Outcome.TIMED_OUT, "the request ran into its time limit")

    def _close_leg(self, result: str) -> None:
        self._call = None
        if self._presumed is not None:
            self._presumed.cancel()
            self._presumed = None
        self.shell.metrics.legs.add(self.role, result)

    def _end(self, outcome: Outcome, usage: Usage | None = None) -> None:
        now = self.shell.clock.now()
        self._timer.cancel()
        self.exchange.on_writable = None
        if self._flight is not None:
            self.shell.ledger.end(self._flight, now)
        self.shell.forget(self)
        self.account.end(outcome, usage, now)

    @property
    def _may_recompute(self) -> bool:
        return self.shell.config.kv_transfer.on_failure == "recompute"

    @property
    def _held(self) -> Flight:
        assert self._flight is not None, "a leg was sent before anything was chosen"
        return self._flight

    def _progress(self) -> attempts.Progress:
        return attempts.Progress(
            self._failures, self._prefill_failures, self._deadline_s, self._parked_at_s, self.exchange.started
        )
