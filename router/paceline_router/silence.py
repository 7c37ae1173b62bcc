"""Which replicas have gone silent: they owe something, and gave no sign of work for longer than they should need.

A sign is a token of any stream, a whole answer, or a /metrics page that counts more than the one before. An answered
probe is none: an API server answers on while its engine core hangs. A silent replica is left out until a sign, or until
a trial once it owes nothing more; what it owes is asked for elsewhere, and streams that had begun end after a longer
silence. Time in which the router itself stood still is no silence. Invariant: replicas are left out only while no
fewer others can do their work, so that a common cause leaves nobody out. Times are model seconds. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from math import exp2, inf

from paceline_router.attempts import Leg
from paceline_router.facts import Role
from paceline_router.foresight import PredictionErrors
from paceline_router.latency import prefill_s, step_s
from paceline_router.replica import Replica

FACTOR = 3.0  # of what is predicted, beside its error
SLOW = 1.5  # of the longest silence of late that ended by itself
FORGET_S = 300.0  # in which such a silence counts for half
STEP_TOKENS = 16_384  # of a prompt in one step: the largest budget in common use
WARM_SIGNS = 4  # until then an engine may be compiling what it runs first, for half a minute and more
# In units of the least silence that counts:
HEARD = 0.25  # what one look adds at most
JUDGED = 0.125  # from one look at what is owed to the next, which costs as much as there are requests
PAGES = 2.0  # more where only the page can tell: it is read about once in half a unit, of a busy process
UNKNOWN = 5.0  # for an engine without a step-time table
FIRST = 30.0  # for one that may be compiling
TRIAL = 5.0  # from the last thing owed to a trial; twice as long after each that fails
MOST_DOUBLINGS = 5
ENDS, LEAST_END = 4.0, 15.0  # times its limit, and in units: begun streams end


@dataclass(frozen=True, slots=True)
class Owed:
    """What a replica owes one request since `since_s`. `begun`: its client has content, and waits for the rest."""

    leg: Leg
    prompt_tokens: int
    since_s: float
    begun: bool = False
    streamed: bool = True

    def is_seen(self, replica: Replica) -> bool:
        """Whether there would be a sign of work on it before its end."""
        return self.streamed or self.leg is Leg.PREFILL or any(replica.told)


@dataclass(frozen=True, slots=True)
class Silent:
    """Left out from now on; whoever waits there for a first byte is better off elsewhere."""

    name: str
    silent_s: float
    limit_s: float


@dataclass(frozen=True, slots=True)
class Mute:
    """Silent for so long that the streams that had begun there end."""

    name: str
    silent_s: float
    limit_s: float


@dataclass(frozen=True, slots=True)
class Tried:
    """Owes nothing more, and gets requests again until one of them is there."""

    name: str


@dataclass(frozen=True, slots=True)
class Heard:
    """Gave a sign, `after_s` the one before, and is as any other again."""

    name: str
    after_s: float


Finding = Silent | Mute | Tried | Heard
OwedBy = Callable[[], Mapping[str, Sequence[Owed]]]


def limit_s(replica: Replica, owed: Iterable[Owed], error: float, least_s: float, slowest_s: float = 0.0) -> float:
    """The longest silence to expect of a replica at work on `owed`.

    It computes one prompt at a time, or a step of one where its page counts steps; predictions err by the share
    `error`, and `slowest_s` was a silence that ended by itself.
    """
    prompt = max((each.prompt_tokens for each in owed if each.leg is not Leg.FETCH and not each.begun), default=0)
    decodes, context = replica.decodes, replica.decode_context
    if replica.told.steps:
        tokens = min(prompt, STEP_TOKENS)
        predicted_s = step_s(replica.facts, tokens, float(tokens * prompt), decodes, context)  # its last: all before it
    else:
        predicted_s = max(prefill_s(replica, prompt, prompt**2), step_s(replica.facts, 0, 0.0, decodes, context))
    if replica.signs < WARM_SIGNS and replica.told.steps < WARM_SIGNS:
        least_s *= FIRST
    elif replica.facts.table is None:
        least_s *= UNKNOWN
    return max(least_s, FACTOR * (1.0 + error) * predicted_s, SLOW * slowest_s)


@dataclass(slots=True)
class _Ear:
    """What is known of one replica's silence. `signs`: at the last look."""

    signs: int
    heard_s: float  # when it last gave one
    silent_s: float = 0.0  # of that, owing something
    before_s: float = 0.0  # of that, before and between trials: they do not count it, what is learnt does
    idle_s: float = 0.0  # overdue and owing nothing
    limit_s: float = inf  # at the latest look at what is owed
    slowest_s: float = 0.0
    slowest_at_s: float = 0.0
    overdue: bool = False
    on_trial: bool = False
    out: bool = False  # said to be silent
    trials: int = 0  # since the last sign

    def slowest(self, now: float) -> float:
        """The longest silence that ended by itself, each counting less with time."""
        return self.slowest_s * exp2((self.slowest_at_s - now) / FORGET_S)

    def sign(self, signs: int, least_s: float, now: float) -> None:
        """Takes note of one. A silence that ended by itself is learnt, unless the engine may have been compiling."""
        silent_s, most_s = self.before_s + self.silent_s, ENDS * max(min(self.limit_s, FIRST * least_s), least_s)
        if self.signs >= WARM_SIGNS and least_s / 2 < silent_s < most_s:
            self.slowest_s, self.slowest_at_s = max(self.slowest(now), silent_s), now
        self.signs, self.heard_s = signs, now
        self.silent_s, self.before_s, self.idle_s, self.limit_s = 0.0, 0.0, 0.0, inf
        self.overdue = self.on_trial = self.out = False
        self.trials = 0


