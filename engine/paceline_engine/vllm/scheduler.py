"""vLLM's scheduler (v1, 0.32) under our policy: `--scheduler-cls=paceline_engine.vllm.scheduler.stall_free`.

vLLM lets an outsider set three things for a step, and this sets exactly those: the order of `running` and `waiting`,
what of them it sees, and `max_num_scheduled_tokens`. Everything else (KV blocks, prefix cache, preemption, aborts,
structured output, remote KV) stays vLLM's own code, so results are too. Invariant: after each `schedule` every request
is in exactly one of vLLM's queues, as without us; where no request has an objective, vLLM's `schedule` runs untouched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from paceline_engine.lengths import OutputLengths
from paceline_engine.pd import asks_remote_decode
from paceline_engine.policies.stall_free import StallFree
from paceline_engine.policies.step import Limits
from paceline_engine.request import Leg
from paceline_engine.step_time import StepShape
from paceline_engine.vllm import machine
from paceline_engine.vllm.adapters import Adapters
from paceline_engine.vllm.metrics import DIRECTORY, SchedulerMetrics
from paceline_engine.vllm.objectives import read_objective
from paceline_engine.vllm.pacer import HELD, BorrowedKV, Pacer, Plan, Tracked
from paceline_engine.vllm.queues import arranged, running_only
from paceline_engine.vllm.settings import InvalidSettings, read_settings
from paceline_engine.work import work_of

logger = init_logger(f"vllm.{__name__}")  # vLLM prints what is below its own name
MOST_UNMET = 4
TOLD_EVERY_S = 0.25  # the work in hand; routers ask less often


class _Paced(Scheduler):  # type: ignore[misc]  # vLLM is not where mypy runs
    """Scheduler or AsyncScheduler; `_clock` is replaced by tests."""

    running: list[Request]
    max_num_scheduled_tokens: int
    num_spec_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.policy is not SchedulingPolicy.FCFS:
            raise InvalidSettings("paceline orders requests by their objectives: leave --scheduling-policy at fcfs")
        if not self.scheduler_config.enable_chunked_prefill:
            raise InvalidSettings("paceline cuts prompts: leave chunked prefill on, or --scheduler-cls out")
        stages = self.parallel_config.pipeline_parallel_size
        if self.lora_config and stages > 1:
            raise InvalidSettings("paceline paces no adapters in a pipeline: use tensor parallelism alone with LoRA")
        settings = read_settings(self.vllm_config.additional_config or {})
        self._clock = time.monotonic
        self._most_tokens = self._budget_tokens = self.max_num_scheduled_tokens
        self._stuck = False
        self._kept_out = 0  # how many waited at the last plan, which holds while nobody joins them; -1: it does not
        self._unmet = 0  # plans in a row of which vLLM ran no prompt
        self._awaited = self._gave_way = False  # KV from elsewhere is there or could set out; prefills gave way to it
        self._aloft: list[Request] = []  # decodes in another micro-batch, which must not join this one too
        self._default = settings.default
        limits = Limits(self.max_num_active_reqs, self._most_tokens, machine.tile_tokens())
        model, lengths = machine.step_times(settings, self.vllm_config), OutputLengths()
        kv = BorrowedKV(self.cache_config.num_gpu_blocks, self.block_size)
        self._pacer = Pacer(StallFree(model, lengths), model, lengths, kv, limits, stages)
        self._metrics: SchedulerMetrics | None = None
        self._told_s, self._told_idle = 0.0, True
        if os.environ.get(DIRECTORY):
            served, engine = self.vllm_config.model_config.served_model_name, self.parallel_config.data_parallel_index
            labels = {"model_name": served, "engine": str(engine)}
            self._metrics = SchedulerMetrics(settings, limits, labels, CollectorRegistry())
            self._metrics.show(model)
        logger.info("paceline: %s, default class %s, table %s", type(self).__name__, settings.default, model.table.name)

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        if request.request_id not in self.requests:
            return
        now = self._clock()
        extra = request.sampling_params.extra_args if request.sampling_params else None
        self._pacer.take(
            request.request_id,
            request.num_prompt_tokens,
            request.max_tokens,
            now - max(time.time() - request.arrival_time, 0.0),
            read_objective(extra, self._default),
            self.requests[request.request_id],
            _leg(request),
        )

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        awaits_kv = self._awaiting_kv() if finished_status is RequestStatus.FINISHED_ERROR else set()
        gone: list[Request] = super().finish_requests(request_ids, finished_status)
        ended = {request.request_id for request in gone}
        for id_ in ended:
            self._pacer.forget(id_)
        if self._metrics:
            self._metrics.on_lost_kv(len(awaits_kv & ended))  # where it may not be recomputed
        self._tell(self._clock())
        return gone

    def _awaiting_kv(self) -> set[str]:
        """Of all that end in an error (a grammar may not compile either), those lose their KV on its way."""
        awaits = RequestStatus.WAITING_FOR_REMOTE_KVS
        return {request.request_id for request in self.kv_holding_waiting if request.status is awaits}

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        since_s = self._clock()
        left_out = False
        if self._is_stock():
            self._budget_tokens = self._most_tokens
            output = super().schedule(*args, **kwargs)
        elif self._is_as_planned():
            with running_only(self):
                output = super().schedule(*args, **kwargs)
        else:
            free = self._gather(since_s)
            plan = self._pacer.plan(since_s)
            plan.sit_out.extend(self._aloft)
            plan = self._show_adapters(self._make_way(plan))
            left_out = bool(plan.sit_out) or len(plan.admit) < len(self._pacer.view.waiting)
            left_out = left_out and not self._gave_way
            self._kept_out = -1 if free else len(self.waiting)
            # Speculation adds its tokens to whoever computes a single one; KV sets out only while some budget is left.
            tokens = plan.token_budget + self.num_spec_tokens * plan.singles + bool(free)
            self._budget_tokens = min(self._most_tokens, tokens)
            with arranged(self, plan, free, self._budget_tokens):
                output = super().schedule(*args, **kwargs)
            self._is_met(plan, output)
        if output.total_num_scheduled_tokens:
            self._pacer.depart(self._shape(output), since_s)
        else:
            self._pacer.rest()
            self._stuck = left_out and not self._pacer.flights
        return output

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        lost = set(self.failed_recving_kv_req_ids)
        results = super().update_from_output(scheduler_output, model_runner_output)
        if self._metrics:
            self._metrics.on_lost_kv(len(self.failed_recving_kv_req_ids - lost))
        outputs = (
            (o.request_id, len(o.new_token_ids), o.finish_reason is not None and self._has_ended(o.request_id))
            for client in results.values()
            for o in client.outputs
        )
        now = self._clock()
        if scheduler_output.total_num_scheduled_tokens:
            landed = self._pacer.land(outputs, now)
            if self._metrics:
                self._metrics.on_step(landed, self._budget_tokens, self._pacer.counts, self._pacer.model)
        self._tell(now)
        return results

    def _has_ended(self, id_: str) -> bool:
        """False for a session of streamed input, which ends an answer and waits for more of its prompt."""
        request = self.requests.get(id_)
        return request is None or request.is_finished()

    def _tell(self, now: float) -> None:
        """The work in hand on /metrics: now and then, and at once where there is none left."""
        tracked = self._pacer.tracked
        parked = len(self.requests) - sum(self.get_request_counts())  # ended, and kept for a transfer
        idle = not tracked and not parked
        if not self._metrics or (now - self._told_s < TOLD_EVERY_S and idle == self._told_idle):
            return
        self._told_s, self._told_idle = now, idle
        for one in tracked.values():
            one.computed_tokens, one.emitted_tokens = one.handle.num_computed_tokens, one.handle.num_output_tokens
        self._metrics.in_hand(work_of(tracked.values()), parked)

    def _is_stock(self) -> bool:
        """Whether vLLM's own schedule is what the policy would say: nobody is paced, or a plan ran nobody."""
        is_stuck, self._stuck = self._stuck, False  # a plan that runs nobody must not follow itself
        return is_stuck or not self._pacer.paced

    def _is_as_planned(self) -> bool:
        """Whether the last plan, all decodes and none of those that wait, still holds."""
        pacer = self._pacer
        if pacer.repeat <= 0 or len(self.waiting) != self._kept_out or self.kv_holding_waiting:
            return False
        if self.kv_cache_manager.block_pool.get_num_free_blocks() < len(self.running):
            return False
        pacer.repeat -= 1
        return True

    def _gather(self, now: float) -> list[Request]:
        """Fill the policy's view; returns the waiting requests that vLLM must see whatever is planned."""
        pacer = self._pacer
        view, start_s = pacer.view, pacer.start_s(now)
        pacer.kv.free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        view.decodes, view.partials, view.waiting, view.flying = [], [], [], 0
        self._aloft, self._awaited = [], False
        for request in self.running:
            self._place(pacer.tracked[request.request_id], request, start_s)
        for request in self.kv_holding_waiting:  # vLLM serves them before all that wait
            if self._handle_blocked_waiting_request(request):
                self._place(pacer.tracked[request.request_id], request, start_s)
                self._awaited = True
        free: list[Request] = []
        adapters = Adapters(self.running, self.lora_config.max_loras) if self.lora_config else None
        for request in self.waiting:
            is_ready, is_computed_here = self._handle_blocked_waiting_request(request), _is_computed_here(request)
            if not is_ready or not is_computed_here:
                self._awaited |= is_ready
                free.append(request)
                continue
            if adapters and not adapters.admit(request):
                continue  # others go past it
            tracked = pacer.tracked[request.request_id]
            tracked.prompt_tokens = request.num_prompt_tokens
            computed = request.num_computed_tokens or self._cached(tracked, request)
            tracked.stands_at(computed, request.num_output_tokens, start_s)
            tracked.preemptions = request.num_preemptions
            tracked.blocks = []
            view.waiting.append(tracked)
        return free

    def _place(self, tracked: Tracked, request: Request, start_s: float) -> None:
        """Sort one that holds KV into the view's decodes and partial prefills, or leave it out: it is on its way."""
        view, computed = self._pacer.view, request.num_computed_tokens
        placeholders = request.num_output_placeholders
        guessed = placeholders - -(-placeholders // (1 + self.num_spec_tokens))  # nobody knows yet whether they hold
        emitted = request.num_output_tokens + placeholders
        left = request.num_prompt_tokens + emitted - computed
        ends = placeholders and computed + 2 - placeholders >= request.num_prompt_tokens + request.max_tokens
        if placeholders and self._pacer.stages > 1 and not self.use_v2_model_runner:  # vLLM spaces them itself there
            self._aloft.append(request)
            view.flying += 1
            return
        if left <= 0 or ends or self.current_step + 1 < request.next_decode_eligible_step:
            view.flying += 1
            return
        tracked.prompt_tokens = request.num_prompt_tokens  # that of a session grows
        tracked.stands_at(computed - guessed, emitted - guessed, start_s)
        tracked.blocks = HELD
        (view.decodes if left == 1 else view.partials).append(tracked)

    def _cached(self, tracked: Tracked, request: Request) -> int:
        """Tokens of a waiting request in the prefix cache, as they were when it was first looked at."""
        if not tracked.is_looked_up:
            tracked.is_looked_up = True
            manager = self.kv_cache_manager
            if manager.prefix_cache_lookup_enabled(request):
                found = manager.coordinator.find_longest_cache_hit(request.block_hashes, request.num_tokens - 1)
                tracked.cached_tokens = found[1]
        return tracked.cached_tokens

    def _is_prefill(self, request: Request) -> bool:
        return self._pacer.tracked[request.request_id].left_tokens > 1

    def _make_way(self, plan: Plan) -> Plan:
        """Running prefills leave out every other step while KV from elsewhere is there, or could set out.

        vLLM comes to these after all that runs, with what is left of the budget: a running prefill would take that too.
        """
        prefills = []
        if self._awaited and not self._gave_way:
            prefills = [r for r in plan.run if r.status is RequestStatus.RUNNING and self._is_prefill(r)]
        self._gave_way = bool(prefills)
        if not prefills:
            return plan
        run = [r for r in plan.run if r not in prefills]
        return replace(plan, run=run, sit_out=[*plan.sit_out, *prefills])

    def _show_adapters(self, plan: Plan) -> Plan:
        """Who has an adapter never sits out: what vLLM does not see it would admit others beside, and end at both."""
        shown = [r for r in plan.sit_out if r.lora_request] if self.lora_config else []
        if not shown:
            return plan
        decodes = sum(not self._is_prefill(r) for r in shown)
        return replace(
            plan,
            run=[*plan.run, *shown],
            sit_out=[r for r in plan.sit_out if not r.lora_request],
            singles=plan.singles + decodes,
            token_budget=plan.token_budget + decodes,
        )

    def _is_met(self, plan: Plan, output: SchedulerOutput) -> None:
        """What vLLM does not run, for a rule of its own, plan after plan, is left to its own schedule once."""
        asks = plan.prompts and not self._gave_way
        most = 1 + self.num_spec_tokens
        self._unmet = self._unmet + 1 if asks and max(output.num_scheduled_tokens.values(), default=0) <= most else 0
        if self._unmet >= MOST_UNMET:
            self._stuck, self._unmet = True, 0

    def _shape(self, output: SchedulerOutput) -> StepShape:
        """What the step computes; vLLM has counted its tokens as computed already."""
        scheduled, requests = output.num_scheduled_tokens, self.requests
        if output.total_num_scheduled_tokens == len(scheduled):  # of most steps, the whole answer, sooner
            contexts = [requests[id_].num_computed_tokens for id_ in scheduled]
            if min(contexts) > 1:
                return StepShape(0, 0.0, len(contexts), sum(contexts))
        prefill_tokens, pairs, decodes, context = 0, 0.0, 0, 0
        most = 1 + self.num_spec_tokens
        for id_, tokens in scheduled.items():
            computed = requests[id_].num_computed_tokens
            if tokens <= most and computed > tokens:
                decodes += 1
                context += computed
            else:
                prefill_tokens += tokens
                pairs += tokens * (computed - tokens / 2)
        return StepShape(prefill_tokens, pairs, decodes, context)


class StallFreeScheduler(_Paced):
    """One step at a time."""


class AsyncStallFreeScheduler(_Paced, AsyncScheduler):  # type: ignore[misc]  # as above
    """Scheduling ahead of results."""


def stall_free(vllm_config: VllmConfig, **kwargs: Any) -> _Paced:
    """What `--scheduler-cls` names: vLLM calls it like a class."""
    ahead = vllm_config.scheduler_config.async_scheduling
    return (AsyncStallFreeScheduler if ahead else StallFreeScheduler)(vllm_config=vllm_config, **kwargs)


def _leg(request: Request) -> Leg:
    params = request.kv_transfer_params
    if not isinstance(params, dict):
        return Leg.WHOLE
    return Leg.PREFILL if asks_remote_decode(params) else Leg.DECODE if params.get("do_remote_prefill") else Leg.WHOLE


def _is_computed_here(request: Request) -> bool:
    """False for one whose KV another engine has: its first schedule only starts the transfer."""
    return _leg(request) is not Leg.DECODE or bool(request.num_computed_tokens)
