"""What all requests of one router share: its state, its policies, its connections and its books.

Made in `__main__`, passed down, never global. Invariant: `jobs` are exactly the requests received and not yet ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from paceline_api.config import RouterConfig
from paceline_api.outcomes import Outcome
from paceline_api.slo import SLOClass
from paceline_engine.alarms import Alarms
from paceline_engine.clock import Clock
from paceline_engine.lengths import OutputLengths

from paceline_router.attempts import Fault
from paceline_router.door import Door, Waiting
from paceline_router.facts import Role
from paceline_router.metrics import RouterMetrics
from paceline_router.request import Served
from paceline_router.silence import Owed
from paceline_router.spans import PassOn, Tracer
from paceline_router.state import Ledger
from paceline_router.tracker import Tracker
from paceline_router.upstream import LegHeaders, Upstreams
from paceline_router.waiting import Rule
from paceline_router.way import Guide


class InFlight(Waiting, Protocol):
    """A job, as those see it who count or end jobs."""

    @property
    def role(self) -> Role: ...
    @property
    def waiting_since_s(self) -> float | None: ...
    def give_up(self, outcome: Outcome, message: str) -> None: ...
    @property
    def owed(self) -> tuple[str, Owed] | None: ...
    def abandon_leg(self, replica: str, fault: Fault, why: str) -> None: ...


@dataclass(slots=True)
class Shell:
    """One service's router.

    `unready_cause` says why requests should not come to this router, empty if they may.
    """

    config: RouterConfig
    clock: Clock
    loop: asyncio.AbstractEventLoop
    guide: Guide
    door: Door
    upstreams: Upstreams
    headers: LegHeaders
    metrics: RouterMetrics
    id_prefix: str
    unready_cause: Callable[[], str]
    classes: Mapping[str, SLOClass] = field(init=False)
    served: Served = field(init=False)
    tracker: Tracker = field(default_factory=Tracker)
    lengths: OutputLengths = field(default_factory=OutputLengths)
    tracer: Tracer = field(default_factory=PassOn)
    alarms: Alarms = field(init=False)
    jobs: dict[InFlight, float] = field(default_factory=dict)  # and when each runs into its time limit, the first first
    draining: bool = False
    idle: asyncio.Event = field(default_factory=asyncio.Event)  # set when the last job ends

    def __post_init__(self) -> None:
        self.alarms = Alarms(self.loop)
        self.classes = self.config.slo_classes()
        self.served = Served(self.config.model, self.config.max_context_tokens)

    @property
    def ledger(self) -> Ledger:
        return self.guide.ledger

    @property
    def not_ready(self) -> str:
        """What `/readyz` says no with; empty: it says yes."""
        return "draining" if self.draining else self.unready_cause()

    @property
    def is_ready(self) -> bool:
        return not self.not_ready

    def adopt(self, config: RouterConfig) -> None:
        """Takes on the classes of `config`; requests under way keep theirs."""
        live = {"classes": config.classes, "default_class": config.default_class}
        self.config = self.config.model_copy(update=live)
        self.classes = self.config.slo_classes()
        self.headers.adopt(self.classes)
        self.door.adopt(rules(config))
        self.metrics.adopt(self.classes)

    def drain(self) -> None:
        """From now on `/readyz` says no."""
        self.draining = True

    async def wait_idle(self) -> None:
        """Until no job is left."""
        while self.jobs:
            self.idle.clear()
            await self.idle.wait()

    def remember(self, job: InFlight) -> None:
        """The job has begun."""
        self.jobs[job] = self.clock.now() + self.config.limits.request_timeout_s

    def expire(self, now: float) -> None:
        """Ends the jobs whose time limit has passed. All have the same limit, so the oldest come first."""
        late: list[InFlight] = []
        for job, due_s in self.jobs.items():
            if due_s > now:
                break
            late.append(job)
        for job in late:
            job.give_up(Outcome.TIMED_OUT, "the request ran into its time limit")

    def forget(self, job: InFlight) -> None:
        """The job has ended."""
        self.jobs.pop(job, None)
        self.door.leave(job)
        if not self.jobs:
            self.idle.set()

    def abandon(self, name: str) -> None:
        """The replica no longer answers its probes: whatever is in flight there has failed."""
        for job in list(self.jobs):
            job.abandon_leg(name, Fault.LOST, "the replica no longer answers")


def rules(config: RouterConfig) -> Mapping[str, Rule]:
    """Of the waiting room, by class."""
    return {c.name: Rule(c.priority) for c in config.classes}
