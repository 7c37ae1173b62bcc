"""A replica whose layers are spread over pipeline stages: several micro-batches are on their way at once.

A driver calls `begin` whenever `can_begin`, again at `next_start_s`, and `finish` when each micro-batch's seconds are
over, oldest first. A micro-batch holds at most its share of the decodes (all of them by the number of stages, DESIGN
§5) and enters a stage when it left the one before and the stage is free: what differs between micro-batches shows as
bubbles. An engine that is one loop (machine.py) has crews instead of shares: newcomers join the crew that came back
last and stay with it, and only one that the loop's look at its queue just misses founds another; DistServe's decode
engine so runs all requests in one micro-batch, its other stages idle, until chance founds a second crew. Invariant: a
request is in at most one micro-batch, and policies see only those that are in none. Pure.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from paceline_engine.kv_blocks import KVBlocks
from paceline_engine.lengths import OutputLengths
from paceline_engine.pd import LEASE_S
from paceline_engine.policies.step import Limits, Policy
from paceline_engine.request import Request
from paceline_engine.sim.batching import Batch, fill
from paceline_engine.sim.machine import Machine
from paceline_engine.sim.replica import Emitted, Replica
from paceline_engine.step_time import StepTimeModel

# Seconds from the look of DistServe's loop at its queue until a micro-batch is off; its other tasks run in between.
# Read from two real runs (measured_runs.py): no second crew in 400 requests at 4/s, one after 120 to 180 at 6/s.
TURN_S = 0.0005


@dataclass(slots=True)
class Flight:
    """A micro-batch in the pipeline; `seconds` from its begin to its tokens."""

    batch: Batch
    seconds: float
    ends_s: float  # when the host has its tokens


class PipelinedReplica(Replica):
    """`bubble_s` totals the time that stages stood idle between two micro-batches."""

    def __init__(
        self,
        policy: Policy,
        kv: KVBlocks,
        limits: Limits,
        machine: Machine,
        model: StepTimeModel,
        lengths: OutputLengths,
        lease_s: float = LEASE_S,
    ) -> None:
        super().__init__(policy, kv, limits, machine, model, lengths, lease_s)
        self.bubble_s = 0.0
        self._flights: deque[Flight] = deque()
        self._free_s = [0.0] * machine.spec.stages  # when each stage has done what it was given
        self._host_free_s = 0.0
        self._crews: dict[str, int] = {}  # of an engine that is one loop: who always runs with whom

    def submit(self, request: Request) -> None:
        """One that comes in the last turn before the loop sends a lone crew off misses it, and founds one if it can."""
        super().submit(request)
        alone = self.machine.spec.one_loop and len(self._flights) == 1
        if alone and request.arrival_s >= self._flights[0].ends_s - TURN_S:
            spare = set(range(len(self._free_s))) - set(self._crews.values())
            if spare:
                self._crews[request.id] = min(spare)

    @property
    def next_start_s(self) -> float:
        """When the first stage can take another micro-batch."""
        return self._free_s[0]

    def drain_s(self, now: float) -> float:
        """Seconds until the last micro-batch in flight has left the last stage."""
        return max(self._free_s[-1] - now, 0.0)

    def can_begin(self, now: float) -> bool:
        one_loop = self.machine.spec.one_loop  # such a loop sends a micro-batch off without looking at the first stage
        return len(self._flights) < len(self._free_s) and (one_loop or self._free_s[0] <= now)

    def begin(self, now: float) -> float | None:
        """Send a micro-batch off at `now` and return the seconds until its tokens are out; None: nothing to do."""
        if not self.can_begin(now):
            raise RuntimeError("the first stage is busy")
        view = self.view
        if not view.decodes and not view.partials and not view.waiting:
            return None
        everyone = view.decodes
        view.decodes = self._chosen()
        chosen = {id(r) for r in view.decodes}
        held = [r for r in everyone if id(r) not in chosen]
        step = self.policy.plan(view, now)
        batch = fill(step, view, self.policy, now)
        self.counters.preemptions += len(batch.preempted)
        self.budget_tokens = step.token_budget
        taken = {id(r) for r in self._requests(batch)}
        view.decodes = [r for r in view.decodes if id(r) not in taken] + held
        view.partials = [r for r in view.partials if id(r) not in taken]
        if not batch:
            return None
        view.flying += len(taken)
        ends_s = self._pass(batch, now)
        flight = Flight(batch, ends_s - now, ends_s)
        self._flights.append(flight)
        self.batch = self._flights[0].batch
        return flight.seconds

    def _chosen(self) -> list[Request]:
        """The decodes of the next micro-batch, of those that are in none."""
        free = self.view.decodes
        if self.machine.spec.one_loop:
            return self._crew(free)
        decodes = len(free) + sum(len(f.batch.decodes) for f in self._flights)
        return free[: -(-decodes // len(self._free_s))]

    def _crew(self, free: list[Request]) -> list[Request]:
        """The crew that came back first, and every newcomer, for good."""
        crew = next((self._crews[r.id] for r in free if r.id in self._crews), None)
        if crew is None:
            flying = {self._crews[r.id] for f in self._flights for r in f.batch.decodes}
            crew = min(set(range(len(self._free_s))) - flying)
        chosen = [r for r in free if self._crews.get(r.id, crew) == crew]
        self._crews.update((r.id, crew) for r in chosen)
        return chosen

    def _pass(self, batch: Batch, now: float) -> float:
        """Take the batch through the stages: when the host has its tokens."""
        machine = self.machine
        host_s = machine.host_s(batch.prefill_tokens, len(batch.decodes), batch.decode_context)
        whole_s = machine.step_s(batch.prefill_tokens, batch.prefill_pairs, len(batch.decodes), batch.decode_context)
        stages = len(self._free_s)
        stage_s = (whole_s - host_s) / stages
        at = now
        for k, free_s in enumerate(self._free_s):
            if k:
                at += machine.spec.send_s
            if self._flights:
                self.bubble_s += max(at - free_s, 0.0)
            at = max(at, free_s) + stage_s
            self._free_s[k] = at
        self._host_free_s = max(at, self._host_free_s) + host_s
        return self._host_free_s

    def finish(self, now: float) -> Emitted:
        """The oldest micro-batch is through: its requests may run again, and its tokens come out."""
        flight = self._flights.popleft()
        requests = self._requests(flight.batch)
        self.view.flying -= len(requests)
        self.view.decodes += flight.batch.decodes
        self.view.partials += [r for r, _ in flight.batch.chunks]
        self.batch, self.step_s = flight.batch, flight.seconds
        emitted = super().finish(now)
        for r in emitted.finished:
            self._crews.pop(r.id, None)
        self.batch = self._flights[0].batch if self._flights else None
        return emitted

    @staticmethod
    def _requests(batch: Batch) -> list[Request]:
        return batch.decodes + [r for r, _ in batch.chunks]

    def _in_step(self, request: Request) -> bool:
        return any(r is request for f in self._flights for r in self._requests(f.batch))

    def _drop(self, request: Request) -> None:
        super()._drop(request)
        self._crews.pop(request.id, None)

    def _bury(self) -> None:
        still_flying = {i for i in self._dead if (r := self._live.get(i)) is not None and self._in_step(r)}
        self._dead -= still_flying
        super()._bury()
        self._dead |= still_flying
