"""DistServe's placement algorithms (OSDI'24, §4): the parallelism of each phase, and how many instances a rate needs.

Algorithm 1, for nodes with fast links between them, finds the best prefill and the best decode instance each by itself.
Algorithm 2, for nodes without, keeps the prefill and decode layers of one pipeline stage on one node, so that KV never
leaves it, and finds the best pair. Both go by simulated goodput per GPU. A pair's goodput is never taken above that of
its phases, which is why pairs are simulated best bound first, and no further once the bound is below what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, inf

from paceline_router.facts import Role

from paceline_planner.search.instances import (
    Demand,
    Machines,
    NoInstance,
    Parallel,
    decode_goodput_rps,
    prefill_goodput_rps,
)
from paceline_planner.search.trial import NothingServes
from paceline_planner.sim.rides import EngineSpec

PAIR_TOLERANCE = 0.03  # relative, of a pair's goodput


@dataclass(frozen=True, slots=True)
class Cluster:
    """What an instance may span: `nodes` of `gpus_per_node`."""

    gpus_per_node: int
    nodes: int = 1


@dataclass(frozen=True, slots=True)
class Phase:
    """One instance of a phase by itself; `at_limit`: no higher rate was tried."""

    parallel: Parallel
    goodput_rps: float
    at_limit: bool = False

    @property
    def bound_rps(self) -> float:
        """What no pair with this instance exceeds."""
        return inf if self.at_limit else self.goodput_rps

    @property
    def per_gpu_rps(self) -> float:
        return self.goodput_rps / self.parallel.gpus


@dataclass(frozen=True, slots=True)
class Pair:
    """A prefill and a decode instance that serve together."""

    prefill: Parallel
    decode: Parallel
    goodput_rps: float

    @property
    def gpus(self) -> int:
        return self.prefill.gpus + self.decode.gpus

    @property
    def per_gpu_rps(self) -> float:
        return self.goodput_rps / self.gpus

    def __str__(self) -> str:
        return f"{self.prefill} / {self.decode}"


@dataclass(frozen=True, slots=True)
class Phases:
    """Of every parallelism that exists, each phase by itself; the best of each per GPU first."""

    prefill: tuple[Phase, ...]
    decode: tuple[Phase, ...]


@dataclass(frozen=True, slots=True)
class HighAffinity:
    """Algorithm 1's answer: `prefills` and `decodes` instances serve the rate."""

    prefill: Phase
    decode: Phase
    prefills: int
    decodes: int

    @property
    def gpus(self) -> int:
        return self.prefills * self.prefill.parallel.gpus + self.decodes * self.decode.parallel.gpus


@dataclass(frozen=True, slots=True)
class LowAffinity:
    """Algorithm 2's answer: `copies` of a pair serve the rate. `tried` are the pairs simulated, best first."""

    pair: Pair
    copies: int
    tried: tuple[Pair, ...]

    @property
    def gpus(self) -> int:
        return self.copies * self.pair.gpus


def instance_shapes(cluster: Cluster) -> list[Parallel]:
    """Every parallelism that Algorithm 1 looks at: tensor within a node, pipeline over all of them."""
    limit = cluster.gpus_per_node * cluster.nodes
    return [Parallel(t, p) for t in range(1, cluster.gpus_per_node + 1) for p in range(1, limit // t + 1)]


def segments(cluster: Cluster) -> list[tuple[Parallel, Parallel]]:
    """Every pair of Algorithm 2: one node holds a stage's prefill and decode segments, as many nodes both."""
    node = instance_shapes(Cluster(cluster.gpus_per_node))
    return [
        (Parallel(p.tensor, p.pipeline * inter), Parallel(d.tensor, d.pipeline * inter))
        for inter in range(1, cluster.nodes + 1)
        for p in node
        for d in node
        if p.gpus + d.gpus <= cluster.gpus_per_node
    ]


def phases(demand: Demand, machines: Machines, shapes: Iterable[Parallel]) -> Phases:
    """Simulate each phase by itself on every shape for which there is a machine."""
    wanted = sorted(set(shapes))
    return Phases(
        _phase(demand, machines, Role.PREFILL, wanted, prefill_goodput_rps),
        _phase(demand, machines, Role.DECODE, wanted, decode_goodput_rps),
    )


def _phase(
    demand: Demand,
    machines: Machines,
    role: Role,
    shapes: Sequence[Parallel],
    goodput_rps: Callable[[Demand, EngineSpec], float],
) -> tuple[Phase, ...]:
    found = []
    for shape in shapes:
        try:
            instance = machines.instance(role, shape)
        except NoInstance:
            continue
        rate = goodput_rps(demand, instance)
        found.append(Phase(shape, rate, rate >= demand.most_rps_per_gpu * instance.gpus))
    if not any(phase.goodput_rps for phase in found):
        raise NothingServes(f"no {role} instance of {len(found)} meets class {demand.slo.name} at any rate")
    return tuple(sorted(found, key=lambda phase: (-phase.per_gpu_rps, phase.parallel)))


def high_affinity(found: Phases, rate_rps: float) -> HighAffinity:
    """Algorithm 1, given its simulations: the best of each phase per GPU, and enough of them."""
    prefill, decode = found.prefill[0], found.decode[0]
    return HighAffinity(prefill, decode, ceil(rate_rps / prefill.goodput_rps), ceil(rate_rps / decode.goodput_rps))


def low_affinity(demand: Demand, machines: Machines, cluster: Cluster, found: Phases, rate_rps: float) -> LowAffinity:
    """Algorithm 2: the pair with the most goodput per GPU, and enough copies of it."""
    alone = ({p.parallel: p for p in found.prefill}, {d.parallel: d for d in found.decode})
    bounds = [
        Pair(p, d, min(alone[0][p].bound_rps, alone[1][d].bound_rps))
        for p, d in segments(cluster)
        if p in alone[0] and d in alone[1]
    ]
    tried: list[Pair] = []
    for bound in sorted(bounds, key=lambda b: (-b.per_gpu_rps, b.gpus)):
        if bound.per_gpu_rps <= max((t.per_gpu_rps for t in tried), default=0.0):
            break
        guess = min(alone[0][bound.prefill].goodput_rps, alone[1][bound.decode].goodput_rps)
        tried.append(simulate_pair(demand, machines, bound.prefill, bound.decode, guess))
    tried.sort(key=lambda t: -t.per_gpu_rps)
    if not tried or not tried[0].goodput_rps:
        raise NothingServes(f"no pair of {len(bounds)} meets class {demand.slo.name} at any rate")
    return LowAffinity(tried[0], ceil(rate_rps / tried[0].goodput_rps), tuple(tried))


def simulate_pair(
    demand: Demand, machines: Machines, prefill: Parallel, decode: Parallel, guess_rps: float = 2.0
) -> Pair:
    """One prefill and one decode instance together."""
    engines = (machines.instance(Role.PREFILL, prefill), machines.instance(Role.DECODE, decode))
    return Pair(
        prefill, decode, demand.goodput_rps(demand.fleet(engines), 0.8 * guess_rps, PAIR_TOLERANCE, first_step=1.25)
    )
