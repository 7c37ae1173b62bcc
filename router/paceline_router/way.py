"""One request's way through its legs: where each goes, and what follows when one ends or fails.

Router and simulator both send what this says: it asks `pick` and `attempts`, and keeps the ledger. Each method is told
what happened and returns what comes next, the next leg or the end of the request. Invariants: from its first leg until
`end` a request has one flight in the ledger; every way ends, whatever fails (attempts.py). Pure; times: model seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import assert_never

from paceline_api.outcomes import Outcome
from paceline_engine.pd import LEASE_S

from paceline_router import attempts
from paceline_router.attempts import Again, DecodeElsewhere, Fault, GiveUp, Leg, NextStep, PrefillElsewhere, Recompute
from paceline_router.latency import after_prefill_s
from paceline_router.pick import Choice, NoEndpoint, Picker
from paceline_router.replica import Flight, Size
from paceline_router.retry_budget import RetryBudget
from paceline_router.state import Ledger
from paceline_router.waiting import Claim, Prospect


@dataclass(frozen=True, slots=True)
class Send:
    """The next leg, to a replica; `choice` where replicas for the whole request were chosen anew."""

    leg: Leg
    replica: str
    choice: Choice | None = None


Next = Send | GiveUp


@dataclass(frozen=True, slots=True)
class Failed:
    """A leg that failed at a replica, and what that led to."""

    leg: Leg
    fault: Fault
    replica: str
    then: NextStep
    message: str


def _nobody(heard: object) -> None:
    """Hears of what nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Guide:
    """What all ways of one router share. `recompute` is kvTransfer.onFailure; `on_unready` hears of sick replicas."""

    ledger: Ledger
    picker: Picker
    recompute: bool = True
    lease_s: float = LEASE_S
    on_unready: Callable[[str], None] = _nobody
    budget: RetryBudget = field(default_factory=RetryBudget)


