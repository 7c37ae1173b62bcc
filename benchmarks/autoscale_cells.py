"""The cells of the law's benchmark: a workload, a topology and a rate; the sizes that three targets need, and rivals'.

A cell's sizes are simulated around the least that each target needs, in steady runs; the law and its rivals say theirs
from what Prometheus would hold of the same load. Attainment is in percent, rates are requests per second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from random import Random

from autoscale_seen import engine_signals, histogram
from paceline_api.slo import SLOClass
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec
from paceline_engine.tables import load_table
from paceline_planner import workloads
from paceline_planner.sim.arrivals import poisson_jobs
from paceline_planner.sim.fleet import EngineSpec, Fleet, FleetSpec, Job
from paceline_planner.sim.steady import SteadyRule, steady_run
from paceline_router.autoscale.machine import Machine
from paceline_router.autoscale.phases import Forecaster
from paceline_router.autoscale.signals import ClassSignals, EngineSignals, PoolSignals, ServiceSignals
from paceline_router.autoscale.workload import loads
from paceline_router.facts import Role

TABLE, MODEL = "a100-sxm-80gb", "llama-3.1-8b"
TARGETS = (90.0, 95.0, 99.0)
# Shorter than DESIGN §1's steady runs, which are for published capacities: a size is right or wrong by whole points.
RULE = SteadyRule(drop_s=60.0, arrivals=3000, p99_residences=1.5, halves_points=100.0, most_arrivals=16_000)
QUICK_RULE = SteadyRule(drop_s=45.0, arrivals=1500, p99_residences=1.0, halves_points=100.0, most_arrivals=8_000)
MOST_UNITS = 24
UTILISATION, TUNED_TARGET = 0.7, 95.0


@dataclass(frozen=True, slots=True)
class Case:
    """`unit` replicas by role are what the law adds or removes; `fixed` ones are there besides, as many as needed."""

    name: str
    lengths: str
    slo: SLOClass
    unit: Mapping[Role, int]
    rates: tuple[float, ...]
    fixed: Mapping[Role, int] = field(default_factory=dict)

    def replicas(self, units: int) -> dict[Role, int]:
        return {**self.fixed, **{role: n * units for role, n in self.unit.items()}}


def _slo(ttft_s: float) -> SLOClass:
    return SLOClass("interactive", ttft_s, 0.04)


CHAT, CODE, LONG, SUMMARY = _slo(0.4), _slo(0.125), _slo(2.0), _slo(2.0)
MIXED, PREFILL = {Role.MIXED: 1}, {Role.PREFILL: 1}
CASES = (
    Case("chat, mixed", "chat", CHAT, MIXED, (9.0, 18.0, 36.0, 68.0)),
    Case("chat, 2P + 1D", "chat", CHAT, {Role.PREFILL: 2, Role.DECODE: 1}, (26.0, 58.0, 110.0)),
    Case("chat, prefill", "chat", CHAT, PREFILL, (13.0, 30.0, 58.0), {Role.DECODE: 3}),
    Case("4000 in 20 out, mixed", "fixed:4000,20", LONG, MIXED, (2.0, 4.5, 9.0, 18.0)),
    Case("4000 in 20 out, prefill", "fixed:4000,20", LONG, PREFILL, (3.4, 7.0, 14.0), {Role.DECODE: 1}),
    Case("code, mixed", "code", CODE, MIXED, (34.0, 70.0, 140.0)),
    Case("code, prefill", "code", CODE, PREFILL, (50.0, 110.0), {Role.DECODE: 2}),
    Case("summarisation, mixed", "summarisation", SUMMARY, MIXED, (5.0, 11.0, 22.0, 44.0)),
    Case("summarisation, prefill", "summarisation", SUMMARY, PREFILL, (8.0, 17.0, 34.0), {Role.DECODE: 2}),
)


@dataclass(frozen=True, slots=True)
class Trial:
    """Attainment in percent at one size."""

    units: int
    predicted: float
    simulated: float


@dataclass(frozen=True, slots=True)
class Sized:
    """The least units for one target; 0 where `MOST_UNITS` do not reach it."""

    target: float
    needed: int
    law: int
    utilisation: int
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """One case at one rate. `in_flight[n - 1]`: requests in flight per unit with n units."""

    case: str
    gpus_per_unit: int
    rate_rps: float
    trials: tuple[Trial, ...]
    sizes: tuple[Sized, ...]
    in_flight: tuple[float, ...]


def fleet(case: Case, units: int) -> FleetSpec:
    """The machines of the fleet simulator's default, and policies that know the table but not its tiles and noise."""
    machine = MachineSpec(load_table(TABLE, MODEL))
    engines = [
        EngineSpec(f"{role}-{i}", role, ReplicaSpec(machine))
        for role, n in case.replicas(units).items()
        for i in range(n)
    ]
    return FleetSpec(tuple(engines), {case.slo.name: case.slo})


