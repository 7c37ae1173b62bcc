"""Who waits at the router: served, held, or shed, by what serving it now would make miss.

Not to serve a request costs one miss, its own; to serve it costs those that it is expected to bring. Work with much
slack waits until it brings hardly any, so batch work is deferred before interactive work misses; a request that is
pressed is served while it brings less than one. One that is late anyhow comes after all that can be saved, where it
harms nobody, or is shed with the time in which the queue would drain. Classes go by priority; within one the first due
goes first, but who came last once some have become late, for a short turn: then each has a chance while its slack is
whole, whatever its length, as in adaptive LIFO (Maurer, "Fail at Scale", ACM Queue 2015). Where several tenants wait,
the turn is that of the one that was served the fewest tokens (fairness.py). Invariants: a request leaves exactly once;
a late one is not served while one that can be saved waits; Retry-After is 1 to LONGEST_RETRY_S whole seconds.
Pure; times are model seconds.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import ceil, inf
from typing import Generic, NamedTuple, TypeVar

from paceline_router.fairness import TokenShares

PATIENT, PRESSED = 0.1, 0.5  # expected misses that serving may bring: with all slack left, and with none
PRESSING = 10.0  # slack is all used up where it is this many times the prompt's own time
HARMLESS = 0.05  # misses that a late request may bring beyond its own
TURN_S = 0.03  # a step or two
CROWDED_S = 2.0  # how long after a request became late who came last goes first
LONGEST_RETRY_S = 60
LOOK_EVERY_S = 0.01  # between two looks at a waiting room: below a step
SERVED_OVER = 64  # requests over which the pace of service is taken


@dataclass(frozen=True, slots=True)
class Rule:
    """Of a class. `priority`: the lower goes first."""

    priority: int = 0


@dataclass(frozen=True, slots=True)
class Prospect:
    """What serving a request now is expected to bring: new misses, its own included, and its prompt's own seconds."""

    misses: float
    alone_s: float


class Fate(Enum):
    SERVE = "serve"
    WAIT = "wait"
    SHED = "shed"


def fate(due_s: float, prospect: Prospect, now: float, *, ahead_waits: bool) -> Fate:
    """Of a request that can be saved or not. `ahead_waits`: others wait that go before it and can be in time."""
    slack_s = due_s - prospect.alone_s - now
    if slack_s < 0.0:
        return Fate.SERVE if not ahead_waits and prospect.misses <= 1.0 + HARMLESS else Fate.WAIT
    pressed = 0.0 if ahead_waits else min(PRESSING * prospect.alone_s / max(slack_s, 1e-9), 1.0)
    return Fate.SERVE if prospect.misses <= PATIENT + (PRESSED - PATIENT) * pressed else Fate.WAIT


class Claim(NamedTuple):
    """What a request brings to a waiting room. `tokens`: of prompt and expected answer, which its tenant is charged."""

    class_name: str
    due_s: float
    tenant: str = ""
    tokens: int = 0


T = TypeVar("T")


@dataclass(slots=True)
class Waiter(Generic[T]):
    """One request. `number`: in order of arrival; `alone_s`: of its latest prospect."""

    what: T
    claim: Claim
    number: int = 0
    alone_s: float = 0.0

    @property
    def due_s(self) -> float:
        return self.claim.due_s


@dataclass(frozen=True, slots=True)
class Left(Generic[T]):
    """Who leaves, and how: SERVE or SHED; `retry_after_s` of one that is shed."""

    what: T
    fate: Fate
    retry_after_s: int = 0


@dataclass(slots=True)
class _Queue(Generic[T]):
    """Of one class: those that can be saved in order of their deadlines, and those that are late."""

    rule: Rule
    waiting: list[Waiter[T]] = field(default_factory=list)
    late: deque[Waiter[T]] = field(default_factory=deque)
    late_since_s: float = -inf  # when one became late last
    next: Waiter[T] | None = None  # whose turn it is, for up to TURN_S, so that long prompts have theirs
    turn_until_s: float = inf
    shares: TokenShares = field(default_factory=TokenShares)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.late) + (self.next is not None)

    def enter(self, waiter: Waiter[T]) -> None:
        waiting = self._tenants()
        if self.next is not None:
            waiting.add(self.next.claim.tenant)
        self.shares.come(waiter.claim.tenant, waiting)
        insort(self.waiting, waiter, key=lambda waiter: waiter.due_s)

    def _tenants(self) -> set[str]:
        return {waiter.claim.tenant for waiter in self.waiting}

    def take_next(self, now: float) -> Waiter[T] | None:
        """Whose turn it is; before that, those become late whose prompts can no longer be computed in time."""
        while self.waiting and self.waiting[0].due_s - self.waiting[0].alone_s < now:
            self.late.append(self.waiting.pop(0))
            self.late_since_s = now
        if self.next is not None and now >= self.turn_until_s and self.waiting:
            passed, self.next = self.next, self._take(now, self.next)
            if passed is not self.next:
                insort(self.waiting, passed, key=lambda waiter: waiter.due_s)
        elif self.next is None and self.waiting:
            self.next = self._take(now)
        return self.next

    def _take(self, now: float, passed: Waiter[T] | None = None) -> Waiter[T]:
        """The next of those that wait; `passed` has had its turn, which goes on if its tenant has nobody else."""
        crowded = now - self.late_since_s < CROWDED_S
        self.turn_until_s = now + TURN_S if crowded else inf
        tenants = self._tenants()
        if passed is not None:
            tenants.add(passed.claim.tenant)
        mine: Sequence[int] = range(len(self.waiting))
        if len(tenants) > 1:
            tenant = self.shares.next_of(tenants)
            mine = [i for i in mine if self.waiting[i].claim.tenant == tenant]
        if not mine and passed is not None:
            return passed
        return self.waiting.pop(max(mine, key=lambda i: self.waiting[i].number) if crowded else mine[0])

    def give_up_next(self, now: float) -> None:
        """It is late."""
        assert self.next is not None
        self.late.append(self.next)
        self.next, self.late_since_s = None, now


