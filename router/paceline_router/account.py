"""The books on one request: its course, verdicts, and what the metrics say of it.

Invariant: a request is counted received when its account is opened and gets exactly one outcome at its `end`; each of
its verdicts is counted once. Times are model seconds on the router's clock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial

from paceline_api.headers import SIMULATED
from paceline_api.outcomes import Outcome
from paceline_api.slo import Course, SLOClass, Verdict

from paceline_router.admission import Admitted
from paceline_router.attempts import Fault, Leg, counts_as_prefill_failure
from paceline_router.facts import Role
from paceline_router.latency import prefill_s
from paceline_router.metrics import Counters
from paceline_router.miss import Phases, cause
from paceline_router.pick import Choice
from paceline_router.replica import Replica
from paceline_router.request import Request
from paceline_router.shell import Shell
from paceline_router.spans import Ending, Header, Received
from paceline_router.stream import Usage
from paceline_router.tracker import Followed
from paceline_router.way import Failed

_log = logging.getLogger(__name__)
_SIMULATED: Header = (SIMULATED.encode(), b"1")


class Account:
    """Opened with the arrival of an admitted request."""

    __slots__ = (
        "_accepted_at",
        "_answered",
        "_choice",
        "_chosen_s",
        "_computes_on",
        "_failures",
        "_followed",
        "_last_token_s",
        "_metrics",
        "_prefilled_s",
        "_prompt_sent_s",
        "_shell",
        "_slo_class",
        "course",
        "trace",
    )

    def __init__(
        self, shell: Shell, received: Received, accepted_at: float, request: Request, admitted: Admitted
    ) -> None:
        """`accepted_at`: when all of what was received was there. `time.monotonic()`."""
        self.trace = shell.tracer.begin(received)
        self._shell = shell
        self._metrics = shell.metrics
        self._slo_class = admitted.slo.name
        self._accepted_at = accepted_at
        self.course = Course(
            shell.clock.at(received.received_at), request.prompt_tokens, request.stream, request.max_tokens
        )
        self._metrics.received.add(self._slo_class)
        self._metrics.prompt.observe(request.prompt_tokens, self._slo_class)
        self._followed = [self._follow(admitted.slo, self._metrics.decided)]
        if admitted.own is not None:
            self._followed.append(self._follow(admitted.own, self._metrics.tightened))
        self._choice: Choice | None = None
        self._chosen_s = 0.0
        self._computes_on: Replica | None = None
        self._prompt_sent_s = 0.0
        self._prefilled_s: float | None = None
        self._last_token_s = 0.0
        self._failures = 0
        self._answered: tuple[int, Sequence[Header]] = (0, ())

    def ttft_left_s(self, slo: SLOClass, now: float) -> float:
        """What is left of the TTFT limit."""
        return self.course.arrival_s + slo.ttft_limit_s(self.course.prompt_tokens) - now

    def predicted_wait_s(self, now: float) -> float:
        """From now to the predicted first token."""
        return 0.0 if self._choice is None else max(self._chosen_s + self._choice.ttft_s - now, 0.0)

    def chosen(self, choice: Choice, now: float) -> None:
        self._choice, self._chosen_s = choice, now

    def leg_sent(self, leg: Leg, replica: Replica, now: float) -> None:
        if self._computes_on is None:
            self._metrics.overhead.observe(time.monotonic() - self._accepted_at)
        if leg is not Leg.FETCH:
            self._computes_on, self._prompt_sent_s, self._prefilled_s = replica, now, None

    def leg_over(self, role: Role, result: str, fault: Fault | None) -> None:
        self._metrics.legs.add(role, result)
        self.trace.leg_over(result, fault)

    def answered(self, status: int, headers: Sequence[Header]) -> None:
        """An answer to the client begins."""
        self._answered = status, headers

    def prefilled(self, now: float) -> None:
        self._prefilled_s = now

    def leg_failed(self, id_: bytes, failed: Failed) -> None:
        self._failures += 1
        leg, fault, then = failed.leg, failed.fault, type(failed.then).__name__
        self._metrics.retries.add(leg, fault, then)
        if counts_as_prefill_failure(leg, fault):
            self._metrics.transfer_failures.add()
        _log.warning(
            "leg failed request=%s leg=%s replica=%s fault=%s then=%s why=%s",
            id_.decode(), leg, failed.replica, fault, then, failed.message,
        )  # fmt: skip

    def first_token(self, now: float) -> None:
        self.course.first_token_s = self._last_token_s = now
        self.trace.first_token()
        self._metrics.ttft.observe(now - self.course.arrival_s, self._slo_class)
        self._metrics.queue.observe(self._queue_s, self._slo_class)
        if self._choice is not None and not self._failures:
            self._metrics.ttft_error.observe(now - self._chosen_s - self._choice.ttft_s)
        for followed in self._followed:
            self._shell.tracker.first_token(followed)

    def tokens(self, count: int, now: float) -> None:
        """`count` tokens sent at `now`; those of one read follow each other without a gap."""
        gap_s = now - self._last_token_s
        if self.course.output_tokens:
            self._metrics.itl.observe(gap_s, self._slo_class)
        for _ in range(count - 1):
            self._metrics.itl.observe(0.0, self._slo_class)
        self.course.output_tokens += count
        self._last_token_s = now

    def end(self, id_: bytes, outcome: Outcome, usage: Usage | None, now: float) -> None:
        course, metrics, name = self.course, self._metrics, self._slo_class
        course.outcome, course.end_s = outcome, now
        if usage is not None:
            course.prompt_tokens, course.output_tokens = usage.prompt_tokens, usage.output_tokens
        metrics.outcomes.add(name, outcome)
        for followed in self._followed:
            self._shell.tracker.look(followed, now)
        if self.trace.records:
            self.trace.end(self._ending(id_, outcome, usage))
        self._followed.clear()  # no cycle for the collector
        if outcome is Outcome.COMPLETED:
            self._shell.lengths.observe(name, course.output_tokens)
            metrics.output.observe(course.output_tokens, name)
            tpot_s = course.tpot_s
            if tpot_s is not None:
                metrics.tpot.observe(tpot_s, name)
                if self._choice is not None:
                    metrics.tpot_error.observe(tpot_s - self._choice.tpot_s)

    @property
    def _queue_s(self) -> float:
        """From its arrival to the sending of the leg that led to the first token."""
        return self._prompt_sent_s - self.course.arrival_s

    def _ending(self, id_: bytes, outcome: Outcome, usage: Usage | None) -> Ending:
        course, choice, (status, headers) = self.course, self._choice, self._answered
        return Ending(
            outcome,
            status,
            id_.decode(),
            self._slo_class,
            course.max_tokens,
            None if usage is None else (usage.prompt_tokens, usage.output_tokens),
            self._followed[0].decided,
            course.ttft_s,
            course.tpot_s,
            None if choice is None else self._chosen_s + choice.ttft_s - course.arrival_s,
            None if self._computes_on is None else self._queue_s,
            _SIMULATED in headers,
        )

    def _follow(self, slo: SLOClass, counters: Counters) -> Followed:
        return self._shell.tracker.follow(self.course, slo, partial(self._decided, counters))

    def _decided(self, counters: Counters, verdict: Verdict) -> None:
        counters.add(self._slo_class, verdict)
        if counters is self._metrics.decided:
            why = cause(verdict, self._phases(self._shell.clock.now()))
            if why is not None:
                self._metrics.misses.add(self._slo_class, why)

    def _phases(self, now: float) -> Phases:
        """Where the time to the first token went; what the prompt alone takes is predicted, the rest was waited for."""
        first_s = now if self.course.first_token_s is None else self.course.first_token_s
        computed_by_s = first_s if self._prefilled_s is None else self._prefilled_s
        if self._computes_on is None:
            return Phases(first_s - self.course.arrival_s, 0.0, 0.0, self._failures)
        tokens = self.course.prompt_tokens
        span_s = computed_by_s - self._prompt_sent_s
        computed_s = min(span_s, prefill_s(self._computes_on, tokens, tokens * tokens))
        waited_s = span_s - computed_s + self._prompt_sent_s - self.course.arrival_s
        return Phases(waited_s, computed_s, first_s - computed_by_s, self._failures)
