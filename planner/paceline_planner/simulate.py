"""An LLMService file on the virtual clock: the plan's fleet, a workload, and the report that `replay` would give.

The engines' settings are read off the very command line that `paceline up` would start them with, so that both run the
same simulated fleet; policies, router and ledger are production's. A what-if changes the service, never the model of
the machine. Deterministic from its seed; seconds are model seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from os import cpu_count

from paceline_api.catalog import ACCELERATORS
from paceline_api.v1alpha1 import LLMService, OnFailure, Runtime, Switch
from paceline_engine.launch import engine_command
from paceline_engine.sim.options import UsageError, check, parser
from paceline_router.facts import Role as EngineRole
from paceline_router.scaling.objects import hints
from paceline_router.waiting import Rule

from paceline_planner import workloads
from paceline_planner.aggregate import Record
from paceline_planner.launching import ROLE_NAMES, launch_spec, policy_name
from paceline_planner.plan import Plan
from paceline_planner.replay import Workload
from paceline_planner.report import Report, Run, RunTally
from paceline_planner.sim.arrivals import job_of
from paceline_planner.sim.fleet import EngineSpec, Fleet, FleetSpec, Ride
from paceline_planner.sim.members import Declared, PoolSpec, StartUp
from paceline_planner.sim.telemetry import Telemetry
from paceline_planner.sim.what_if import NOTHING, WhatIf, stage
from paceline_planner.step_tables import CATALOGUE, Tables, describe
from paceline_planner.traces import TraceRequest
from paceline_planner.validity import Lateness

ENGINE_FLAGS_AT = 3  # python -m paceline_engine.sim FLAGS…
# What HTTP adds, client, router and engines on one machine: TTFT of 512-token prompts at 2 requests/s without noise,
# less their steps and KV transfer, the fastest half of 93 requests (November 2026, 2 cores). benchmarks/served.py.
FRONT_S, HOP_S = 0.002, 0.0017


ENGINE_POLICY = "stall-free"  # production's


class SimulateError(ValueError):
    """What cannot be simulated; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Offered:
    """What is sent: one run for each rate (None: the trace's own), `load_factor` times as fast."""

    workload: Workload
    class_name: str
    rates_rps: Sequence[float | None] = (None,)
    duration_s: float | None = None
    load_factor: float = 1.0
    seed: int = 0
    clip: bool = False


def fleet_spec(
    service: LLMService, planned: Plan, policy: str = ENGINE_POLICY, tables: Tables = CATALOGUE
) -> FleetSpec:
    """`policy` is how engines batch. SimulateError where a pool has no table, or its engines would not start."""
    engines: list[EngineSpec] = []
    for pool in planned.pools:
        found = tables.find(ACCELERATORS[pool.accelerator], service.spec.model.uri, pool.tensor) if pool.table else None
        if found is None:
            raise SimulateError(f"pool {pool.name}: no step-time table for its model on {pool.accelerator}")
        launch = replace(launch_spec(service, planned, pool), runtime=Runtime.SIMULATED.value, policy=policy)
        try:
            options = check(parser().parse_args(engine_command(launch).argv[ENGINE_FLAGS_AT:]), found)
        except UsageError as e:
            raise SimulateError(f"pool {pool.name}: {e}") from e
        role, gpus = EngineRole(ROLE_NAMES[pool.role]), pool.gpus_per_replica
        engines += (
            EngineSpec(f"{pool.name}-{i}", role, options.replica, gpus, pool.name) for i in range(pool.replicas)
        )
    router, transfer = service.spec.router, service.spec.engine.kv_transfer
    return FleetSpec(
        tuple(engines),
        service.slo_classes(),
        policy_name(router.policy),
        max_context_tokens=service.spec.model.max_context_tokens,
        record_gaps=True,
        front_s=FRONT_S,
        hop_s=HOP_S,
        kv_timeout_s=transfer.timeout_ms / 1e3,
        recompute=transfer.on_failure is OnFailure.RECOMPUTE,
        local_prefill=router.local_prefill is Switch.ENABLED,
        waiting={c.name: Rule(c.priority) for c in service.spec.slo.classes}
        if router.waiting_room is Switch.ENABLED
        else None,
    )