class WaitingRoom(Generic[T]):
    """Those that wait at one router. `rules` by class; a class without one has the default."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = rules
        self._entered = 0
        self._queues: dict[str, _Queue[T]] = {}  # by priority, then as they came
        self._interval_s = 0.0  # between services, averaged over those that left others waiting
        self._served_s: float | None = None  # the last of these; None: nobody waited then

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def enter(self, what: T, claim: Claim) -> None:
        """A request arrives; `release` says when it leaves."""
        if claim.class_name not in self._queues:
            self._queues[claim.class_name] = _Queue(self._rules.get(claim.class_name, Rule()))
            self._sort()
        self._entered += 1
        self._queues[claim.class_name].enter(Waiter(what, claim, self._entered))

    def leave(self, what: T, class_name: str) -> None:
        """It waits no longer, for a cause of its own."""
        queue = self._queues[class_name]
        if queue.next is not None and queue.next.what is what:
            queue.next = None
        queue.waiting = [waiter for waiter in queue.waiting if waiter.what is not what]
        queue.late = deque(waiter for waiter in queue.late if waiter.what is not what)

    def adopt(self, rules: Mapping[str, Rule]) -> None:
        """These are the rules from now on."""
        self._rules = rules
        for name, queue in self._queues.items():
            queue.rule = rules.get(name, Rule())
        self._sort()

    def _sort(self) -> None:
        self._queues = dict(sorted(self._queues.items(), key=lambda item: item[1].rule.priority))

    def release(self, prospect: Callable[[T], Prospect], now: float) -> Left[T] | None:
        """The next that leaves now, None when nobody does; what was served changes the prospects of the others."""
        ahead: int | None = None  # the priority of the first class that waits on
        for queue in self._queues.values():
            left = self._first(queue, prospect, now, ahead_waits=ahead is not None and ahead < queue.rule.priority)
            if left is not None:
                return left
            if queue.next is not None and ahead is None:
                ahead = queue.rule.priority
        return self._latest(prospect, now, ahead_waits=ahead is not None)

    def retry_after_s(self) -> int:
        """Whole seconds in which those that wait would be served at the present pace."""
        return min(max(ceil(len(self) * self._interval_s), 1), LONGEST_RETRY_S)

    def _first(
        self, queue: _Queue[T], prospect: Callable[[T], Prospect], now: float, *, ahead_waits: bool
    ) -> Left[T] | None:
        while (waiter := queue.take_next(now)) is not None:
            seen = prospect(waiter.what)
            waiter.alone_s = seen.alone_s
            if waiter.due_s - waiter.alone_s < now:
                queue.give_up_next(now)
                continue
            if fate(waiter.due_s, seen, now, ahead_waits=ahead_waits) is Fate.WAIT:
                return None
            queue.next = None
            return self._served(waiter, now)
        return None

    def _latest(self, prospect: Callable[[T], Prospect], now: float, *, ahead_waits: bool) -> Left[T] | None:
        for queue in self._queues.values():
            if not queue.late:
                continue
            waiter = queue.late[0]
            if fate(waiter.due_s, prospect(waiter.what), now, ahead_waits=ahead_waits) is Fate.SERVE:
                queue.late.popleft()
                return self._served(waiter, now)
            if now >= waiter.due_s:
                queue.late.popleft()
                return Left(waiter.what, Fate.SHED, self.retry_after_s())
        return None

    def _served(self, waiter: Waiter[T], now: float) -> Left[T]:
        if self._served_s is not None:
            self._interval_s += (now - self._served_s - self._interval_s) / SERVED_OVER
        self._queues[waiter.claim.class_name].shares.serve(waiter.claim.tenant, waiter.claim.tokens)
        self._served_s = now if len(self) else None
        return Left(waiter.what, Fate.SERVE)
