"""What vLLM's scheduler needs besides its own queues to run a batching policy: objectives, steps in flight, lessons.

The adapter (`scheduler`) tells it of every request that comes and goes, fills `view` before each step, and asks `plan`.
With several steps in flight a plan starts where the last of them is predicted to end, and tokens on their way count as
emitted: no slack is spent twice. A step's time is the interval between two results while the engine is busy, so that
what the host does between steps is in it. Times are seconds on one clock, given by the caller. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isnan, nan
from typing import Any

from paceline_engine.kv_blocks import KVBlocks
from paceline_engine.lengths import OutputLengths
from paceline_engine.policies.step import Limits, Policy, View
from paceline_engine.request import Leg, Objective, Request
from paceline_engine.step_time import StepShape, StepTimeModel
from paceline_engine.vllm.objectives import BEST_EFFORT

HELD = [0]  # blocks of whoever holds any: vLLM counts them itself, policies ask only whether there are some


class BorrowedKV(KVBlocks):
    """vLLM's block pool as a policy sees it: `free` blocks, told before each plan."""

    __slots__ = ("free",)

    def __init__(self, capacity: int, block_size: int) -> None:
        super().__init__(capacity, block_size)
        self.free = capacity

    @property
    def available(self) -> int:
        return self.free


@dataclass(slots=True, eq=False)
class Tracked(Request):
    """A request of vLLM. `emitted_tokens` counts those in flight too, `out_tokens` those that have left the engine."""

    handle: Any = None  # vLLM's own request
    paced: bool = False  # it has an objective, or its service's class has
    is_looked_up: bool = False  # in vLLM's prefix cache
    out_tokens: int = 0
    out_s: float = nan

    def stands_at(self, computed_tokens: int, emitted_tokens: int, last_s: float) -> None:
        """Where vLLM has it, steps in flight included; `last_s` is when what flies will have landed."""
        self.computed_tokens = computed_tokens
        if emitted_tokens == self.out_tokens:
            self.last_token_s = self.out_s
        else:
            self.last_token_s = last_s
            if not self.out_tokens:
                self.first_token_s = last_s
        self.emitted_tokens = emitted_tokens


@dataclass(frozen=True, slots=True)
class Plan:
    """A step in the only terms that vLLM understands; all lists hold its own requests.

    `run` hold KV and run in this order, `sit_out` hold KV and must not run, `admit` come from the queue in this order.
    `singles` of them compute one token, `prompts` more. `victim` gives up its KV first, where there is too little for
    the decodes.
    """

    run: list[Any]
    sit_out: list[Any]
    admit: list[Any]
    singles: int
    prompts: int
    token_budget: int
    victim: Any = None


@dataclass(frozen=True, slots=True)
class Flight:
    """A step between schedule and result."""

    shape: StepShape
    predicted_s: float
    since_s: float


@dataclass(frozen=True, slots=True)
class Landed:
    """A step that has ended."""

    shape: StepShape
    predicted_s: float
    measured_s: float


@dataclass(slots=True)
class Counts:
    """Totals since the engine started. Requests without an objective stall and miss nothing."""

    stalls: int = 0
    missed_ttft: int = 0
    missed_tpot: int = 0