def jobs(case: Case, rate_rps: float, seed: int) -> Iterator[Job]:
    return poisson_jobs(workloads.parse_lengths(case.lengths), rate_rps, seed, case.slo.name)


def simulated(case: Case, rate_rps: float, units: int, rule: SteadyRule, seed: int = 1) -> float:
    return steady_run(fleet(case, units), jobs(case, rate_rps, seed), rate_rps, seed, rule).attainment_percent


def learned(case: Case) -> dict[Role, EngineSignals]:
    """What the engines of a small fleet publish of their fits after half a minute."""
    rate = case.rates[0] / 2
    small = Fleet(fleet(case, 1), 7, lambda _ride: False)
    small.run(takewhile(lambda job: job.arrival_s < 30.0, jobs(case, rate, 7)))
    table = load_table(TABLE, MODEL)
    return {
        role: engine_signals(table, [r.facts for r in small.ledger.replicas.values() if r.role is role])
        for role in case.replicas(1)
    }


def signals(case: Case, rate_rps: float) -> ServiceSignals:
    """What Prometheus would tell of the case at this rate."""
    lengths, rng = workloads.parse_lengths(case.lengths), Random("lengths of an hour")
    drawn = [lengths.draw(rng) for _ in range(20_000)]
    load = ClassSignals(case.slo, rate_rps, histogram([p for p, _ in drawn]), histogram([o for _, o in drawn]))
    engines = learned(case)
    pools = [PoolSignals(role, role, 1, n, n, 0, 99, engines[role]) for role, n in case.replicas(1).items()]
    return ServiceSignals((load,), tuple(pools), window_s=60.0)


def measure(rule: SteadyRule, case: Case, rate_rps: float) -> Cell:
    """Simulates the sizes around the least that each target needs; attainment is taken to grow with the size."""
    known = signals(case, rate_rps)
    model, name = Forecaster(known), case.slo.name
    runs: dict[int, float] = {}

    def predicted(units: int) -> float:
        return 100 * model.forecast(sizes(case, units)).attained[name].joint

    def attained(units: int) -> float:
        if units not in runs:
            runs[units] = simulated(case, rate_rps, units, rule)
        return runs[units]

    def busy(units: int) -> float:
        utilisation = model.forecast(sizes(case, units)).utilisation
        return max(utilisation[role] for role in case.unit)

    found = []
    idle = least(lambda n: busy(n) <= UTILISATION)
    for target in TARGETS:
        law = least(lambda n: predicted(n) >= target)  # noqa: B023  # used within the iteration only
        needed = least(lambda n: attained(n) >= target, law)  # noqa: B023
        found.append(Sized(target, needed, law, idle))
    trials = tuple(Trial(n, predicted(n), runs[n]) for n in sorted(runs))
    running = tuple(in_flight(case, known, n) for n in range(1, MOST_UNITS + 1))
    return Cell(case.name, sum(case.unit.values()), rate_rps, trials, tuple(found), running)


def sizes(case: Case, units: int) -> dict[str, int]:
    return {str(role): n for role, n in case.replicas(units).items()}


def least(holds: Callable[[int], bool], start: int = 1) -> int:
    """The least units that hold, walking from a guess; 0 where `MOST_UNITS` do not."""
    n = max(start, 1)
    while n <= MOST_UNITS and not holds(n):
        n += 1
    while 1 < n <= MOST_UNITS and holds(n - 1):
        n -= 1
    return n if n <= MOST_UNITS else 0


def in_flight(case: Case, known: ServiceSignals, units: int) -> float:
    """Requests in flight per unit, by Little's law on the table's step times."""
    of = loads(known.classes)
    replicas = case.replicas(units)
    role = Role.MIXED if Role.MIXED in replicas else Role.DECODE
    first = Role.MIXED if Role.MIXED in replicas else Role.PREFILL
    machines = {p.role: Machine(p.engine, of, p.role) for p in known.pools}
    decode, rate_rps = machines[role], of[0].rate_rps
    prompt_s = machines[first].prompts[0].alone_s
    busy = min(rate_rps * prompt_s / replicas[first], 0.95)
    gap_s = decode.sharing.gaps_s[0]
    for _ in range(50):
        decodes = min(of[0].tokens_per_s * gap_s / replicas[role], decode.sharing.slots)
        gap_s = decode.sharing.gap_s(decodes) / (1.0 - busy if role is Role.MIXED else 1.0)
    return (rate_rps * prompt_s / (1.0 - busy) + decodes * replicas[role]) / units


def in_flight_rival(case: Case, cells: Sequence[Cell]) -> dict[float, int]:
    """Least units by rate that hold the requests in flight that are right at the middle rate for 95 %."""
    middle = cells[len(cells) // 2]
    needed = next(z.needed for z in middle.sizes if z.target == TUNED_TARGET)
    wanted = middle.in_flight[max(needed, 1) - 1]
    return {c.rate_rps: least(lambda n: c.in_flight[n - 1] <= wanted) for c in cells}  # noqa: B023
