"""Table 3 of DistServe: the placements that its own algorithms find, on simulated goodput.

Machines are the published fits with DistServe's host term, evenly pipelined and with KV over NVLink, as its simulator
has them; OPT-175B by roofline. Each case names the GPUs of a node that the search may use; the paper's own simulator
takes 4 unless told otherwise, and tries each rate with 300 requests, which the search does too. What it finds and what
the paper chose are then simulated once more, with more seeds, and in steady runs; what is found must have at least 98 %
of the goodput per GPU of the paper's placement.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path

from paceline_engine.tables import TableMissing
from paceline_router.facts import Role

from paceline_planner.papers import measured_machines as machines
from paceline_planner.papers.distserve_cases import CASES, Case, anchored_table, shape
from paceline_planner.papers.distserve_lengths import lengths
from paceline_planner.papers.experiment import Experiment, Finding, Grid, Lab, Result
from paceline_planner.papers.measured_machines import DISTSERVE_ENGINE
from paceline_planner.roofline.table import DoesNotFit
from paceline_planner.search.instances import Demand, NoInstance, Parallel
from paceline_planner.search.placement import (
    Cluster,
    HighAffinity,
    LowAffinity,
    Pair,
    high_affinity,
    instance_shapes,
    low_affinity,
    phases,
    simulate_pair,
)
from paceline_planner.sim.rides import EngineSpec
from paceline_planner.sim.steady import SteadyRule

RATE_RPS = 20.0  # for which instances are counted
LEAST_SHARE = 0.98
REQUESTS, MOST_RPS_PER_GPU = 300, 5.0  # of simdistserve/simulate.py
FINAL_SEEDS = (11, 12, 13, 14, 15, 16)
STEADY = SteadyRule(drop_s=30, arrivals=1000, p99_residences=5, halves_points=100, most_arrivals=2000)
QUICK_REQUESTS = 60
QUICK_STEADY = SteadyRule(
    drop_s=10, drop_residences=0.5, arrivals=100, p99_residences=0, halves_points=100, most_arrivals=200
)


@dataclass(frozen=True, slots=True)
class Search:
    """One search: a case, and the nodes that an instance may span."""

    case: Case
    cluster: Cluster


CHAT_13B, CHAT_66B, CHAT_175B = CASES[:3]
SEARCHES = (
    Search(CHAT_13B, Cluster(4)),
    Search(CHAT_13B, Cluster(8)),
    Search(CHAT_66B, Cluster(8)),
    Search(CHAT_175B, Cluster(8, 3)),
)


@dataclass(frozen=True, slots=True)
class SimulatorsMachines:
    """DistServe's engine as its own simulator has it."""

    model: str

    def instance(self, role: Role, parallel: Parallel) -> EngineSpec:
        """NoInstance where nothing tells its step times, the model does not fit, or stages would be unequal."""
        layers = shape(self.model).layers
        if layers % parallel.pipeline:
            raise NoInstance(f"{layers} layers do not divide into {parallel.pipeline} stages")
        both = (parallel.tensor, parallel.pipeline)
        try:
            engines = machines.distserve_engines(self.model, both, both, tables=anchored_table)
        except (TableMissing, DoesNotFit) as e:
            raise NoInstance(str(e)) from e
        engine = next(e for e in engines if e.role is role)
        machine = replace(engine.spec.machine, one_loop=False, kv_constant_s=0.0)
        return replace(engine, spec=replace(engine.spec, machine=machine))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the algorithms say; what they found and the paper's own placement in short runs, then in steady ones."""

    high: HighAffinity
    low: LowAffinity
    theirs: tuple[Pair, Pair]
    ours: tuple[Pair, Pair]


def demand(folder: Path, quick: bool, case: Case) -> Demand:
    return Demand(
        lengths(folder, case.workload),
        case.osdi,
        QUICK_REQUESTS if quick else REQUESTS,
        transfer_in_tpot=True,
        front_s=DISTSERVE_ENGINE.front_s,
        router_policy="round-robin",
        most_rps_per_gpu=MOST_RPS_PER_GPU,
    )


