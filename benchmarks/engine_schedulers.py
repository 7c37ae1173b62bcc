"""Schedulers for measurements, within vLLM's own process: each writes its steps down, and one changes its budget.

`--scheduler-cls=engine_schedulers.Ours` is ours, `…Fixed` is vLLM's own, whose token budget a request may set for what
follows (its extra argument `token_budget`; 0: the one that vLLM started with): so one process stands for every fixed
budget. Invariant: nothing else differs from what they are made of. Seconds of CLOCK_MONOTONIC, which clients read too.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from engine_steps import BUDGET, ROW, ROWS
from paceline_engine.vllm.scheduler import StallFreeScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request


class _Written(Scheduler):  # type: ignore[misc]  # vLLM is not where mypy runs
    """One row a step, in the file that the environment names."""

    max_num_scheduled_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rows = Path(os.environ[ROWS]).open("ab", buffering=0)  # noqa: SIM115  # until the process ends
        self._since_s = self._scheduling_s = 0.0

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        self._since_s = time.monotonic()
        output = super().schedule(*args, **kwargs)
        self._scheduling_s = time.monotonic() - self._since_s
        return output

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        predicted_s, began_s = self._predicted_s(), time.monotonic()
        results = super().update_from_output(scheduler_output, model_runner_output)
        ended_s = time.monotonic()
        tokens = scheduler_output.num_scheduled_tokens
        if tokens:
            prefill = sum(n for n in tokens.values() if n > 1)
            times = (self._since_s, ended_s, self._scheduling_s, ended_s - began_s, predicted_s)
            self._rows.write(ROW.pack(*times, prefill, len(tokens)))
        return results

    def _predicted_s(self) -> float:
        return math.nan


class Ours(_Written, StallFreeScheduler):
    """The stall-free scheduler."""

    def _predicted_s(self) -> float:
        flights = self._pacer._flights
        return flights[0].predicted_s if flights else math.nan


class Fixed(_Written):
    """vLLM's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._started_with = self.max_num_scheduled_tokens

    def add_request(self, request: Request) -> None:
        extra = (request.sampling_params.extra_args if request.sampling_params else None) or {}
        if BUDGET in extra:
            self.max_num_scheduled_tokens = int(extra[BUDGET]) or self._started_with
        super().add_request(request)
