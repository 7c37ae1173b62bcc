"""One live engine over HTTP: requests of token ids that stream, its `/metrics`, and waiting for either.

Times are wall seconds of this client. Invariants: an engine that does not answer, or serves anyone else, is a
CalibrateError that says what to do; a stream opened here ends with the block that opened it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from paceline_api.slo import Course
from paceline_engine.http1 import Call, ClientError, ClientPool, Response, fetch

from paceline_planner.answer import Answer
from paceline_planner.calibrate import CalibrateError
from paceline_planner.calibrate.observe import Times
from paceline_planner.calibrate.page import Page, read
from paceline_planner.load import Sender
from paceline_planner.traces import TraceRequest

PATIENCE_S = 30.0  # for what an engine does at once

_POLL_S = 0.002
_FETCH_S = 30.0
_SETTLE_S = 5.0  # for an engine to count what it has sent, and to forget what was aborted
_PAGES_APART_S = 0.02

FOREIGN_LOAD = "serves other requests as well; take it out of its router, or wait until it is idle"


class Late(Exception):
    """What was waited for did not come; the message says what."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One request on its way."""

    answer: Answer
    call: Call

    @property
    def tokens(self) -> int:
        """How many have come."""
        record = self.answer.record
        return 0 if record.course.first_token_s is None else 1 + len(record.gaps_s)

    @property
    def ended(self) -> bool:
        return self.answer.record.course.end_s is not None

    @property
    def sent_s(self) -> float:
        return self.answer.record.course.arrival_s

    def times(self) -> Times:
        """When each token came; none before the first."""
        record = self.answer.record
        if record.course.first_token_s is None:
            return np.zeros(0)
        return record.course.first_token_s + np.cumsum([0.0, *record.gaps_s])


class Link:
    """`seed` must be new, or the engine may have our prompts cached."""

    def __init__(self, pool: ClientPool, seed: int) -> None:
        self.url = pool.url
        self._pool = pool
        self._sender = Sender("", "", class_header=False, seed=seed)
        self._numbers = itertools.count()

    def ask_for(self, model: str) -> None:
        """Sets the model of all requests to come, by the server's name for it."""
        self._sender = replace(self._sender, model=model)

    async def post(self, tokens: int, max_tokens: int) -> Response:
        """The whole answer to one prompt."""
        sender = self._sender
        return await self._fetch(b"POST", sender.target, sender.headers, self._body(tokens, max_tokens, ()))

    @contextmanager
    def opened(self, count: int, tokens: int, max_tokens: int, blocks: tuple[int, ...] = ()) -> Iterator[list[Stream]]:
        """`count` prompts of `tokens`, led by the 512-token `blocks`; in the end those that go on are aborted."""
        streams = [self._open(tokens, max_tokens, blocks) for _ in range(count)]
        try:
            yield streams
        finally:
            for stream in streams:
                stream.call.abort()

    async def until(self, test: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Late after `timeout_s`."""
        end_s = time.monotonic() + timeout_s
        while not test():  # what is waited for is counted by listeners that know nothing of events
            if time.monotonic() > end_s:
                raise Late(f"{what} within {timeout_s:.0f} s")
            await asyncio.sleep(_POLL_S)

    async def page(self) -> Page:
        """The engine's metrics now."""
        answer = await self._fetch(b"GET", b"/metrics")
        if answer.status != 200:
            raise CalibrateError(f"{self.url}/metrics answers {answer.status}; give the URL of a vLLM engine")
        return read(answer.body.decode("utf-8", "replace"), self.url)

    async def page_when(self, test: Callable[[Page], bool], fault: str) -> Page:
        """The first page that passes; CalibrateError with the fault when none does in time."""
        for _ in range(round(_SETTLE_S / _PAGES_APART_S)):
            page = await self.page()
            if test(page):
                return page
            await asyncio.sleep(_PAGES_APART_S)
        raise CalibrateError(f"{self.url} {fault}")

    async def idle_page(self) -> Page:
        """The page of an engine without requests."""
        return await self.page_when(lambda page: page.requests == 0, FOREIGN_LOAD)

    async def models(self) -> bytes:
        """The body of /v1/models; empty where there is none."""
        answer = await self._fetch(b"GET", b"/v1/models")
        return answer.body if answer.status == 200 else b""

    async def _fetch(
        self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]] | None = None, body: bytes = b""
    ) -> Response:
        try:
            return await fetch(self._pool, method, target, headers or (), body, timeout_s=_FETCH_S)
        except (ClientError, TimeoutError) as e:
            cause = f"{self.url} does not answer ({str(e) or 'timed out'})"
            raise CalibrateError(f"{cause}; start the engine, or mend --url") from e

    def _open(self, tokens: int, max_tokens: int, blocks: tuple[int, ...]) -> Stream:
        sender = self._sender
        body = self._body(tokens, max_tokens, blocks)
        course = Course(time.monotonic(), tokens, max_tokens=max_tokens)
        answer = Answer("", course, time.monotonic, lambda answer: None)
        return Stream(answer, self._pool.request(b"POST", sender.target, sender.headers, body, answer))

    def _body(self, tokens: int, max_tokens: int, blocks: tuple[int, ...]) -> bytes:
        return self._sender.body(next(self._numbers), TraceRequest(0.0, tokens, max_tokens, blocks))