def answer(folder: Path, quick: bool, search: Search) -> Answer:
    """Search, then simulate what was found and what the paper chose once more."""
    case, on = search.case, SimulatorsMachines(search.case.model)
    asked = demand(folder, quick, case)
    shapes = [case.prefill, case.decode] if quick else instance_shapes(search.cluster)
    found = phases(asked, on, shapes)
    low = low_affinity(asked, on, search.cluster, found, RATE_RPS)
    finals = (
        asked if quick else replace(asked, seeds=FINAL_SEEDS),
        replace(asked, rule=QUICK_STEADY if quick else STEADY, seeds=(1,) if quick else (1, 2)),
    )

    def again(prefill: Parallel, decode: Parallel) -> tuple[Pair, Pair]:
        short, steady = (simulate_pair(f, on, prefill, decode, low.pair.goodput_rps) for f in finals)
        return short, steady

    theirs = again(case.prefill, case.decode)
    same = (low.pair.prefill, low.pair.decode) == (case.prefill, case.decode)
    return Answer(
        high_affinity(found, RATE_RPS), low, theirs, theirs if same else again(low.pair.prefill, low.pair.decode)
    )


def run(lab: Lab) -> Result:
    searches = SEARCHES[:1] if lab.quick else SEARCHES
    answers = lab.each(partial(answer, lab.traces, lab.quick), searches)
    findings, rows, remarks = [], [], []
    for search, found in zip(searches, answers, strict=True):
        nodes = f" x {search.cluster.nodes}" if search.cluster.nodes > 1 else ""
        name = f"{search.case.name}, {search.cluster.gpus_per_node}{nodes} GPUs"
        note = "the paper's placement" if found.ours is found.theirs else f"found {found.ours[0]}"
        for ours, theirs, runs in zip(found.ours, found.theirs, ("short runs", "steady runs"), strict=True):
            share = ours.per_gpu_rps / theirs.per_gpu_rps if theirs.goodput_rps else inf
            least = LEAST_SHARE if runs == "short runs" else None
            findings.append(Finding(f"{name}: what is found / Table 3, {runs}", 1.0, share, least, note=note))
        rows += _rows(name, found)
        tried = ", ".join(f"{p} {p.per_gpu_rps:.3g}" for p in found.low.tried)
        remarks.append(f"{name}: pairs simulated by Algorithm 2, rps/GPU: {tried}")
    columns = ("case", "who", "prefill", "decode", "rps/GPU", "steady", f"instances for {RATE_RPS:g} rps", "GPUs")
    return Result(tuple(findings), (Grid("placements", columns, tuple(rows)),), (), tuple(remarks))


def _rows(name: str, found: Answer) -> list[tuple[str, ...]]:
    high, low = found.high, found.low
    prefill, decode = high.prefill, high.decode
    alone = f"{prefill.per_gpu_rps:.3g} and {decode.per_gpu_rps:.3g} alone"
    count = f"{high.prefills} + {high.decodes}"
    return [
        (name, "Table 3", *_cells(found.theirs), "", ""),
        (name, "Algorithm 1", str(prefill.parallel), str(decode.parallel), alone, "", count, str(high.gpus)),
        (name, "Algorithm 2", *_cells(found.ours), f"{low.copies} pairs", str(low.gpus)),
    ]


def _cells(pairs: tuple[Pair, Pair]) -> tuple[str, str, str, str]:
    short, steady = pairs
    return str(short.prefill), str(short.decode), f"{short.per_gpu_rps:.3g}", f"{steady.per_gpu_rps:.3g}"


EXPERIMENT = Experiment(
    "distserve-placements", "DistServe: placements found by its algorithms", "OSDI'24 Table 3, Algorithms 1, 2", run
)
