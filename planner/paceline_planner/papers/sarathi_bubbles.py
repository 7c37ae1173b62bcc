"""How much of a pipeline's time micro-batches of different lengths waste (Sarathi-Serve, OSDI'24, §3.3 and §5.3).

A backlog of conversations on LLaMA2-70B and Falcon-180B, the share of all stages' time in which one waits between two
micro-batches. Engines have no host term here: what it adds is the same idle time for every policy and no bubble in the
paper's sense. Micro-batches are uniform when tokens bound them, so that each is as long as the budget; a limit on
requests that binds first leaves budgets unfilled, and then Sarathi has bubbles too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from paceline_api.slo import SLOClass
from paceline_engine.sim.pipeline import PipelinedReplica
from paceline_engine.step_time import HostTerm

from paceline_planner.papers.experiment import Curve, Experiment, Finding, Grid, Lab, Panel, Result
from paceline_planner.papers.sarathi_machines import FALCON, LLAMA, ORCA, SARATHI, VLLM, Deployment, System, engine
from paceline_planner.papers.sarathi_trial import CLASS, CONTEXT_TOKENS, Load, jobs
from paceline_planner.sim.fleet import Fleet
from paceline_planner.sim.rides import FleetSpec, Ride

FALCON_STAGES = (
    FALCON,
    replace(FALCON, name="Falcon-180B TP2-PP4", tensor=2, pipeline=4),
    replace(FALCON, name="Falcon-180B TP1-PP8", tensor=1, pipeline=8),
)
DEPLOYMENTS = (LLAMA, *FALCON_STAGES)
MANY = 512  # more requests than a budget of 512 tokens a micro-batch lets run
SYSTEMS = (
    replace(SARATHI, name="Sarathi 512, uniform", budget=512, max_requests=MANY),
    replace(SARATHI, name="Sarathi 512, 128 requests", budget=512),
    replace(SARATHI, name="Sarathi 1536, 128 requests", budget=1536),
    replace(VLLM, name="vLLM v0, 128 requests"),
    replace(ORCA, name="Orca, 8 requests"),
    replace(ORCA, name="Orca, 128 requests", max_requests=128),
)
UNIFORM, ORCA_8, ORCA_128 = SYSTEMS[0], SYSTEMS[4], SYSTEMS[5]
BACKLOG_RPS = 50.0
REQUESTS, ENDED = 800, 400  # the backlog lasts while half of it is served
SEEDS = (1, 2)
MOST_RATIO = 0.1  # issue: uniform batches' bubble share
LEAST_TIMES = 4.0  # "many times that"


@dataclass(slots=True)
class Counter:
    """Stops a fleet after `most` ends."""

    most: int
    ended: int = 0

    def end(self, ride: Ride) -> bool:
        self.ended += 1
        return self.ended >= self.most


def bubble_ratio(load: Load, ended: int, what: tuple[Deployment, System, int]) -> float:
    """Idle time between micro-batches over the time of all stages."""
    deployment, system, seed = what
    of = engine(deployment, system, False, CONTEXT_TOKENS[load.workload], HostTerm())
    counter = Counter(ended)
    fleet = Fleet(FleetSpec((of,), {CLASS: SLOClass(CLASS, 10.0, 1.0)}, "round-robin"), seed, counter.end)
    fleet.run(jobs(load, BACKLOG_RPS, seed))
    replica = fleet.engines[of.name]
    assert isinstance(replica, PipelinedReplica)
    return replica.bubble_s / (deployment.pipeline * fleet.now)


def run(lab: Lab) -> Result:
    deployments = DEPLOYMENTS[:1] if lab.quick else DEPLOYMENTS
    seeds = SEEDS[:1] if lab.quick else SEEDS
    scale = 4 if lab.quick else 1
    wanted = [(d, s, seed) for d in deployments for s in SYSTEMS for seed in seeds]
    shares = lab.each(partial(bubble_ratio, Load("chat", lab.traces, REQUESTS // scale), ENDED // scale), wanted)
    found = {
        (d, s): fmean(share for w, share in zip(wanted, shares, strict=True) if w[:2] == (d, s))
        for d in deployments
        for s in SYSTEMS
    }
    rows = tuple((s.name, *(f"{100 * found[d, s]:.1f}" for d in deployments)) for s in SYSTEMS)
    grid = Grid("Bubbles, % of all stages' time", ("backlog of conversations", *(d.name for d in deployments)), rows)
    panels = () if lab.quick else (_by_stages(found),)
    return Result(tuple(_findings(found, deployments)), (grid,), panels, _remarks(found))


Shares = dict[tuple[Deployment, System], float]


def _findings(found: Shares, deployments: tuple[Deployment, ...]) -> list[Finding]:
    findings = []
    for d in deployments:
        uniform = found[d, UNIFORM]
        findings.append(Finding(f"{d.name}: uniform batches", None, uniform, high=MOST_RATIO))
        findings.append(
            Finding(f"{d.name}: Orca / uniform", None, found[d, ORCA_128] / uniform, low=LEAST_TIMES, unit="times")
        )
    return findings


def _by_stages(found: Shares) -> Panel:
    curves = tuple(Curve(s.name, tuple((float(d.pipeline), 100 * found[d, s]) for d in FALCON_STAGES)) for s in SYSTEMS)
    return Panel("Falcon-180B on 8 A100", "pipeline stages", "bubbles, % of all stages' time", curves)


def _remarks(found: Shares) -> tuple[str, ...]:
    bound = found[LLAMA, SYSTEMS[2]]
    return (
        (
            f"Sarathi at a budget of 1536 and the paper's 128 requests wastes {100 * bound:.0f} % (LLaMA2-70B): where "
            "the limit on requests binds before the budget does, prompts start one by one as others end"
        ),
        (
            f"Orca at its 8 requests, 4 a micro-batch, wastes {100 * found[LLAMA, ORCA_8]:.0f} % (LLaMA2-70B); what "
            "compares with Sarathi is Orca at 128 requests"
        ),
    )


EXPERIMENT = Experiment("sarathi-bubbles", "Sarathi-Serve: pipeline bubbles by policy", "§3.3, §5.3", run)