def pool_specs(service: LLMService, spec: FleetSpec, start: StartUp) -> tuple[PoolSpec, ...]:
    """The pools of a fleet, within the file's bounds; each replica starts in `start`."""
    bounds = {pool.name: (pool.least_replicas, pool.most_replicas) for pool in service.spec.pools}
    first = {engine.pool: engine for engine in reversed(spec.engines)}
    return tuple(
        PoolSpec(name, e.role, e.spec, start, e.gpus, max(1, bounds[name][0]), bounds[name][1])
        for name, e in sorted(first.items())
    )


def declared(service: LLMService) -> Declared:
    """What the file tells an autoscaler, as production's has it."""
    return Declared(service.spec.max_gpus, *hints(service.spec.workload))


def simulate(spec: FleetSpec, offered: Offered, what_if: WhatIf = NOTHING) -> Report:
    """Each rate by itself, in order, on as many cores as there are. WorkloadError, SimulateError."""
    rates = sorted(offered.rates_rps, key=lambda rate: rate or 0.0)
    plans = [_requests(spec, offered, rate) for rate in rates]
    _check_failures(spec, what_if, min(requests[-1].arrival_s for requests in plans))
    work = partial(_run, spec, offered, what_if)
    if len(rates) == 1:
        runs = [work(rates[0], plans[0])]
    else:
        with ProcessPoolExecutor(min(len(rates), cpu_count() or 1)) as pool:
            runs = list(pool.map(work, rates, plans))
    machines = dict.fromkeys(describe(engine.spec.machine.table) for engine in spec.engines)
    return Report(runs, workload=offered.workload.name, seed=offered.seed, step_times=tuple(machines))


def _check_failures(spec: FleetSpec, what_if: WhatIf, until_s: float) -> None:
    names = dict.fromkeys(name for engine in spec.engines for name in (engine.pool, engine.name))
    for failure in what_if.failures:
        if failure.name not in names:
            raise SimulateError(f"nothing is called {failure.name!r} that could fail; there are: {', '.join(names)}")
        if failure.at_s >= until_s:
            cause = f"{failure.name} is to fail at {failure.at_s:g} s and the last request arrives at {until_s:.0f} s"
            raise SimulateError(f"{cause}; name an earlier moment, or raise --duration")


def _run(
    spec: FleetSpec, offered: Offered, what_if: WhatIf, rate_rps: float | None, requests: list[TraceRequest]
) -> Run:
    tally = RunTally(spec.classes)
    telemetry = Telemetry(spec.classes, what_if.rhythm.scrape_s) if what_if.rhythm else None

    def ended(ride: Ride) -> bool:
        assert ride.course.end_s is not None
        tally.add(Record(ride.job.class_name, ride.course, ride.gaps_s), ride.course.end_s)
        if telemetry:
            telemetry.ended(ride)
        return False

    heard = (telemetry.arrived, telemetry.first_token) if telemetry else ()
    fleet = Fleet(spec, offered.seed, ended, *heard)
    staged = stage(fleet, what_if, spec.classes, telemetry, offered.seed) if what_if.changes_members else None
    block_size = spec.engines[0].spec.block_size
    fleet.run(job_of(request, offered.class_name, block_size) for request in requests)
    fleet.check()
    window_s = offered.duration_s or requests[-1].arrival_s or 1.0
    run = tally.run(
        rate_rps * offered.load_factor if rate_rps else len(requests) / window_s,
        window_s,
        gpus=staged.gpus(window_s) if staged and what_if.rhythm else spec.gpus,
        lateness=Lateness(virtual=True),
        simulated=True,
    )
    failed_legs = {fault.value: n for fault, n in sorted(fleet.faults.items())}
    return replace(run, events=staged.events(window_s) if staged else (), failed_legs=failed_legs)


def _requests(spec: FleetSpec, offered: Offered, rate_rps: float | None) -> list[TraceRequest]:
    """A trace's own arrivals come `load_factor` times as fast, and its requests of `duration_s` after that."""
    factor, workload = offered.load_factor, offered.workload
    asked: float | None
    if rate_rps is None and factor != 1.0:
        asked = workloads.mean_rate_rps(workload.at(None, None, offered.seed)) * factor
    else:
        asked = rate_rps and rate_rps * factor
    requests = workload.at(asked, offered.duration_s, offered.seed)
    if offered.clip and spec.max_context_tokens:
        requests = [workloads.clipped(request, spec.max_context_tokens) for request in requests]
    if not requests:
        raise workloads.WorkloadError(
            f"{workload.name} has no request in {offered.duration_s:g} s; raise --duration or --rate"
        )
    return requests
