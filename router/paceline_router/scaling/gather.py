"""A service's signals from what Prometheus answered and Kubernetes shows, or why there are none. Pure.

Lengths: a class's own; while few of its requests were counted, what its spec expects, or else what all classes of the
service have in common. A class without arrivals needs none. Engines: the median of those whose fit is trusted, the
table as it is where none is. Invariant: what is returned is finite, fresh, and complete for every class, and for every
pool that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from paceline_api.conditions import Reason
from paceline_api.slo import SLOClass, Verdict
from paceline_engine.step_time import Regime, StepTable

from paceline_router.autoscale.signals import (
    Blind,
    ClassSignals,
    EngineSignals,
    Lengths,
    PoolSignals,
    ServiceSignals,
    Verdicts,
)
from paceline_router.facts import Role
from paceline_router.scaling.answers import Told
from paceline_router.scaling.checks import find_blind
from paceline_router.scaling.lengths import expected, measured, together
from paceline_router.scaling.queries import MEASURED_LENGTHS, Signal
from paceline_router.scaling.views import Hint, PoolView, ServiceView

FindTable = Callable[[str, str, int], StepTable | None]  # table, model, tensor


@dataclass(frozen=True, slots=True)
class Standing:
    """What the autoscaler itself knows of pools: those that are held, and for how long each is settled, seconds."""

    held: Collection[str] = ()
    settled_s: Mapping[str, float] | None = None


def gather(service: ServiceView, told: Told, standing: Standing, find_table: FindTable) -> ServiceSignals | Blind:
    """Of one moment. A pool of nobody that no table is known of stays as it is, while others of its role can grow."""
    if not service.pools:
        return Blind(Reason.METRICS_MISSING, "the service has no pools yet")
    blind = find_blind(service, told)
    if blind:
        return blind
    classes = _classes(service, told)
    if isinstance(classes, Blind):
        return classes
    pools: list[PoolSignals] = []
    unknown: dict[Role, Blind] = {}
    for pool in service.pools:
        engine = _engine(service, pool, told, find_table)
        if not isinstance(engine, Blind):
            pools.append(_pool(pool, engine, standing))
        elif pool.replicas:
            return engine
        else:
            unknown[pool.role] = engine
    for role in unknown.keys() - {pool.role for pool in pools}:
        return unknown[role]
    return ServiceSignals(classes, tuple(pools), told.answers.window_s, _budget(service, standing))


def verdicts(told: Told, signal: Signal, class_name: str) -> Verdicts:
    """Of a class, over the signal's window."""
    counts = {verdict.value: told.one(signal, slo_class=class_name, result=verdict) or 0.0 for verdict in Verdict}
    return Verdicts(**counts)


def _classes(service: ServiceView, told: Told) -> tuple[ClassSignals, ...] | Blind:
    prompts = _lengths(service, told, Signal.PROMPT_BUCKETS, Signal.PROMPT_SUM, service.prompt_hint)
    outputs = _lengths(service, told, Signal.OUTPUT_BUCKETS, Signal.OUTPUT_SUM, service.output_hint)
    found = []
    for slo in service.classes:
        rate = max(0.0, told.one(Signal.ARRIVALS, slo_class=slo.name) or 0.0)
        prompt, output = prompts[slo.name], outputs[slo.name]
        if rate and not (prompt.buckets and output.buckets):
            return _unknown_lengths(slo)
        found.append(ClassSignals(slo, rate, prompt, output, verdicts(told, Signal.VERDICTS, slo.name)))
    return tuple(found)


def _unknown_lengths(slo: SLOClass) -> Blind:
    message = f"no request of {slo.name} has completed yet, so that lengths are unknown; spec.workload can tell them"
    return Blind(Reason.METRICS_MISSING, message)


def _lengths(
    service: ServiceView, told: Told, buckets: Signal, sums: Signal, hint: Hint | None
) -> Mapping[str, Lengths]:
    """By class."""
    own: dict[str, tuple[float, Lengths]] = {}
    for slo in service.classes:
        counts = [(float(r.labels["le"]), r.value) for r in told.all(buckets, slo_class=slo.name) if "le" in r.labels]
        count = max((count for _, count in counts), default=0.0)
        own[slo.name] = count, measured(counts, told.one(sums, slo_class=slo.name) or 0.0)
    others = expected(hint) if hint else together(list(own.values()))
    few = MEASURED_LENGTHS if hint else 1
    return {name: lengths if count >= few else others for name, (count, lengths) in own.items()}


def _budget(service: ServiceView, standing: Standing) -> int | None:
    """While somebody's size is held, it takes no GPU from the other pools: they just do not grow."""
    if service.max_gpus is None or not standing.held:
        return service.max_gpus
    return max(service.max_gpus, sum(pool.gpus * pool.replicas for pool in service.pools))


def _engine(service: ServiceView, pool: PoolView, told: Told, find_table: FindTable) -> EngineSignals | Blind:
    table = _table(service, pool, told, find_table)
    if table is None:
        message = f"no engine of {pool.name} has told its step-time table, and the accelerator has none of its own"
        return Blind(Reason.METRICS_MISSING, message)
    kv = [
        int(row.labels["block_size"]) * int(row.labels["num_gpu_blocks"])
        for row in told.all(Signal.KV, pool=pool.name)
        if row.labels.get("block_size", "").isdecimal() and row.labels.get("num_gpu_blocks", "").isdecimal()
    ]

    def fit(signal: Signal, regime: Regime, otherwise: float) -> float:
        value = told.one(signal, pool=pool.name, regime=regime)
        return otherwise if value is None else value

    return EngineSignals(
        table,
        mixed_scale=fit(Signal.SCALES, Regime.MIXED, 1.0),
        mixed_offset_s=fit(Signal.OFFSETS, Regime.MIXED, 0.0),
        decode_scale=fit(Signal.SCALES, Regime.DECODE, 1.0),
        decode_offset_s=fit(Signal.OFFSETS, Regime.DECODE, 0.0),
        kv_tokens=min(kv, default=0),
    )


def _table(service: ServiceView, pool: PoolView, told: Told, find_table: FindTable) -> StepTable | None:
    """The one that most engines use, else the accelerator's."""
    for row in sorted(told.all(Signal.TABLES, pool=pool.name), key=lambda row: -row.value):
        tensor = row.labels.get("tensor", "")
        found = find_table(
            row.labels.get("table", ""),
            row.labels.get("model", service.model),
            int(tensor) if tensor.isdecimal() else pool.tensor,
        )
        if found:
            return found
    return find_table(pool.table, service.model, pool.tensor)


def _pool(pool: PoolView, engine: EngineSignals, standing: Standing) -> PoolSignals:
    return PoolSignals(
        name=pool.name,
        role=pool.role,
        gpus=pool.gpus,
        replicas=pool.replicas,
        ready=pool.ready,
        least=pool.least,
        most=pool.most,
        engine=engine,
        held=pool.name in standing.held,
        settled_s=(standing.settled_s or {}).get(pool.name, 0.0),
    )
