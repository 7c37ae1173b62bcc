"""Open-loop load over real HTTP: each request goes out at its time, whatever became of those before it.

Model time = wall × scale through the one `Clock`. Lateness is wall time: of each send behind its schedule, and of the
event loop behind a 10 ms timer, since a loop that is busy also reads answers late. Invariant: every request sent is
given to `on_record` exactly once, also when the run is stopped (then as client_gone).
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import orjson
from paceline_api import headers as names
from paceline_api.outcomes import Outcome
from paceline_api.slo import Course
from paceline_engine.alarms import Alarms
from paceline_engine.clock import Clock
from paceline_engine.http1 import Call, ClientPool, Header

from paceline_planner import prompts
from paceline_planner.aggregate import Record
from paceline_planner.answer import Answer
from paceline_planner.traces import TraceRequest

OnRecord = Callable[[Record, float], None]  # a request that ended, and now

_LEAD_S = 0.02  # wall: between the start of the run and time 0
_LAG_PERIOD_S = 0.01  # wall


@dataclass(frozen=True, slots=True)
class Sender:
    """What all requests of a run have in common."""

    model: str
    class_name: str  # the class whose objective they are judged by
    class_header: bool = True  # False: let the server choose its default
    chat: bool = False
    seed: int = 0
    timeout_s: float = 600.0  # model seconds for a whole answer

    @property
    def target(self) -> bytes:
        return b"/v1/chat/completions" if self.chat else b"/v1/completions"

    @property
    def headers(self) -> list[Header]:
        fixed = [(b"content-type", b"application/json"), (b"accept", b"text/event-stream")]
        chosen = [(names.SLO_CLASS.encode(), self.class_name.encode())] if self.class_header else []
        return fixed + chosen

    def body(self, number: int, request: TraceRequest) -> bytes:
        """The request's JSON: exact lengths through token ids (or about so, as chat text) and `ignore_eos`."""
        args = self.seed, number, request.prompt_tokens, request.prefix_blocks
        prompt: dict[str, object] = (
            {"messages": [{"role": "user", "content": prompts.words(*args)}]}
            if self.chat
            else {"prompt": prompts.token_ids(*args)}
        )
        value = {
            "model": self.model,
            **prompt,
            "max_tokens": request.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


@dataclass(frozen=True, slots=True)
class Offered:
    """How the sending went."""

    sent: int
    lasted_s: float  # model seconds from time 0 to the end of sending
    client_p99_s: float | None  # wall
    simulated: bool
    interrupted: bool


class OpenLoop:
    """One run against one server."""

    def __init__(
        self, pool: ClientPool, sender: Sender, clock: Clock, on_record: Callable[[Record, float], None]
    ) -> None:
        self.sent = 0
        self.finished = 0
        self._pool = pool
        self._sender = sender
        self._clock = clock
        self._on_record = on_record
        self._origin_s = 0.0
        self._simulated = False
        self._in_flight: dict[Answer, tuple[Call, asyncio.TimerHandle]] = {}
        self._quiet = asyncio.Event()
        self._send_lateness: array[float] = array("d")
        self._loop_lag: array[float] = array("d")

    def now(self) -> float:
        """Model seconds since time 0 of the run."""
        return self._clock.now() - self._origin_s

    async def run(self, requests: Iterable[TraceRequest], stop: asyncio.Event) -> Offered:
        """Sends all and waits for their ends, or until `stop` is set; then what is in flight is aborted."""
        self._origin_s = self._clock.now() + _LEAD_S * self._clock.scale
        ended_s = 0.0

        alarms = Alarms(asyncio.get_running_loop())

        async def send_then_wait() -> None:
            nonlocal ended_s
            await self._send_all(requests, alarms)
            ended_s = self.now()
            while self._in_flight:
                self._quiet.clear()
                await self._quiet.wait()

        with closing(alarms):
            async with asyncio.TaskGroup() as group:
                work = group.create_task(send_then_wait())
                others = [group.create_task(self._watch_lag(alarms)), group.create_task(stop.wait())]
                await asyncio.wait({work, others[1]}, return_when=asyncio.FIRST_COMPLETED)
                for task in (*others, work):
                    task.cancel()
        interrupted = not work.done() or work.cancelled()
        for answer in list(self._in_flight):
            self._give_up(answer, Outcome.CLIENT_GONE)
        return Offered(
            sent=self.sent,
            lasted_s=ended_s or self.now(),
            client_p99_s=self._lateness_p99_s(),
            simulated=self._simulated,
            interrupted=interrupted,
        )

    async def _send_all(self, requests: Iterable[TraceRequest], alarms: Alarms) -> None:
        headers = self._sender.headers
        for number, request in enumerate(requests):
            body = self._sender.body(number, request)
            await alarms.wait_until(time.monotonic() + self._clock.wall(request.arrival_s - self.now()))
            self._send(request, headers, body)
            self._send_lateness.append(max(0.0, self._clock.wall(self.now() - request.arrival_s)))

    def _send(self, request: TraceRequest, headers: list[Header], body: bytes) -> None:
        course = Course(self.now(), request.prompt_tokens, max_tokens=request.output_tokens)
        answer = Answer(self._sender.class_name, course, self.now, self._done)
        call = self._pool.request(b"POST", self._sender.target, headers, body, answer)
        timeout = asyncio.get_running_loop().call_later(
            self._clock.wall(self._sender.timeout_s), self._give_up, answer, Outcome.TIMED_OUT
        )
        self._in_flight[answer] = call, timeout
        self.sent += 1

    def _give_up(self, answer: Answer, outcome: Outcome) -> None:
        self._in_flight[answer][0].abort()
        answer.finish(outcome)

    def _done(self, answer: Answer) -> None:
        self._in_flight.pop(answer)[1].cancel()
        self._simulated = self._simulated or answer.simulated
        self.finished += 1
        self._on_record(answer.record, self.now())
        if not self._in_flight:
            self._quiet.set()

    async def _watch_lag(self, alarms: Alarms) -> None:
        while True:
            due_s = time.monotonic() + _LAG_PERIOD_S
            await alarms.wait_until(due_s)
            self._loop_lag.append(time.monotonic() - due_s)

    def _lateness_p99_s(self) -> float | None:
        """The larger of the two p99s: a late send and a late reading both falsify what is measured."""
        measured = [np.percentile(np.array(values), 99) for values in (self._send_lateness, self._loop_lag) if values]
        return float(max(measured)) if measured else None