@dataclass(slots=True)
class Pacer:
    """`stages` are those of a pipeline: steps overlap there, and each is timed on its own."""

    policy: Policy
    model: StepTimeModel
    lengths: OutputLengths
    kv: BorrowedKV
    limits: Limits
    stages: int = 1
    view: View = field(init=False)
    tracked: dict[str, Tracked] = field(default_factory=dict, init=False)
    paced: int = field(default=0, init=False)  # how many of them have an objective
    counts: Counts = field(default_factory=Counts, init=False)
    repeat: int = field(default=0, init=False)  # how often the last plan may still be followed unseen
    _flights: deque[Flight] = field(default_factory=deque, init=False)
    _busy_since_s: float = field(default=nan, init=False)  # the last result, unless the engine had nothing to do since

    def __post_init__(self) -> None:
        self.view = View(self.kv, self.limits)

    @property
    def flights(self) -> int:
        return len(self._flights)

    def take(
        self,
        id_: str,
        prompt_tokens: int,
        max_tokens: int,
        arrival_s: float,
        objective: Objective | None,
        handle: Any,
        leg: Leg = Leg.WHOLE,
    ) -> None:
        """A request has come; a known id only carries a longer prompt (vLLM's streamed input) and stays."""
        self.repeat = 0
        if id_ in self.tracked:
            return
        paced = objective is not None
        self.tracked[id_] = Tracked(
            id_, prompt_tokens, max_tokens, arrival_s, objective or BEST_EFFORT, leg=leg, handle=handle, paced=paced
        )
        self.paced += paced

    def forget(self, id_: str) -> Tracked | None:
        """It has ended, in whatever way; what it was, unless that was known."""
        gone = self.tracked.pop(id_, None)
        if gone is not None:
            self.repeat = 0
            self.paced -= gone.paced
        return gone

    def start_s(self, now: float) -> float:
        """When the next step can start at the earliest."""
        if not self._flights or self.stages > 1:
            return now
        first = self._flights[0].since_s
        began = first if isnan(self._busy_since_s) else max(first, self._busy_since_s)
        return max(now, began + sum(f.predicted_s for f in self._flights))

    def plan(self, now: float) -> Plan:
        """The next step, from `view`, whose requests are all Tracked."""
        view, start_s = self.view, self.start_s(now)
        spared = self._spare()
        step = self.policy.plan(view, start_s)
        self.repeat = 0 if self.stages > 1 else step.repeat - 1  # batches take turns
        chosen = [*step.decodes, *(r for r in step.prefills if r.blocks)]
        sit_out: list[Any] = []
        if len(chosen) < len(view.decodes) + len(view.partials):
            shown = set(map(id, chosen))
            sit_out = [_handle(r) for r in (*view.decodes, *view.partials) if id(r) not in shown]
        sit_out += map(_handle, spared)
        prompts = sum([r.left_tokens > 1 for r in step.prefills])
        short = self.kv.free < len(step.decodes) and (view.decodes or view.partials)
        return Plan(
            run=[_handle(r) for r in chosen],
            sit_out=sit_out,
            admit=[_handle(r) for r in step.prefills if not r.blocks],
            singles=len(step.decodes) + len(step.prefills) - prompts,
            prompts=prompts,
            token_budget=step.token_budget,
            victim=_handle(self.policy.victim(view, start_s)) if short else None,
        )

    def _spare(self) -> list[Request]:
        """Decodes above a micro-batch's share, taken out of the view: the next one's (DESIGN §5)."""
        view = self.view
        share = -(-(len(view.decodes) + view.flying) // self.stages)
        spared = view.decodes[share:]
        if spared:
            view.flying += len(spared)
            view.decodes = view.decodes[:share]
        return spared

    def depart(self, shape: StepShape, since_s: float) -> Flight:
        """A step has been scheduled; `since_s` is when its scheduling began."""
        flight = Flight(shape, self.model.predict(shape), since_s)
        self._flights.append(flight)
        return flight

    def rest(self) -> None:
        """There was nothing to schedule: the time until the next step is no step's."""
        self.repeat = 0
        if not self._flights:
            self._busy_since_s = nan

    def land(self, outputs: Iterable[tuple[str, int, bool]], now: float) -> Landed:
        """The oldest step's result: (id, tokens, whether it ended) of the requests that emitted; the model learns."""
        flight = self._flights.popleft()
        begun_s = flight.since_s
        if self.stages == 1 and not isnan(self._busy_since_s):
            begun_s = self._busy_since_s
        landed = Landed(flight.shape, flight.predicted_s, now - begun_s)
        self.model.observe(landed.shape, landed.measured_s)
        for id_, tokens, ended in outputs:
            request = self.tracked.get(id_)
            if request is None:
                continue
            if tokens:
                self._emit(request, tokens, now)
            if ended:
                self._end(request)
        self._busy_since_s = now if self.tracked else nan
        return landed

    def _emit(self, request: Tracked, tokens: int, now: float) -> None:
        if request.out_tokens:
            gap_s = now - request.out_s
            request.max_gap_s = max(request.max_gap_s, gap_s)
            self.counts.stalls += request.paced and gap_s > request.objective.max_stall_s
        else:
            request.first_token_s = now
            self.counts.missed_ttft += request.paced and now > request.ttft_deadline_s
        request.out_tokens += tokens
        request.out_s = now

    def _end(self, request: Tracked) -> None:
        if request.out_tokens:
            self.lengths.observe(request.objective.class_name, request.out_tokens)
        if request.out_tokens > 1:
            pace_s = (request.out_s - request.first_token_s) / (request.out_tokens - 1)
            self.counts.missed_tpot += request.paced and pace_s > request.objective.tpot_s
        self.forget(request.id)


def _handle(request: Request) -> Any:
    assert isinstance(request, Tracked)
    return request.handle
