"""Runs the experiment on an engine: what each step cost, and which points were left out and why.

Steps are timed by the engine itself, in its own seconds. Invariants: nothing is measured while the engine serves anyone
else; a point that did not go as designed (a prompt in pieces, a prefix that was not cached, streams that did not all
run) is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from paceline_planner.calibrate import CalibrateError
from paceline_planner.calibrate.experiment import LOOK_TOKENS, Batch, Effort, Engine, batches, lone_prompts
from paceline_planner.calibrate.link import FOREIGN_LOAD, PATIENCE_S, Late, Link, Stream
from paceline_planner.calibrate.observe import decode_s, in_one_step, joint_s, prompt_s, timed_as_one_step
from paceline_planner.calibrate.page import Page
from paceline_planner.fit.grid import Point
from paceline_planner.prompts import BLOCK_TOKENS

Tell = Callable[[str], None]  # hears what is measured next
Blocks = tuple[int, ...]


@dataclass(slots=True)
class Measured:
    """`notes` say which points were left out."""

    points: list[Point] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Probe:
    """The experiment of one effort on one engine."""

    def __init__(self, link: Link, effort: Effort, tell: Tell) -> None:
        self._link = link
        self._effort = effort
        self._tell = tell
        self._found = Measured()
        self._repeats = range(effort.repeats)
        self._block_ids = itertools.count()

    async def measure(self, engine: Engine) -> Measured:
        """CalibrateError when the engine fails, or is not ours alone."""
        rate = await self._measure_prompts(engine)
        for batch in batches(engine, self._effort, rate):
            what = f"{batch.decodes} decodes at {batch.context} tokens of context"
            self._tell(what)
            try:
                await self._measure_batch(batch, PATIENCE_S + 3 * batch.decodes * batch.context / rate)
            except Late as e:
                self._leave_out(what, str(e))
        return self._found

    def _leave_out(self, what: str, why: str) -> None:
        self._found.notes.append(f"left out {what}: {why}")

    # --- prompts

    async def _measure_prompts(self, engine: Engine) -> float:
        """Adds the lone prompts' points; the tokens per second of the longest."""
        prefixes: dict[int, Blocks] = {0: ()}
        for lone in lone_prompts(engine):
            what = f"a prompt of {lone.tokens} tokens after {lone.prefix}"
            self._tell(what)
            if lone.prefix not in prefixes:
                prefixes[lone.prefix] = await self._cache_prefix(lone.prefix)
            pages = [await self._prompt(lone.prefix + lone.tokens, prefixes[lone.prefix]) for _ in self._repeats]
            taken = [prompt_s(*before_and_after, lone.prefix) for before_and_after in pages]
            seconds = [s for s in taken if s is not None]
            if seconds:
                self._found.points.append(Point("prefill", lone.tokens, lone.prefix, 0, 0, median(seconds)))
            else:
                self._leave_out(what, "the engine has another part of it cached, or was held up")
        alone = [p for p in self._found.points if not p.prefix_tokens]
        if not alone:
            raise CalibrateError(
                f"{self._link.url} ran no prompt alone; raise --max-batched-tokens, its context or its KV"
            )
        longest = max(alone, key=lambda p: p.prefill_tokens)
        return longest.prefill_tokens / longest.seconds

    async def _cache_prefix(self, tokens: int) -> Blocks:
        blocks = tuple(itertools.islice(self._block_ids, tokens // BLOCK_TOKENS))
        await self._prompt(tokens, blocks)
        return blocks

    async def _prompt(self, tokens: int, blocks: Blocks) -> tuple[Page, Page]:
        """Computes a prompt alone; the pages before and after."""
        link = self._link
        before = await link.idle_page()
        with link.opened(1, tokens, 1, blocks) as (stream,):
            try:
                await link.until(lambda: stream.ended, 4 * PATIENCE_S, f"no answer to a prompt of {tokens} tokens")
            except Late as e:
                raise CalibrateError(f"{link.url}: {e}") from e
        if not stream.tokens:
            raise CalibrateError(f"{link.url} failed a prompt of {tokens} tokens ({stream.answer.record.outcome})")
        after = await link.page_when(lambda page: page.prompts > before.prompts, "does not count its prompts")
        if after.prompts > before.prompts + 1:
            raise CalibrateError(f"{link.url} {FOREIGN_LOAD}")
        return before, after

    # --- batches

    async def _measure_batch(self, batch: Batch, patience_s: float) -> None:
        """Adds the batch's decode point, then those of the prompts that join it. Late when it does not run whole."""
        link = self._link
        await link.idle_page()
        with link.opened(batch.decodes, batch.context, batch.max_tokens) as streams:
            await link.until(lambda: all(s.tokens or s.ended for s in streams), patience_s, "not all began")
            alone_s = await self._measure_decodes(batch, streams, patience_s)
            for tokens in batch.joining:
                what = f"a prompt of {tokens} tokens beside {batch.decodes} decodes"
                try:
                    await self._measure_joining(tokens, batch, streams, alone_s)
                except Late as e:
                    self._leave_out(what, str(e))

    async def _measure_decodes(self, batch: Batch, streams: Sequence[Stream], patience_s: float) -> float:
        """Adds the point of the batch alone; seconds of its step."""
        began = _mean_tokens(streams)
        looks = [await self._look(batch)]
        for _ in range(self._effort.looks):
            enough = [s.tokens + LOOK_TOKENS for s in streams]
            await self._link.until(lambda n=enough: _reached(streams, n), patience_s, "the streams stopped")  # type: ignore[misc]
            looks.append(await self._look(batch))
        step_s = decode_s(looks)
        if step_s is None:
            raise Late("the engine was held up; if it is simulated, lower its --time-scale")
        context = batch.context + round((began + _mean_tokens(streams) - 1.0) / 2)
        self._found.points.append(Point("decode", 0, 0, batch.decodes, context, step_s))
        return step_s

    async def _look(self, batch: Batch) -> Page:
        """A page while all streams of the batch run, and nothing else. CalibrateError, Late."""
        page = await self._link.page()
        if page.requests > batch.decodes:
            raise CalibrateError(f"{self._link.url} {FOREIGN_LOAD}")
        if page.running < batch.decodes:
            raise Late(f"only {page.running} of them ran")
        return page

    async def _measure_joining(self, tokens: int, batch: Batch, streams: Sequence[Stream], alone_s: float) -> None:
        """Adds the mixed point of a prompt that joins the streams. Late when it never did so in one step."""
        began = _mean_tokens(streams)
        taken = [await self._joining_s(tokens, batch, streams, alone_s) for _ in self._repeats]
        seconds = [s for s in taken if s is not None]
        if not seconds:
            raise Late("the engine did not compute it in one step, or was held up")
        context = batch.context + round((began + _mean_tokens(streams)) / 2)
        self._found.points.append(Point("mixed", tokens, 0, batch.decodes, context, median(seconds)))

    async def _joining_s(self, tokens: int, batch: Batch, streams: Sequence[Stream], alone_s: float) -> float | None:
        """Seconds of the step that a prompt shares with the streams; None when it took several."""
        link = self._link
        earlier = await self._look(batch)
        two_more = [s.tokens + 2 for s in streams]
        await link.until(lambda: _reached(streams, two_more), PATIENCE_S, "the streams stopped")
        before = await self._look(batch)
        with link.opened(1, tokens, 1) as (joining,):
            await link.until(lambda: joining.ended, 4 * PATIENCE_S, "a prompt that joined did not end")
        arrived = joining.times()
        if not len(arrived):
            raise CalibrateError(f"{link.url} failed a prompt of {tokens} tokens ({joining.answer.record.outcome})")
        one_more = [s.tokens + 1 for s in streams]
        await link.until(lambda: _reached(streams, one_more), PATIENCE_S, "the streams stopped")
        after = await self._look(batch)
        step_s = joint_s(before, after, batch.decodes, alone_s) if before.slips == earlier.slips else None
        if step_s is None or timed_as_one_step(before, after, step_s, alone_s):
            return step_s
        return step_s if in_one_step([s.times() for s in streams], joining.sent_s, float(arrived[0])) else None


def _reached(streams: Sequence[Stream], tokens: Sequence[int]) -> bool:
    """Whether every stream has its tokens; one that ended has all it will ever have."""
    return all(s.ended or s.tokens >= n for s, n in zip(streams, tokens, strict=True))


def _mean_tokens(streams: Sequence[Stream]) -> float:
    return sum(s.tokens for s in streams) / len(streams)
