"""The router's present state as metrics, computed when someone asks: nothing here costs a request anything.

Invariant: the requests in flight, over all roles, are those received without an outcome yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from paceline_router.facts import Role
from paceline_router.metrics import SERVICE_LABELS
from paceline_router.shell import Shell


class Fleet(Protocol):
    """What the engines say of themselves, over all of them. Wall seconds; None where no engine says it."""

    @property
    def simulated(self) -> bool: ...
    @property
    def lateness_p99_s(self) -> float | None: ...
    @property
    def step_p50_s(self) -> float | None: ...


class StateGauges(Collector):
    """Limits, targets, GPUs, what is in flight and how the fleet runs."""

    def __init__(self, shell: Shell, fleet: Fleet) -> None:
        self._shell = shell
        self._fleet = fleet
        self._service = (shell.config.service, shell.config.namespace)

    def collect(self) -> Iterator[Metric]:
        yield from self._objectives()
        yield from self._replicas()
        yield from self._fleet_gauges()

    def _objectives(self) -> Iterator[Metric]:
        limits = self._family("paceline_slo_limit_seconds", "Limits of the SLO classes.", "slo_class", "objective")
        targets = self._family("paceline_slo_target_ratio", "Share of requests that must be good.", "slo_class")
        for name, slo in self._shell.classes.items():
            for objective, limit_s in (("ttft", slo.ttft_s), ("tpot", slo.tpot_s), ("stall", slo.stall_s)):
                limits.add_metric((*self._service, name, objective), limit_s)
            if slo.ttft_s_per_1k_prompt_tokens:
                limits.add_metric((*self._service, name, "ttft_per_1k_prompt_tokens"), slo.ttft_s_per_1k_prompt_tokens)
            targets.add_metric((*self._service, name), slo.target_ratio)
        yield limits
        yield targets

    def _replicas(self) -> Iterator[Metric]:
        replicas = self._shell.ledger.replicas.values()
        gpus = self._family("paceline_gpus", "GPUs of the fleet.", "role")
        ready = self._family("paceline_ready_replicas", "Replicas that may get requests.", "role")
        flying = self._family("paceline_requests_in_flight", "Requests without an outcome, by where they are.", "role")
        jobs = [job.role for job in self._shell.jobs]
        for role in Role:
            of_role = [replica for replica in replicas if replica.role is role]
            if of_role:
                gpus.add_metric((*self._service, role), sum(r.gpus for r in of_role))
                ready.add_metric((*self._service, role), sum(r.is_active for r in of_role))
            if of_role or role in jobs:
                flying.add_metric((*self._service, role), jobs.count(role))
        yield gpus
        yield ready
        yield flying

    def _fleet_gauges(self) -> Iterator[Metric]:
        fleet = self._fleet
        info = self._family("paceline_fleet_info", "1, with how the fleet runs.", "simulated", "time_scale")
        info.add_metric((*self._service, "1" if fleet.simulated else "0", f"{self._shell.clock.scale:g}"), 1)
        yield info
        for name, help_, value in (
            (
                "paceline_fleet_lateness_p99_seconds",
                "How late the steps of all engines end; wall time.",
                fleet.lateness_p99_s,
            ),
            ("paceline_fleet_step_p50_seconds", "Median step of all engines; wall time.", fleet.step_p50_s),
        ):
            if value is not None:
                gauge = self._family(name, help_)
                gauge.add_metric(self._service, value)
                yield gauge

    def _family(self, name: str, help_: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, help_, labels=(*SERVICE_LABELS, *labels))