class Way:
    """Of one request. `streamed`: its first token will be heard of; `on_failed` hears of each leg that fails.

    `whole`: its KV cannot be handed over, so that one replica must do all of it.
    """

    __slots__ = (
        "_avoid",
        "_chosen",
        "_deadline_s",
        "_guide",
        "_on_failed",
        "_parked_at_s",
        "_streamed",
        "_whole",
        "failures",
        "flight",
        "leg",
        "prefill_failures",
        "replica",
        "sent_s",
        "size",
    )

    def __init__(
        self,
        guide: Guide,
        size: Size,
        *,
        deadline_s: float = inf,
        streamed: bool = True,
        whole: bool = False,
        on_failed: Callable[[Failed], None] = _nobody,
    ) -> None:
        self.size = size
        self.flight: Flight | None = None
        self.leg = Leg.WHOLE
        self.replica = ""  # that has the current leg
        self.sent_s = 0.0  # since when
        self.failures = 0
        self.prefill_failures = 0  # of them: of leg 1 or a hand-over
        self._guide = guide
        self._deadline_s = deadline_s
        self._streamed = streamed
        self._whole = whole
        self._on_failed = on_failed
        self._avoid: frozenset[str] = frozenset()
        self._parked_at_s: float | None = None  # when leg 1 ended; None without KV to fetch
        self._chosen: Choice | NoEndpoint | None = None  # by the latest `prospect`

    @property
    def after_leg_s(self) -> float:
        """Seconds from the end of its current leg to the first token, which that leg's engine cannot know of."""
        flight = self.held
        if self.leg is not Leg.PREFILL or flight.prefill is None:
            return 0.0
        return after_prefill_s(flight.prefill, flight.decode, self.size.prompt_tokens)

    @property
    def held(self) -> Flight:
        """Its flight, once there is one."""
        assert self.flight is not None, "a leg was sent before anything was chosen"
        return self.flight

    def claim(self, class_name: str, tenant: str) -> Claim:
        """What it brings to a waiting room."""
        return Claim(class_name, self.size.due_s, tenant, self.size.prompt_tokens + self.size.pace_tokens)

    def prospect(self, now: float) -> Prospect:
        """What to start it now would bring; a start that follows at once goes there."""
        ledger, picker = self._guide.ledger, self._guide.picker
        self._chosen = chosen = self._choose(now)
        if isinstance(chosen, NoEndpoint):
            return Prospect(0.0, 0.0)  # it has nothing to wait for: its start ends it
        seen = picker.weigh(ledger, self.size, now, chosen)
        return Prospect(seen.misses, seen.alone_s)

    def start(self, now: float) -> Next:
        """Its first leg, or that of a new beginning."""
        ledger = self._guide.ledger
        chosen, self._chosen = self._chosen, None
        if chosen is None:
            chosen = self._choose(now)
        if isinstance(chosen, NoEndpoint):
            return attempts.without_replica(self._progress(), chosen.message)
        again = self.flight is not None
        if not again:
            self._guide.budget.add(ledger.in_flight)
        self.flight = ledger.begin(self.size, chosen.prefill, chosen.decode, now, again=again)
        if self._streamed:
            ledger.expect(self.flight, chosen.ttft_s, now)
        if chosen.prefill is None:
            return self._send(Leg.WHOLE, chosen.decode, now, chosen)
        return self._send(Leg.PREFILL, chosen.prefill, now, chosen)

    def prefilled(self, now: float) -> None:
        """Leg 1 is over: its KV is parked; `fetch` says what comes next."""
        self._guide.ledger.prefilled(self.held, now)
        self._parked_at_s = now

    def fetch(self, now: float) -> Next:
        """Leg 2, to the decode replica that is best now."""
        guide, flight = self._guide, self.held
        guide.ledger.give_back_decode(flight)
        revision = flight.prefill.revision if flight.prefill is not None else ""
        name = guide.picker.choose_decode(guide.ledger, self.size, now, self._avoid, revision)
        if isinstance(name, NoEndpoint):
            return self._without_decoder(flight.decode.name, name.message, now)
        guide.ledger.decode_on(flight, name, now if self._streamed else None)
        return self._send(Leg.FETCH, name, now)

    def failed(self, fault: Fault, message: str, now: float, *, client_has_bytes: bool = False) -> Next:
        """The current leg ended in `fault`."""
        guide, leg, replica = self._guide, self.leg, self.replica
        prefill = self.held.prefill
        self.failures += 1
        self.prefill_failures += attempts.counts_as_prefill_failure(leg, fault)
        suspect = attempts.suspected(leg, fault, replica, prefill.name if prefill else None)
        self._avoid |= {suspect}
        if fault is Fault.ERRORED:
            guide.ledger.erred(suspect)
        if attempts.blames_replica(fault) and guide.ledger.set_ready(replica, False):
            guide.on_unready(replica)
        progress = self._progress(client_has_bytes)
        then = attempts.next_step(leg, fault, progress, now, recompute=guide.recompute, lease_s=guide.lease_s)
        is_charged = attempts.costs_budget(fault) and not isinstance(then, GiveUp)
        if is_charged and not guide.budget.take(guide.ledger.in_flight, now):
            then = attempts.OverBudget(Outcome.UPSTREAM_FAILED, f"{fault}, and too many requests are being tried again")
        self._on_failed(Failed(leg, fault, replica, then, message))
        return self._follow(then, now)

    def end(self, now: float) -> None:
        """The request has its outcome; nobody hears of it any more, so that way and listener are no cycle."""
        self._on_failed = _nobody
        if self.flight is not None:
            self._guide.ledger.end(self.flight, now)

    def _follow(self, step: NextStep, now: float) -> Next:
        match step:
            case Again():
                self._guide.ledger.end(self.held, now)
                return self.start(now)
            case PrefillElsewhere():
                return self._prefill_elsewhere(now)
            case DecodeElsewhere():
                return self.fetch(now)
            case Recompute():
                return self._compute(now)
            case GiveUp():
                return step
            case _ as never:
                assert_never(never)

    def _prefill_elsewhere(self, now: float) -> Next:
        guide = self._guide
        name = guide.picker.choose_prefill(guide.ledger, self.size, now, self._avoid)
        if isinstance(name, NoEndpoint):
            return self._follow(attempts.without_prefill(recompute=guide.recompute), now)
        guide.ledger.prefill_on(self.held, name, now)
        self._parked_at_s = None
        return self._send(Leg.PREFILL, name, now)

    def _choose(self, now: float) -> Choice | NoEndpoint:
        picker = self._guide.picker
        choose = picker.choose_computing if self._whole else picker.choose
        return choose(self._guide.ledger, self.size, now, self._avoid)

    def _compute(self, now: float) -> Next:
        guide = self._guide
        chosen = guide.picker.choose_computing(guide.ledger, self.size, now, self._avoid)
        if isinstance(chosen, NoEndpoint):
            return attempts.without_replica(self._progress(), chosen.message)
        guide.ledger.compute_on(self.held, chosen.decode, now)
        return self._send(Leg.WHOLE, chosen.decode, now, chosen)

    def _without_decoder(self, last: str, message: str, now: float) -> Next:
        """Nobody is left who could fetch; that counts as a failure where the request begins again."""
        elsewhere = self._guide.picker.can_serve(self._guide.ledger)
        step = attempts.without_decoder(self._progress(), message, elsewhere=elsewhere)
        if isinstance(step, Again):
            self.failures += 1
            self._on_failed(Failed(Leg.FETCH, Fault.UNREACHED, last, step, message))
        return self._follow(step, now)

    def _send(self, leg: Leg, replica: str, now: float, choice: Choice | None = None) -> Send:
        self.leg, self.replica, self.sent_s = leg, replica, now
        return Send(leg, replica, choice)

    def _progress(self, client_has_bytes: bool = False) -> attempts.Progress:
        return attempts.Progress(
            self.failures, self.prefill_failures, self._deadline_s, self._parked_at_s, client_has_bytes
        )
