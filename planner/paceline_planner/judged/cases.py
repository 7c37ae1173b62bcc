"""The committed contests: SLOs from tight to relaxed over models, GPUs and lengths, and the fleets they run on.

Truth has tile steps, noise and stalls (sim/machine.py); what the policies believe is the same table wrong by 25 %, one
way in half of the cases and the other way in the rest. Routers are production's. Lengths are synthetic, so that no
trace is needed. Pure values and generators; times are seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from paceline_api.config import DEFAULT_POLICY
from paceline_api.slo import SLOClass
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec, scaled
from paceline_engine.tables import load_table
from paceline_router.facts import Role

from paceline_planner import workloads
from paceline_planner.sim.fleet import EngineSpec, FleetSpec, Job
from paceline_planner.workloads import LengthSource, Lognormal, Synthetic

SLOW_PRIOR, FAST_PRIOR = 1.25, 0.8  # the prior's times over the machine's
LENGTHS: Mapping[str, LengthSource] = {
    **workloads.SYNTHETIC,
    # Near Sarathi-Serve's openchat_sharegpt4 (prompts p50 1730, p90 5696, answers p50 415, p90 834, 8,192 in all);
    # the cut shortens the tail.
    "long chat": Synthetic(Lognormal(1900, 1.05, 8), Lognormal(400, 0.65, 4), 8192, False, "openchat_sharegpt4"),
    "short": workloads.Fixed(200, 100),
    "one long": workloads.Fixed(85_000, 200),
}


@dataclass(frozen=True, slots=True)
class Box:
    """A model on a GPU, `tensor` of them a replica, and what policies believe of its times, as a factor."""

    table: str
    model: str
    tensor: int = 1
    prior: float = SLOW_PRIOR


@dataclass(frozen=True, slots=True)
class Contender:
    """A batching policy; `token_budget` 0: its own."""

    policy: str
    token_budget: int = 0

    @property
    def name(self) -> str:
        return f"{self.policy} {self.token_budget}" if self.token_budget else self.policy


DEADLINES = Contender("stall-free")
BUDGETS = (256, 512, 768, 1024, 1536, 2048)
FIXED = tuple(Contender("sarathi", budget) for budget in BUDGETS)
OTHERS = (Contender("vllm-v1", 2048), Contender("vllm-v0"))


@dataclass(frozen=True, slots=True)
class Case:
    """One SLO. `guess_rps`: where the search for a replica's capacity begins."""

    name: str
    box: Box
    lengths: str
    slo: SLOClass
    guess_rps: float


def _case(box: Box, lengths: str, ttft_s: float, tpot_s: float, guess_rps: float) -> Case:
    gpu = box.table.split("-")[0].upper()
    name = f"{box.model} TP{box.tensor} {gpu}, {lengths}, {ttft_s:g} s / {1e3 * tpot_s:g} ms"
    return Case(name, box, lengths, SLOClass("interactive", ttft_s, tpot_s), guess_rps)


A100, H100 = "a100-sxm-80gb", "h100-sxm"
CASES = (
    _case(Box(H100, "llama-3.1-8b", prior=FAST_PRIOR), "chat", 0.3, 0.015, 27),
    _case(Box(A100, "llama-3.1-8b"), "code", 0.125, 0.03, 36),
    _case(Box(A100, "llama-3.1-8b", prior=FAST_PRIOR), "chat", 0.4, 0.04, 10),
    _case(Box(H100, "llama-3.1-70b", 4), "chat", 0.8, 0.05, 13),
    _case(Box(A100, "mistral-7b", prior=FAST_PRIOR), "long chat", 1.0, 0.05, 2.7),
    _case(Box(A100, "llama-2-13b"), "chat", 0.4, 0.06, 3),
    _case(Box("l40s", "llama-3.1-8b"), "summarisation", 4.0, 0.1, 5.5),
    _case(Box(A100, "yi-34b", 2, FAST_PRIOR), "long chat", 5.0, 0.25, 1.9),
)


def fleet(
    box: Box,
    contender: Contender,
    classes: Sequence[SLOClass],
    roles: Sequence[Role] = (Role.MIXED,),
    router: str = DEFAULT_POLICY,
) -> FleetSpec:
    """One replica for each role, all alike, behind a router with this policy; gaps are recorded."""
    table = load_table(box.table, box.model, box.tensor)
    prior = scaled(table, box.prior)
    engines = []
    for i, role in enumerate(roles):
        policy, budget = contender.policy, contender.token_budget
        spec = ReplicaSpec(MachineSpec(table), policy, prior, token_budget=budget)
        engines.append(EngineSpec(f"{role}-{i}", role, spec, box.tensor))
    return FleetSpec(tuple(engines), {slo.name: slo for slo in classes}, router, record_gaps=True)


def jobs(shares: Mapping[str, tuple[float, str]], rate_rps: float, seed: int) -> Iterator[Job]:
    """Poisson arrivals without end; `shares`: of each class its share of the requests, and its lengths."""
    rng = Random(f"{seed}/lengths")
    names, weights = list(shares), [share for share, _ in shares.values()]
    for at in workloads.poisson_arrivals(rate_rps, Random(f"{seed}/arrivals")):
        name = rng.choices(names, weights)[0] if len(names) > 1 else names[0]
        yield Job(at, *LENGTHS[shares[name][1]].draw(rng), name)