class Silences:
    """Of all replicas. `least_s`: silence that may count; `transfer_s`: a KV transfer's own time limit.

    `recompute`: decode replicas can stand in for prefill replicas. `left_out` are the names that get nothing new.
    """

    def __init__(self, least_s: float, transfer_s: float, *, recompute: bool) -> None:
        self._least_s = least_s
        self._transfer_s = transfer_s
        self._recompute = recompute
        self._ears: dict[str, _Ear] = {}
        self._at_s: float | None = None
        self._judged_s = -inf
        self.left_out: set[str] = set()

    def look(
        self,
        replicas: Mapping[str, Replica],
        errors: PredictionErrors,
        owed: OwedBy,
        now: float,
        others: Set[str] = frozenset(),
    ) -> list[Finding]:
        """What is new at `now`. `owed` is asked only while somebody is quiet; `others` are suspected for other causes.

        They count where it is asked who can stand in, and are left out likewise.
        """
        passed_s = 0.0 if self._at_s is None else min(now - self._at_s, HEARD * self._least_s)
        self._at_s = now
        for name in self._ears.keys() - replicas.keys():
            del self._ears[name]
        found = [each for replica in replicas.values() if (each := self._listen(replica, passed_s, now)) is not None]
        is_due = now - self._judged_s >= JUDGED * self._least_s
        quiet = [name for name, ear in self._ears.items() if ear.silent_s >= self._least_s] if is_due else []
        waiting: Mapping[str, Sequence[Owed]] = {}
        if quiet:
            waiting, self._judged_s = owed(), now
        for name in quiet:
            replica = replicas[name]
            self._judge(replica, [each for each in waiting.get(name, ()) if each.is_seen(replica)], errors, now)
        self.left_out = self._to_leave_out(replicas, others)
        return [*found, *self._news(waiting, judged=is_due)]

    def _listen(self, replica: Replica, passed_s: float, now: float) -> Finding | None:
        """Takes note of a sign, or of silence."""
        ear = self._ears.get(replica.name)
        if ear is None:
            ear = self._ears[replica.name] = _Ear(replica.signs, now)
        if replica.signs != ear.signs:
            was, after_s = ear.overdue or ear.on_trial, now - ear.heard_s
            ear.sign(replica.signs, self._least_s, now)
            return Heard(replica.name, after_s) if was else None
        if replica.legs:
            ear.silent_s, ear.idle_s = ear.silent_s + passed_s, 0.0
            return None
        if not ear.overdue:
            ear.before_s = ear.before_s + ear.silent_s + passed_s if ear.on_trial else 0.0
            ear.silent_s = 0.0
            return None
        ear.silent_s, ear.idle_s = ear.silent_s + passed_s, ear.idle_s + passed_s
        if ear.idle_s < TRIAL * self._least_s * 2 ** min(ear.trials, MOST_DOUBLINGS):
            return None
        ear.before_s += ear.silent_s
        ear.silent_s, ear.overdue, ear.out, ear.on_trial, ear.trials = 0.0, False, False, True, ear.trials + 1
        return Tried(replica.name)

    def _judge(self, replica: Replica, owed: Sequence[Owed], errors: PredictionErrors, now: float) -> None:
        """Whether anything is overdue; a request that came late into a silence has waited for less."""
        ear = self._ears[replica.name]
        if not owed:
            ear.silent_s = 0.0 if not ear.overdue else ear.silent_s
            return
        error = errors.p90(now - replica.facts.seen_at_s)
        limit = limit_s(replica, owed, error, self._least_s, ear.slowest(now))
        ear.limit_s = max(limit, ear.limit_s) if ear.overdue else limit  # what waited there may be elsewhere by now
        for each in owed:
            if each.leg is Leg.PREFILL and replica.kv_parked and each.prompt_tokens > replica.kv_room:
                continue  # it waits for KV that others fetch
            if min(ear.silent_s, now - each.since_s) >= ear.limit_s + self._more_s(each):
                ear.overdue = True

    def _more_s(self, owed: Owed) -> float:
        """What it may take beside the limit until there is a sign."""
        if owed.begun and owed.streamed:
            return 0.0
        return self._transfer_s if owed.leg is Leg.FETCH and owed.streamed else PAGES * self._least_s

    def _to_leave_out(self, replicas: Mapping[str, Replica], others: Set[str]) -> set[str]:
        suspects = {n for n, ear in self._ears.items() if ear.overdue or (ear.on_trial and replicas[n].legs)}
        suspects |= others
        if not suspects:
            return suspects
        well = [r for n, r in replicas.items() if n not in suspects and r.ready and not r.retired]
        found: set[str] = set()
        for role in Role:
            of_role = {name for name in suspects if replicas[name].role is role}
            stand_in = self._recompute and role is Role.PREFILL
            standing = sum(r.role is role or (stand_in and r.role is Role.DECODE) for r in well)
            if len(of_role) <= standing:
                found |= of_role
        return found

    def _news(self, waiting: Mapping[str, Sequence[Owed]], *, judged: bool) -> Iterator[Finding]:
        for name, ear in self._ears.items():
            out, was = ear.overdue and name in self.left_out, ear.out
            ear.out = out
            if out and not was and not judged:
                ear.out = False  # said at the next look at what is owed, so that it is asked for elsewhere
            elif out and not was:
                yield Silent(name, ear.silent_s, ear.limit_s)
            ends_s = max(ENDS * ear.limit_s, LEAST_END * self._least_s)
            if out and ear.silent_s >= ends_s and any(o.begun for o in waiting.get(name, ())):
                yield Mute(name, ear.silent_s, ear.limit_s)
