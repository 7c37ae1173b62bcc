"""Drives one replica on the wall clock: begins a step, waits until the model says that it ends, hands its tokens on.

Time stays honest: tokens bear the time at which their step should have ended, the next step starts at that same moment,
so that a late event loop delays tokens but does not stretch the schedule; only when it is behind by more than
`SLIP_WALL_S` is the lost time given up. How late each step was is reported, in wall seconds. Invariant: at most one
step is in progress, and whenever the replica has work one is in progress or about to begin.
"""

from __future__ import annotations

from time import monotonic
from typing import Protocol

from paceline_engine.alarms import Alarm, Alarms
from paceline_engine.clock import Clock
from paceline_engine.request import Request
from paceline_engine.sim.batching import Batch
from paceline_engine.sim.replica import Emitted, Replica

SLIP_WALL_S = 0.05


class StepSink(Protocol):
    """Who hears of steps; `now` is the model time at which the step should have started or ended."""

    def on_begin(self, batch: Batch, now: float) -> None: ...
    def on_finish(self, batch: Batch, emitted: Emitted, now: float, late_wall_s: float) -> None: ...
    def on_room(self) -> None: ...  # KV was freed or work ended: decode legs that wait for room may have some


class Worker:
    """The loop of one replica."""

    def __init__(self, replica: Replica, clock: Clock, sink: StepSink, alarms: Alarms) -> None:
        self.replica = replica
        self._clock = clock
        self._sink = sink
        self._alarms = alarms
        self._alarm: Alarm | None = None  # None: idle, or in the midst of `_end`
        self._ending = False
        self._due_s = 0.0
        self._answer_tokens: dict[str, int] = {}  # of requests that end by themselves: the policy must not know

    def submit(self, request: Request, answer_tokens: int) -> None:
        """Serves a request whose answer has `answer_tokens`. TooLong when this engine can never hold it."""
        self.replica.submit(request)
        if answer_tokens < request.max_tokens:
            self._answer_tokens[request.id] = answer_tokens
        self.wake()

    def abort(self, request_id: str) -> None:
        """Forgets a request, whatever it is at."""
        self.forget(request_id)
        if self.replica.abort(request_id):
            self.wake()

    def forget(self, request_id: str) -> None:
        """The request is over: the length of its answer need not be kept."""
        self._answer_tokens.pop(request_id, None)

    def wake(self) -> None:
        """Something changed that may let a step begin; it begins in the loop's next round, with all that came in."""
        self._sink.on_room()
        if self._alarm is None and not self._ending:
            self._alarm = self._alarms.set(monotonic(), self._begin_now)

    def stop(self) -> None:
        """No step ends or begins any more."""
        self._ending = True
        if self._alarm is not None:
            self._alarm.cancel()

    def _begin_now(self) -> None:
        self._alarm = None
        self._begin(self._clock.now())

    def _begin(self, start_s: float) -> None:
        step_s = self.replica.begin(start_s)
        if step_s is None:
            return
        assert self.replica.batch is not None
        self._sink.on_begin(self.replica.batch, start_s)
        self._due_s = start_s + step_s
        wait_s = self._clock.wall(self._due_s - self._clock.now())
        self._alarm = self._alarms.set(monotonic() + wait_s, self._end)

    def _end(self) -> None:
        self._alarm = None
        self._ending = True
        clock, due_s, batch = self._clock, self._due_s, self.replica.batch
        assert batch is not None
        late_wall_s = max(clock.wall(clock.now() - due_s), 0.0)
        if self._answer_tokens:
            self._draw_ends(batch)
        emitted = self.replica.finish(due_s)
        self._sink.on_finish(batch, emitted, due_s, late_wall_s)
        self._sink.on_room()
        self._ending = False
        self._begin(due_s if late_wall_s < SLIP_WALL_S else clock.now())

    def _draw_ends(self, batch: Batch) -> None:
        """The model draws its end-of-sequence token: an answer ends with this step, which nobody could know before."""
        ends = self._answer_tokens
        for request in (*batch.decodes, *(r for r, _ in batch.chunks)):
            if ends.get(request.id) == request.emitted_tokens + 1:
                request.max_tokens = request.emitted_tokens + 1
