"""The scheduler's own metrics (DESIGN §9), on the same page as vLLM's.

The scheduler runs in another process than the HTTP server: prometheus_client carries samples across by files in
PROMETHEUS_MULTIPROC_DIR. Without that folder they would be seen by nobody, and nothing is kept. Names and buckets are
the simulated engine's.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from paceline_engine.policies.step import Limits
from paceline_engine.sim.metrics import ITERATION_TOKENS, STEP_S
from paceline_engine.step_time import Regime, StepTimeModel
from paceline_engine.vllm.pacer import Counts, Landed
from paceline_engine.vllm.settings import Settings
from paceline_engine.work import CONTEXT_TOKENS, NO_WORK, PACE, PACED_REQUESTS, QUEUED_TOKENS, Work

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
EVERY_STEPS = 16  # how often what changes slowly is written again


class SchedulerMetrics:
    """`labels` are vLLM's own: model_name and engine."""

    def __init__(
        self, settings: Settings, limits: Limits, labels: Mapping[str, str], registry: CollectorRegistry
    ) -> None:
        self._values, names = tuple(labels.values()), tuple(labels)
        self._limits = limits
        self._steps = 0
        self._counted = Counts()

        def gauge(name: str, text: str, *own: str) -> Gauge:
            return Gauge(name, text, (*names, *own), multiprocess_mode="mostrecent", registry=registry)

        self._scale = gauge(
            "paceline_step_time_scale", "Fitted factor on the table", "regime", "table", "model", "tensor"
        )
        self._offset = gauge("paceline_step_time_offset_seconds", "Fitted constant", "regime")
        self._error = gauge("paceline_step_time_error_ratio", "Median relative error of predictions", "regime")
        self._trusted = gauge("paceline_step_time_trusted", "1 while the fit is believed", "regime")
        self._budget = gauge("paceline_token_budget_tokens", "Token budget of the last step").labels(*self._values)
        info = gauge("paceline_engine_info", "1", "llmservice", "llmservice_namespace", "pool", "role", "revision")
        s = settings
        info.labels(*self._values, s.service, s.namespace, s.pool or s.role, s.role, s.revision).set(1)
        seconds = Histogram(
            "paceline_step_seconds", "Seconds of a step", (*names, "kind"), buckets=STEP_S, registry=registry
        )
        self._measured, self._predicted = (seconds.labels(*self._values, k) for k in ("measured", "predicted"))
        tokens = Histogram(
            "paceline_step_tokens", "Tokens of a step", (*names, "phase"), buckets=ITERATION_TOKENS, registry=registry
        )
        self._prefill, self._decode = (tokens.labels(*self._values, p) for p in ("prefill", "decode"))
        stalls = Counter("paceline_stalls", "Gaps above the stall limit", names, registry=registry)
        self._stalls = stalls.labels(*self._values)
        misses = Counter(
            "paceline_engine_misses", "Requests that missed an objective", (*names, "cause"), registry=registry
        )
        self._ttft, self._tpot = (misses.labels(*self._values, c) for c in ("ttft", "tpot"))
        self._budget.set(limits.max_batched_tokens)
        parked = gauge("paceline_kv_parked_requests", "Requests that ended here whose KV somebody is to read")
        self._parked = parked.labels(*self._values)
        lost = Counter(
            "paceline_kv_transfer_failures", "KV that could not be had", (*names, "cause"), registry=registry
        )
        self._lost = lost.labels(*self._values, "unread")  # vLLM's connector does not tell the scheduler why
        self._queued = gauge(QUEUED_TOKENS, "Prompt tokens to be computed").labels(*self._values)
        self._context = gauge(CONTEXT_TOKENS, "Context of all that decode or will").labels(*self._values)
        self._paced = gauge(PACED_REQUESTS, "Requests that decode or will, by their TPOT limit", PACE)
        self._paces: set[float] = set()
        self.in_hand(NO_WORK, 0)

    def on_step(self, landed: Landed, budget_tokens: int, counts: Counts, model: StepTimeModel) -> None:
        """One step's result."""
        shape = landed.shape
        self._measured.observe(landed.measured_s)
        self._predicted.observe(landed.predicted_s)
        if shape.prefill_tokens:
            self._prefill.observe(shape.prefill_tokens)
        if shape.decodes:
            self._decode.observe(shape.decodes)
        self._budget.set(budget_tokens)
        self._stalls.inc(counts.stalls - self._counted.stalls)
        self._ttft.inc(counts.missed_ttft - self._counted.missed_ttft)
        self._tpot.inc(counts.missed_tpot - self._counted.missed_tpot)
        self._counted = Counts(counts.stalls, counts.missed_ttft, counts.missed_tpot)
        if self._steps % EVERY_STEPS == 0:
            self.show(model)
        self._steps += 1

    def in_hand(self, work: Work, parked: int) -> None:
        """What the engine has to do, and of how many requests it only keeps the KV."""
        self._queued.set(work.queued_tokens)
        self._context.set(work.context)
        self._parked.set(parked)
        self._paces |= work.paces.keys()
        for tpot_s in self._paces:
            self._paced.labels(*self._values, str(tpot_s)).set(work.paces.get(tpot_s, 0))

    def on_lost_kv(self, requests: int) -> None:
        """So many could not read their KV."""
        self._lost.inc(requests)

    def show(self, model: StepTimeModel) -> None:
        """The state of the step-time model."""
        table = (model.table.name, model.table.model, str(model.table.tensor))
        for regime in Regime:
            own = (*self._values, regime)
            self._scale.labels(*own, *table).set(model.scale(regime))
            self._offset.labels(*own).set(model.offset_s(regime))
            self._error.labels(*own).set(model.error_ratio(regime))
            self._trusted.labels(*own).set(model.trusted(regime))
