"""The autoscaler's own metrics. A service's rows are there while this process acts on it, and go with it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from paceline_router.autoscale.signals import Change, Ruling
from paceline_router.scaling.steward import Turn
from paceline_router.scaling.views import Id

SERVICE = ("llmservice_namespace", "llmservice")


class AutoscalerMetrics:
    """Label values are services, pools, classes and roles, all bounded by what exists."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, help_: str, *labels: str) -> Gauge:
            return Gauge(f"paceline_autoscaler_{name}", help_, labels, registry=registry)

        def counter(name: str, help_: str, *labels: str) -> Counter:
            return Counter(f"paceline_autoscaler_{name}", help_, labels, registry=registry)

        self.leader = gauge("leader", "1: this process acts.")
        self._available = gauge("metrics_available", "1: what Prometheus says may be decided by.", *SERVICE)
        self._replicas = gauge("replicas", "Size of a pool, as /scale says.", *SERVICE, "pool")
        self._wanted = gauge("wanted_replicas", "Least size that the law wants.", *SERVICE, "pool")
        self._held = gauge("held", "1: somebody else set the pool's size, which is respected.", *SERVICE, "pool")
        self._predicted = gauge(
            "predicted_attainment_ratio", "Share of requests predicted to be good.", *SERVICE, "slo_class"
        )
        self._factor = gauge("load_factor", "Correction of the load that a role sees.", *SERVICE, "role")
        self._changes = counter("changes", "Sizes that were changed.", *SERVICE, "pool", "direction")
        self._ticks = counter("ticks", "Looks at a service: decided, blind, or failed by an error.", *SERVICE, "result")
        self._failures = counter("query_failures", "Ticks in which Prometheus did not answer.", "cause")
        self.query_seconds = Histogram(
            "paceline_autoscaler_query_seconds", "Time of one query to Prometheus.", registry=registry
        )
        sizes = (self._replicas, self._wanted, self._held)
        self._gauges = (self._available, self._predicted, self._factor, *sizes)
        for cause in ("unreachable", "refused", "malformed"):
            self._failures.labels(cause)
        ProcessCollector(registry=registry)

    def query_failed(self, cause: str) -> None:
        self._failures.labels(cause).inc()

    def ticked(self, service: Id, result: str) -> None:
        self._ticks.labels(*service, result).inc()

    def looked(self, turn: Turn, done: tuple[Change, ...]) -> None:
        """What a tick found and did; whatever is no longer so has no row."""
        service = turn.service.id
        self._clear(service)
        self._available.labels(*service).set(0 if turn.finding.blind else 1)
        held = {hold.pool for hold in turn.finding.holds}
        sizes = {change.pool: change.after for change in done}
        for pool in turn.service.pools:
            self._replicas.labels(*service, pool.name).set(sizes.get(pool.name, pool.replicas))
            self._held.labels(*service, pool.name).set(pool.name in held)
            for direction in ("up", "down"):
                self._changes.labels(*service, pool.name, direction)
        for change in done:
            self._changes.labels(*service, change.pool, "up" if change.after > change.before else "down").inc()
        if turn.finding.ruling:
            self._ruled(service, turn.finding.ruling)
            for role in {pool.role for pool in turn.service.pools}:
                self._factor.labels(*service, role).set(turn.finding.ruling.factors.get(role, 1.0))

    def forget(self, service: Id) -> None:
        """It is gone."""
        self._clear(service)
        for counter in (self._changes, self._ticks):
            counter.remove_by_labels(dict(zip(SERVICE, service, strict=True)))

    def _ruled(self, service: Id, ruling: Ruling) -> None:
        for pool, replicas in ruling.wanted.items():
            self._wanted.labels(*service, pool).set(replicas)
        for name, attained in ruling.predicted.items():
            self._predicted.labels(*service, name).set(attained.joint)

    def _clear(self, service: Id) -> None:
        for gauge in self._gauges:
            gauge.remove_by_labels(dict(zip(SERVICE, service, strict=True)))
