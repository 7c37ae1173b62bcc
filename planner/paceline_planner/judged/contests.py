"""Who wins: the deadline-driven policy against the best fixed budget, in a shared fleet against silos, beside a long
prompt, and past capacity.

Each function is one contest, by itself deterministic, and returns plain figures; effort.py says how long to measure.
The best fixed budget is chosen with knowledge of the load (short runs of every budget, the two best settled on all
seeds), which no operator has. Rates are requests a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from paceline_api.config import DEFAULT_POLICY
from paceline_api.slo import SLOClass
from paceline_router.facts import Role

from paceline_planner.judged.cases import (
    DEADLINES,
    FIXED,
    OTHERS,
    Box,
    Case,
    Contender,
    fleet,
    jobs,
)
from paceline_planner.judged.effort import Effort
from paceline_planner.judged.measure import Measured, Trial, Window, bracket, measure, settle

Shares = Mapping[str, tuple[float, str]]


def over(ours_rps: float, theirs_rps: float) -> float:
    """Infinite where ours alone holds any rate, 0 where neither does: what holds nothing wins nothing."""
    return ours_rps / theirs_rps if theirs_rps else (inf if ours_rps else 0.0)


@dataclass(frozen=True, slots=True)
class Contest:
    """One SLO: capacities of a replica, and whole curves by contender (the best fixed budget among them)."""

    case: str
    deadlines_rps: float
    fixed_rps: Mapping[str, float]  # those settled on all seeds
    looks_rps: Mapping[str, float]  # every budget on one seed
    curves: Mapping[str, Sequence[Measured]]

    @property
    def best(self) -> str:
        return max(self.fixed_rps, key=lambda name: self.fixed_rps[name])

    @property
    def ratio(self) -> float:
        return over(self.deadlines_rps, self.fixed_rps[self.best])

    @property
    def kept_past_capacity(self) -> float:
        """Goodput at the curve's highest rate over its peak."""
        goodput = [m.goodput_rps for m in self.curves[DEADLINES.name]]
        return goodput[-1] / max(goodput) if max(goodput) else 0.0


def _trial(
    box: Box,
    who: Contender,
    classes: Sequence[SLOClass],
    shares: Shares,
    roles: Sequence[Role],
    window: Window,
    *,
    cuts: bool = True,
    router: str = DEFAULT_POLICY,
) -> Trial:
    """`cuts`: only whether a rate is held is asked for."""
    spec = fleet(box, who, classes, roles, router)
    return lambda rate, seed: measure(spec, jobs(shares, rate, seed), rate, seed, window, cuts=cuts)


def contest(effort: Effort, case: Case) -> Contest:
    """One SLO, one replica."""
    shares = {case.slo.name: (1.0, case.lengths)}

    def trial(who: Contender, window: Window, *, cuts: bool = True) -> Trial:
        return _trial(case.box, who, [case.slo], shares, (Role.MIXED,), window, cuts=cuts)

    near = bracket(trial(DEADLINES, effort.look), case.guess_rps)
    looks = {who: bracket(trial(who, effort.look), near or case.guess_rps) for who in FIXED}
    best_two = sorted(looks, key=lambda who: -looks[who])[: 2 if len(effort.seeds) > 1 else 1]
    fixed = {who: settle(trial(who, effort.window), looks[who], effort.seeds, effort.fine) for who in best_two}
    deadlines_rps = settle(trial(DEADLINES, effort.window), near, effort.seeds, effort.fine)
    shown = (DEADLINES, max(fixed, key=lambda who: fixed[who]), *OTHERS)
    top_rps = deadlines_rps or case.guess_rps
    curves = {
        who.name: [trial(who, effort.curve_window, cuts=False)(share * top_rps, 1) for share in effort.curve]
        for who in shown
    }
    named = {who.name: rps for who, rps in fixed.items()}
    return Contest(case.name, deadlines_rps, named, {who.name: rps for who, rps in looks.items()}, curves)


@dataclass(frozen=True, slots=True)
class Mixes:
    """Two classes on a few replicas of one box; `shares`: of interactive requests, the contest's three mixes.

    `router`: its policy, in front of silos too.
    """

    box: Box
    replicas: int
    interactive: SLOClass
    batch: SLOClass
    lengths: Mapping[str, str]
    guess_rps: Mapping[str, float]  # a replica's, by class
    shares: Sequence[float]
    router: str = DEFAULT_POLICY


@dataclass(frozen=True, slots=True)
class Silo:
    """One class by itself on n replicas, at its own best budget."""

    class_name: str
    replicas: int
    budget: str
    rate_rps: float


