"""One service from tick to tick: what the autoscaler remembers of it, and what it decides to do (DESIGN §7).

It keeps the law's own memory, for how long each pool is as it should be, decisions and recommendations; decisions are
read back from the status, so that a new leader keeps the history. Invariants: in mode Disabled nothing is ruled, in
mode Recommend nothing is done; without signals nothing is done either. No I/O; time is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from paceline_router.autoscale.drain_first import PodLoad, choose
from paceline_router.autoscale.signals import Blind, Change, Ruling, ServiceSignals
from paceline_router.scaling.answers import Answers, Told
from paceline_router.scaling.figures import figures
from paceline_router.scaling.gather import FindTable, Standing, gather
from paceline_router.scaling.holds import Hold, hold_of, mark
from paceline_router.scaling.queries import Signal
from paceline_router.scaling.report import (
    QUIET_S,
    RECOMMENDED,
    Finding,
    Json,
    decided,
    is_news,
    last_advice,
    own_part,
    status_part,
)
from paceline_router.scaling.views import Marks, PoolView, ServiceView


@dataclass(frozen=True, slots=True)
class Moment:
    """`wall_s` is epoch seconds; `mono_s` never jumps."""

    wall_s: float
    mono_s: float


class Law(Protocol):
    """What a service's sizes are ruled by: paceline_router.autoscale.decide.Pacer."""

    stabilisation_s: float

    def rule(self, signals: ServiceSignals, now: float) -> Ruling: ...
    def blind(self, now: float) -> None: ...
    def restart(self, now: float) -> None: ...
    def seen_s(self, now: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Task:
    """One pool to resize; `drain_first` names the pods to go, and is empty for one that grows."""

    change: Change
    drain_first: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """One tick of one service. `forget`: pools whose drain-first annotation has done its work; `marks`: new ones."""

    service: ServiceView
    finding: Finding
    tasks: tuple[Task, ...] = ()
    recommended: tuple[Change, ...] = ()
    forget: tuple[str, ...] = ()
    marks: Mapping[str, Marks] = field(default_factory=dict)


class Steward:
    """Of one service, by its uid."""

    def __init__(self, make_law: Callable[[float], Law], find_table: FindTable, hold_s: float) -> None:
        self._make_law = make_law
        self._find_table = find_table
        self._hold_s = hold_s
        self._law: Law | None = None  # None while nothing is ruled
        self._settled: dict[str, tuple[int, float]] = {}  # pool → its size, and since when, monotonic
        self._recommended: dict[str, int] | None = None  # pool → size; None before the first look
        self._decisions: list[Json] | None = None
        self._written: Json | None = None
        self._written_s: float | None = None  # monotonic

    def look(self, service: ServiceView, answers: Answers | Blind, now: Moment) -> Turn:
        """What to do; `close` is told what of it was done."""
        self._watch_settling(service, now)
        told = None if isinstance(answers, Blind) else answers.of(service.id)
        enabled = service.mode == "Enabled"
        marks = {pool.name: mark(pool, self._hold_s, now.wall_s) for pool in service.pools if enabled}
        holds = (hold_of(pool, marks[pool.name], self._hold_s) for pool in service.pools if enabled)
        held = tuple(hold for hold in holds if hold)
        signals = answers if isinstance(answers, Blind) else self._gather(service, answers, held, now)
        blind = signals if isinstance(signals, Blind) else None
        ruling, seen_s = self._rule(service, signals, now)
        finding = Finding(blind, figures(service, told), ruling, held, seen_s)
        changes = ruling.changes if ruling else ()
        tasks = tuple(_task(service, change, told) for change in changes) if enabled else ()
        recommended = self._new_advice(service, changes) if service.mode == "Recommend" and ruling else ()
        resized = {task.change.pool for task in tasks}
        new = {p.name: marks[p.name] for p in service.pools if marks.get(p.name, p.marks) != p.marks}
        noted = {name: of_pool for name, of_pool in new.items() if name not in resized}
        forget = _done_draining(service, tasks) if enabled else ()
        return Turn(service, finding, _grow_first(tasks), recommended, forget, noted)

    def close(self, turn: Turn, done: tuple[Change, ...], now: Moment) -> Json | None:
        """The status to write now, if any; `wrote` is told when it is."""
        if self._decisions is None:
            self._decisions = [dict(one) for one in turn.service.status.get("decisions") or ()]
        self._decisions = decided(self._decisions, done, now.wall_s)
        self._decisions = decided(self._decisions, turn.recommended, now.wall_s, RECOMMENDED)
        part = status_part(turn.service, turn.finding, self._decisions, now.wall_s)
        before = own_part(turn.service.status)
        if part in (before, self._written):
            return None
        quiet = self._written_s is not None and now.mono_s - self._written_s < QUIET_S
        return None if quiet and not is_news(self._written or before, part) else part

    def wrote(self, part: Json, now: Moment) -> None:
        self._written, self._written_s = part, now.mono_s

    def restart(self, now: Moment) -> None:
        """The clock jumped."""
        if self._law:
            self._law.restart(now.mono_s)

    def _gather(
        self, service: ServiceView, answers: Answers, held: tuple[Hold, ...], now: Moment
    ) -> ServiceSignals | Blind:
        settled_s = {name: now.mono_s - since_s for name, (_, since_s) in self._settled.items()}
        standing = Standing({hold.pool for hold in held}, settled_s)
        return gather(service, answers.of(service.id), standing, self._find_table)

    def _rule(self, service: ServiceView, signals: ServiceSignals | Blind, now: Moment) -> tuple[Ruling | None, float]:
        """And how much of the stabilisation window has been seen, seconds."""
        if service.mode == "Disabled":
            self._law = None
            return None, 0.0
        if self._law is None:
            self._law = self._make_law(service.stabilisation_s)
        self._law.stabilisation_s = service.stabilisation_s
        if isinstance(signals, Blind):
            self._law.blind(now.mono_s)
            return None, 0.0
        ruling = self._law.rule(signals, now.mono_s)
        return ruling, self._law.seen_s(now.mono_s)

    def _watch_settling(self, service: ServiceView, now: Moment) -> None:
        before, self._settled = self._settled, {}
        for pool in service.pools:
            replicas, since_s = before.get(pool.name, (-1, 0.0))
            if pool.is_settled:
                self._settled[pool.name] = pool.replicas, since_s if replicas == pool.replicas else now.mono_s

    def _new_advice(self, service: ServiceView, changes: tuple[Change, ...]) -> tuple[Change, ...]:
        """Those that were not recommended before, by this process or by the one before it."""
        before = last_advice(service.status) if self._recommended is None else self._recommended
        self._recommended = {change.pool: change.after for change in changes}
        return tuple(change for change in changes if before.get(change.pool) != change.after)


def _grow_first(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    return tuple(sorted(tasks, key=lambda task: task.change.after < task.change.before))


def _task(service: ServiceView, change: Change, told: Told | None) -> Task:
    count = change.before - change.after
    pool = next(pool for pool in service.pools if pool.name == change.pool)
    return Task(change, choose(_loads(service, pool, told), count) if count > 0 else ())


def _loads(service: ServiceView, pool: PoolView, told: Told | None) -> list[PodLoad]:
    running: Mapping[str, float] = {}
    if told is not None:
        running = {row.labels.get("pod", ""): row.value for row in told.all(Signal.RUNNING, pool=pool.name)}
    return [
        PodLoad(
            name=pod.name,
            ready=pod.ready_since_s is not None,
            revision_is_current=pod.revision == pool.revision,
            running=int(running.get(pod.name, 0.0)),
            created_s=pod.created_s,
        )
        for pod in service.pods_of(pool.name)
    ]


def _done_draining(service: ServiceView, tasks: tuple[Task, ...]) -> tuple[str, ...]:
    """Pools with the annotation that are not shrinking, or of whose named pods none is left."""
    shrinking = {task.change.pool for task in tasks if task.drain_first}
    done = []
    for pool in service.pools:
        left = {pod.name for pod in service.pods_of(pool.name)} & pool.drain_first
        if pool.drain_first and pool.name not in shrinking and not (left and pool.existing > pool.replicas):
            done.append(pool.name)
    return tuple(done)
