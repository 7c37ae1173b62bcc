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

from paceline_api.v1alpha1 import LLMService, Runtime
from paceline_engine.launch import engine_command
from paceline_engine.sim.options import UsageError, check, parser
from paceline_router.state import Role

from paceline_planner import workloads
from paceline_planner.aggregate import Record
from paceline_planner.launching import ROLE_NAMES, launch_spec
from paceline_planner.plan import Plan
from paceline_planner.prompts import BLOCK_TOKENS
from paceline_planner.replay import Workload
from paceline_planner.report import Report, Run, RunTally
from paceline_planner.sim.fleet import EngineSpec, Fleet, FleetSpec, Job, Ride
from paceline_planner.traces import TraceRequest
from paceline_planner.validity import Lateness

ENGINE_FLAGS_AT = 3  # python -m paceline_engine.sim FLAGS…


class SimulateError(ValueError):
    """What cannot be simulated; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Policies:
    """Instead of production's: the engines' batching policy, the router's pick."""

    engine: str = "stall-free"
    router: str = "least-predicted-ttft"


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


def fleet_spec(service: LLMService, planned: Plan, policies: Policies = Policies()) -> FleetSpec:
    """SimulateError where a pool has no step-time table, or its engines would not start."""
    engines: list[EngineSpec] = []
    for pool in planned.pools:
        if not pool.table:
            raise SimulateError(f"pool {pool.name}: no step-time table for its model on {pool.accelerator}")
        launch = replace(launch_spec(service, planned, pool), runtime=Runtime.SIMULATED.value, policy=policies.engine)
        try:
            options = check(parser().parse_args(engine_command(launch).argv[ENGINE_FLAGS_AT:]))
        except UsageError as e:
            raise SimulateError(f"pool {pool.name}: {e}") from e
        role = Role(ROLE_NAMES[pool.role])
        engines += (
            EngineSpec(f"{pool.name}-{i}", role, options.replica, pool.gpus_per_replica) for i in range(pool.replicas)
        )
    return FleetSpec(
        tuple(engines),
        service.slo_classes(),
        policies.router,
        max_context_tokens=service.spec.model.max_context_tokens,
        record_gaps=True,
    )


def simulate(spec: FleetSpec, offered: Offered) -> Report:
    """Each rate by itself, in order, on as many cores as there are. WorkloadError, SimulateError."""
    rates = sorted(offered.rates_rps, key=lambda rate: rate or 0.0)
    plans = [_requests(spec, offered, rate) for rate in rates]
    work = partial(_run, spec, offered)
    if len(rates) == 1:
        runs = [work(rates[0], plans[0])]
    else:
        with ProcessPoolExecutor(min(len(rates), cpu_count() or 1)) as pool:
            runs = list(pool.map(work, rates, plans))
    return Report(runs, workload=offered.workload.name, seed=offered.seed)


def _run(spec: FleetSpec, offered: Offered, rate_rps: float | None, requests: list[TraceRequest]) -> Run:
    tally = RunTally(spec.classes)

    def ended(ride: Ride) -> bool:
        assert ride.course.end_s is not None
        tally.add(Record(ride.job.class_name, ride.course, ride.gaps_s), ride.course.end_s)
        return False

    fleet = Fleet(spec, offered.seed, ended)
    block_size = spec.engines[0].spec.block_size
    fleet.run(_job(request, offered.class_name, block_size) for request in requests)
    fleet.check()
    window_s = offered.duration_s or requests[-1].arrival_s or 1.0
    return tally.run(
        rate_rps * offered.load_factor if rate_rps else len(requests) / window_s,
        window_s,
        gpus=spec.gpus,
        lateness=Lateness(virtual=True),
        simulated=True,
    )


def _job(request: TraceRequest, class_name: str, block_size: int) -> Job:
    """Its prefix blocks, 512 tokens each, named by the engine's own smaller blocks."""
    per_block = BLOCK_TOKENS // block_size
    hashes = tuple(block * per_block + i for block in request.prefix_blocks for i in range(per_block))
    known = hashes[: request.prompt_tokens // block_size]
    return Job(request.arrival_s, request.prompt_tokens, request.output_tokens, class_name, known)


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