def silos(effort: Effort, mixes: Mixes, slo: SLOClass) -> list[Silo]:
    """Capacities of 1 … n−1 replicas for one class, at the budget that is best on one replica."""
    shares = {slo.name: (1.0, mixes.lengths[slo.name])}

    def trial(who: Contender, replicas: int) -> Trial:
        roles = (Role.MIXED,) * replicas
        return _trial(mixes.box, who, [slo], shares, roles, effort.mixed, router=mixes.router)

    looks = {who: bracket(trial(who, 1), mixes.guess_rps[slo.name]) for who in FIXED}
    best = max(looks, key=lambda who: looks[who])
    found = []
    for n in range(1, mixes.replicas):
        near = looks[best] if n == 1 else bracket(trial(best, n), looks[best] * n)
        rate = settle(trial(best, n), near, effort.seeds, effort.fine)
        found.append(Silo(slo.name, n, best.name, rate))
    return found


def split_rps(apart: Sequence[Silo], mixes: Mixes, share: float) -> tuple[float, int]:
    """The best integer split's capacity for a mix, and its interactive replicas."""
    by = {(s.class_name, s.replicas): s.rate_rps for s in apart}
    return max(
        (
            min(by[mixes.interactive.name, n] / share, by[mixes.batch.name, mixes.replicas - n] / (1 - share)),
            n,
        )
        for n in range(1, mixes.replicas)
    )


def fraction_rps(apart: Sequence[Silo], mixes: Mixes, share: float) -> float:
    """What silos would hold if replicas could be split in fractions."""
    alone = {s.class_name: s.rate_rps for s in apart if s.replicas == 1}
    interactive, batch = alone[mixes.interactive.name], alone[mixes.batch.name]
    return mixes.replicas / (share / interactive + (1 - share) / batch) if interactive and batch else 0.0


def shared_rps(effort: Effort, mixes: Mixes, share: float) -> float:
    """The shared fleet's capacity: both classes meet their targets."""
    lengths, classes = mixes.lengths, [mixes.interactive, mixes.batch]
    parts = {mixes.interactive.name: share, mixes.batch.name: 1 - share}
    shares = {name: (part, lengths[name]) for name, part in parts.items()}
    roles = (Role.MIXED,) * mixes.replicas
    trial = _trial(mixes.box, DEADLINES, classes, shares, roles, effort.mixed, router=mixes.router)
    guess = mixes.replicas / sum(part / mixes.guess_rps[name] for name, part in parts.items())
    return settle(trial, bracket(trial, guess), effort.seeds, effort.fine)


@dataclass(frozen=True, slots=True)
class LongPrompt:
    """Short interactive requests with and without a long batch prompt every now and then."""

    box: Box
    interactive: SLOClass
    batch: SLOClass
    lengths: str
    every_s: float
    rate_rps: float


def beside_a_long_prompt(effort: Effort, case: LongPrompt) -> tuple[float, float, float]:
    """Interactive attainment in percent without and with the long prompts, and the long ones' own; seeds pooled."""
    alone, beside, own = [], [], []
    spec = fleet(case.box, DEADLINES, [case.interactive, case.batch])
    name, rate, long_rps = case.interactive.name, case.rate_rps, 1 / case.every_s
    total = rate + long_rps
    long = {name: (rate / total, "short"), case.batch.name: (long_rps / total, case.lengths)}
    for seed in effort.seeds:
        alone.append(measure(spec, jobs({name: (1.0, "short")}, rate, seed), rate, seed, effort.long))
        with_long = measure(spec, jobs(long, total, seed), total, seed, effort.long)
        beside.append(with_long)
        own.append(with_long.attainment_percent.get(case.batch.name, 100.0))
    n = len(effort.seeds)
    return (
        sum(m.attainment_percent[name] for m in alone) / n,
        sum(m.attainment_percent[name] for m in beside) / n,
        sum(own) / n,
    )


def topologies(effort: Effort, case: Case, rates_rps: Sequence[float]) -> Mapping[str, Sequence[Measured]]:
    """Three replicas: two prefill and one decode, or three mixed; deadline-driven and DistServe's plain policies."""
    split, mixed = (Role.PREFILL, Role.PREFILL, Role.DECODE), (Role.MIXED,) * 3
    sides = {
        "2P1D, deadline-driven": (DEADLINES, split),
        "2P1D, vLLM v1's default": (OTHERS[0], split),
        "3 mixed, deadline-driven": (DEADLINES, mixed),
        "3 mixed, vLLM v1's default": (OTHERS[0], mixed),
    }
    shares = {case.slo.name: (1.0, case.lengths)}
    return {
        name: [
            _trial(case.box, who, [case.slo], shares, roles, effort.curve_window, cuts=False)(rate, 1)
            for rate in rates_rps
        ]
        for name, (who, roles) in sides.items()
    }
