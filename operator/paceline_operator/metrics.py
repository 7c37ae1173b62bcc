"""The operator's own metrics."""

from __future__ import annotations

from paceline_api.conditions import ConditionType
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from paceline_operator.kinds import Json


class OperatorMetrics:
    """Label values are kinds and services, both bounded by what exists."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("llmservice_namespace", "llmservice")
        self._reconciles = Counter(
            "paceline_operator_reconciles", "Comparisons of a service.", ("result",), registry=registry
        )
        self._seconds = Histogram("paceline_operator_reconcile_seconds", "Time of one comparison.", registry=registry)
        self._writes = Counter("paceline_operator_writes", "Writes to the API server.", ("kind",), registry=registry)
        self._ready = Gauge("paceline_service_ready", "1: the service is Ready.", labels, registry=registry)
        self.leader = Gauge("paceline_operator_leader", "1: this process acts.", registry=registry)
        ProcessCollector(registry=registry)

    def reconciled(self, result: str, seconds: float) -> None:
        self._reconciles.labels(result).inc()
        self._seconds.observe(seconds)

    def wrote(self, kind: str) -> None:
        self._writes.labels(kind).inc()

    def observed(self, service: tuple[str, str], status: Json) -> None:
        ready = any(c["type"] == ConditionType.READY and c["status"] == "True" for c in status["conditions"])
        self._ready.labels(*service).set(float(ready))

    def forget(self, service: tuple[str, str]) -> None:
        try:
            self._ready.remove(*service)
        except KeyError:
            return  # it was never judged
