"""One simulated engine replica without a clock: requests in, steps out, tokens and endings back (DESIGN §8).

A driver (the server on the wall clock, the fleet simulator on a virtual one) calls `begin` when the replica is
idle, lets the returned seconds pass, and calls `finish`. KV of a prefill leg stays parked until `release` or until
its lease ends; a decode leg takes KV room first (`next_transfer`), and joins the batch when its KV arrived. No
request is ever lost: each one ends in exactly one of finished, aborted or expired. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from math import inf

from paceline_engine.kv_blocks import KVBlocks
from paceline_engine.lengths import OutputLengths
from paceline_engine.pd import LEASE_S
from paceline_engine.policies.step import Limits, Policy, View
from paceline_engine.request import Leg, Request
from paceline_engine.sim.batching import Batch, fill, grow_decodes
from paceline_engine.sim.machine import Machine
from paceline_engine.step_time import StepShape, StepTimeModel


class TooLong(ValueError):
    """A request that this engine can never hold; the message says by how much."""


@dataclass(slots=True)
class Parked:
    """KV of a finished prefill leg, kept for a decode engine until `expires_s`."""

    request_id: str
    tokens: int
    expires_s: float
    blocks: list[int]
    block_hashes: tuple[int, ...] = ()


@dataclass(slots=True)
class Counters:
    """Totals of one replica since it started."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: int = 0
    aborted: int = 0
    preemptions: int = 0
    steps: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    leases_expired: int = 0
    stalls: int = 0
    missed_ttft: int = 0
    missed_tpot: int = 0


@dataclass(slots=True)
class Emitted:
    """What one step brought: requests that got a token each, and those of them that are finished."""

    tokens: list[Request] = field(default_factory=list)
    finished: list[Request] = field(default_factory=list)


class Replica:
    """`model` is what the policy believes; `machine` is what happens. Times are seconds on the driver's clock."""

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
        self.view = View(kv, limits)
        self.lease_s = lease_s
        self.policy = policy
        self.machine = machine
        self.model = model
        self.lengths = lengths
        self.counters = Counters()
        self.parked: dict[str, Parked] = {}
        self.pulling: dict[str, Request] = {}  # decode legs with KV room whose KV is on its way
        self.remote: list[Request] = []  # decode legs that wait for KV room, first come first served
        self.batch: Batch | None = None  # the step in progress
        self.step_s = 0.0
        self.predicted_s = 0.0
        self.budget_tokens = 0
        self._last: list[Request] = []  # decodes of the last step
        self._context = 0  # and their context
        self._repeat = 0  # how often that step may still be repeated
        self._least_stall_s = inf  # the tightest stall limit seen
        self._dead: set[str] = set()  # aborted while in the step in progress
        self._live: dict[str, Request] = {}

    @property
    def requests(self) -> int:
        return len(self._live)

    @property
    def residents(self) -> Collection[Request]:
        """All that are here and not finished, whatever they wait for."""
        return self._live.values()

    @property
    def capacity_tokens(self) -> int:
        return self.view.kv.capacity * self.view.kv.block_size

    def submit(self, request: Request) -> None:
        """Take a request; TooLong when even an empty engine could not hold it."""
        need = request.prompt_tokens + request.max_tokens
        if request.max_tokens < 1 or request.prompt_tokens < 1 or need > self.capacity_tokens:
            raise TooLong(f"prompt and answer need {need} tokens of KV, this engine has {self.capacity_tokens}")
        self._live[request.id] = request
        self._least_stall_s = min(self._least_stall_s, request.objective.max_stall_s)
        if request.leg is Leg.DECODE:
            self.remote.append(request)
        else:
            self._queue(request)

    def _queue(self, request: Request) -> None:
        self.view.waiting.append(request)
        self._repeat = 0

    def next_transfer(self) -> Request | None:
        """The first decode leg, if there is KV room for it: fetch its KV, then call `kv_arrived` or `kv_failed`."""
        if not self.remote or self.view.running + len(self.pulling) >= self.view.limits.max_requests:
            return None
        first = self.remote[0]
        kv = self.view.kv
        spare = self._kept_free() if self.view.running else 0
        if kv.blocks_for(first.prompt_tokens + 1) + spare > kv.available:
            return None
        kv.grow(first, first.prompt_tokens + 1)
        del self.remote[0]
        self.pulling[first.id] = first
        return first

    def _kept_free(self) -> int:
        """Blocks that a prompt from elsewhere leaves free beside requests that run.

        DistServe's loop fetches prompts until those that wait to join hold 5 % of the pool, and lets one join where it
        fits beside all that wait, itself counted again (its `decoding_stage_scheduler.py`).
        """
        kv = self.view.kv
        if not self.machine.spec.one_loop:
            return kv.watermark
        held = 0
        for request in self.remote:
            blocks = kv.blocks_for(request.prompt_tokens)
            if 20 * held >= kv.capacity or held + blocks > kv.available:
                break
            held += blocks
        return held

    def kv_arrived(self, request_id: str) -> None:
        """The prompt's KV is here: the request decodes from the next step on. Unknown ids were aborted meanwhile."""
        request = self.pulling.pop(request_id, None)
        if request is None:
            return
        request.computed_tokens = request.prompt_tokens - 1
        request.cached_tokens = request.prompt_tokens
        if request.prompt_tokens == 1:
            self.view.kv.release(request)
            self._queue(request)
            return
        self.view.decodes.append(request)
        self._repeat = 0

    def kv_failed(self, request_id: str, *, recompute: bool) -> None:
        """The KV is not to be had: compute the prompt here, or forget the request (the driver answers for it)."""
        request = self.pulling.pop(request_id, None)
        if request is None:
            return
        self.view.kv.release(request)
        if recompute:
            request.leg = Leg.WHOLE
            self._queue(request)
        else:
            self._drop(request)

    def can_begin(self, now: float) -> bool:
        """Whether `begin` may be called; it may still find nothing to do."""
        return self.batch is None

    def drain_s(self, now: float) -> float:
        """Seconds until what is in the machine at `now`, between two steps, has left it."""
        return 0.0

    def begin(self, now: float) -> float | None:
        """Start a step at `now` and return the seconds that it takes; None when there is nothing to do."""
        if self.batch is not None:
            raise RuntimeError("a step is in progress")
        view = self.view
        if not view.decodes and not view.partials and not view.waiting:
            return None
        if self._repeat > 0 and len(self._last) == len(view.decodes) and grow_decodes(view, self._last):
            self._repeat -= 1
            batch = Batch(self._last, decode_context=self._context + len(self._last))
        else:
            step = self.policy.plan(view, now)
            batch = fill(step, view, self.policy, now)
            self.counters.preemptions += len(batch.preempted)
            self.budget_tokens = step.token_budget
            self._repeat = step.repeat - 1 if not batch.chunks and not batch.preempted else 0
        if not batch:
            return None
        self._last, self._context = batch.decodes, batch.decode_context
        self.batch = batch
        self.step_s = self.machine.step_s(
            batch.prefill_tokens, batch.prefill_pairs, len(batch.decodes), batch.decode_context
        )
        return self.step_s

    def finish(self, now: float) -> Emitted:
        """End the step in progress at `now`: tokens come out, finished requests leave, prefill legs park their KV."""
        batch = self.batch
        if batch is None:
            raise RuntimeError("no step is in progress")
        self.batch = None
        self.counters.steps += 1
        shape = StepShape(batch.prefill_tokens, batch.prefill_pairs, len(batch.decodes), batch.decode_context)
        self.predicted_s = self.model.predict(shape)
        self.model.observe(shape, self.step_s)
        emitted = Emitted()
        ended = self._advance_decodes(batch, emitted, now)
        for r, chunk in batch.chunks:
            self._advance_chunk(r, chunk, emitted, now)
        if ended:
            self.view.decodes = [r for r in self.view.decodes if not r.finished]
        if self._dead:
            self._bury()
        return emitted

    def _advance_decodes(self, batch: Batch, emitted: Emitted, now: float) -> bool:
        finished, least_stall_s = emitted.finished, self._least_stall_s
        stalls = 0
        for r in batch.decodes:
            r.computed_tokens += 1
            n = r.emitted_tokens
            if n:
                gap = now - r.last_token_s
                if gap > r.max_gap_s:
                    r.max_gap_s = gap
                if gap > least_stall_s and gap > r.objective.max_stall_s:
                    stalls += 1
                if r.gaps_s is not None:
                    r.gaps_s.append(gap)
            else:
                r.first_token_s = now
            r.emitted_tokens = n = n + 1
            r.last_token_s = now
            if n >= r.max_tokens:
                finished.append(r)
        emitted.tokens += batch.decodes
        self.counters.generation_tokens += len(batch.decodes)
        self.counters.stalls += stalls
        for r in finished:
            self._complete(r, now)
        return bool(finished)

    def _advance_chunk(self, r: Request, chunk: int, emitted: Emitted, now: float) -> None:
        counters = self.counters
        if r.emitted_tokens == 0:
            counters.prompt_tokens += chunk
            if r.computed_tokens == r.cached_tokens and r.block_hashes:
                counters.prefix_queried_tokens += r.prompt_tokens
                counters.prefix_hit_tokens += r.cached_tokens
        done = r.advance(chunk, now)
        if r.block_hashes:
            self.view.kv.seal(r, r.computed_tokens)
        if not done:
            return
        counters.generation_tokens += 1
        self.view.partials.remove(r)
        emitted.tokens.append(r)
        if r.finished:
            emitted.finished.append(r)
            self._complete(r, now)
        else:
            self.view.decodes.append(r)

    def _complete(self, r: Request, now: float) -> None:
        self._repeat = 0
        self.counters.finished += 1
        self._live.pop(r.id, None)
        if r.leg is Leg.PREFILL and r.id not in self._dead:
            self.parked[r.id] = Parked(r.id, r.prompt_tokens, now + self.lease_s, r.blocks, r.block_hashes)
            r.blocks = []
        if r.leg is not Leg.PREFILL:
            self.lengths.observe(r.objective.class_name, r.emitted_tokens)
            pace_s = (r.last_token_s - r.first_token_s) / max(1, r.emitted_tokens - 1)
            self.counters.missed_tpot += pace_s > r.objective.tpot_s
        self.counters.missed_ttft += r.first_token_s > r.ttft_deadline_s
        self.view.kv.release(r)

    def abort(self, request_id: str) -> bool:
        """Forget a request and free its KV, at once or when the step that it is in ends; False when it is unknown."""
        request = self._live.get(request_id)
        if request is None:
            return False
        if self.batch is not None and self._in_step(request):
            self._dead.add(request_id)
            return True
        self._remove(request)
        return True

    def _in_step(self, request: Request) -> bool:
        assert self.batch is not None
        return request in self.batch.decodes or any(r is request for r, _ in self.batch.chunks)

    def _bury(self) -> None:
        for request_id in self._dead:
            request = self._live.get(request_id)
            if request is not None:
                self._remove(request)
        self._dead.clear()

    def _remove(self, request: Request) -> None:
        view = self.view
        for queue in (view.decodes, view.partials, view.waiting, self.remote):
            if request in queue:
                queue.remove(request)
        self.pulling.pop(request.id, None)
        view.kv.release(request)
        self._repeat = 0
        self.counters.aborted += 1
        self._drop(request)

    def _drop(self, request: Request) -> None:
        del self._live[request.id]

    def release(self, request_id: str) -> bool:
        """The decode engine has read this prefill's KV; False when it is not, or no longer, here."""
        parked = self.parked.pop(request_id, None)
        if parked is None:
            return False
        self.view.kv.release(parked)
        return True

    def renew(self, request_id: str, now: float) -> Parked | None:
        """A pull begins: the lease runs anew. None when the KV is gone."""
        parked = self.parked.get(request_id)
        if parked is None or parked.expires_s <= now:
            return None
        parked.expires_s = now + self.lease_s
        return parked

    def expire(self, now: float) -> list[str]:
        """Free the KV of every lease that has ended, and name its requests."""
        over = [p.request_id for p in self.parked.values() if p.expires_s <= now]
        for request_id in over:
            self.release(request_id)
        self.counters.leases_expired += len(over)
        return over

    def holders(self) -> Iterator[Request | Parked]:
        """Everything that holds KV, for conservation checks."""
        yield from self.residents
        yield from self.parked.values()
