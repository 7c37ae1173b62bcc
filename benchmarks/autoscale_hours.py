"""One run of the autoscaler's benchmark: a law over an hour of load, on production's router, engines and steward.

Metrics are as late as Prometheus has them (15 s scrapes, 60 s rates), replicas start cold. The clairvoyant is the law
told the highest true rate and the true lengths from now until a replica ordered at the next tick is surely ready; it
knows no stabilisation window. Deterministic from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from math import inf
from random import Random

from autoscale_loads import CLASS, RATE_OVER_S, Load, arriving, azure, azure_rps, jobs, peak_rps
from autoscale_seen import engine_signals, histogram
from paceline_api.slo import SLOClass, Verdict, judge
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.setup import ReplicaSpec
from paceline_engine.tables import load_table
from paceline_planner.sim.autoscaler import Autoscaler, Rhythm
from paceline_planner.sim.fleet import Fleet, FleetSpec, Job, Ride
from paceline_planner.sim.members import Members, PoolSpec, StartUp, first_engines
from paceline_planner.sim.rivals import Clairvoyant, QueueHPA, RatioLaw, Static
from paceline_planner.sim.telemetry import Telemetry
from paceline_router.autoscale.decide import Pacer
from paceline_router.autoscale.law import least_sizes
from paceline_router.autoscale.signals import ClassSignals, EngineSignals, Lengths, PoolSignals, ServiceSignals
from paceline_router.facts import Role
from paceline_router.scaling.steward import Law

TABLE, MODEL, TENSOR = "l40s", "llama-2-13b", 1  # 17,504 tokens of KV: memory sets the fleet, in steps of a tenth
SLO = SLOClass(CLASS, ttft_s=1.5, tpot_s=0.08, target_ratio=0.95)
# Assumed: 30 s for the process and its CUDA graphs, and 26 GB of weights at 2 GB/s from a local disk.
START = StartUp(43.0)
POOL = PoolSpec("mixed", Role.MIXED, ReplicaSpec(MachineSpec(load_table(TABLE, MODEL, TENSOR))), START, TENSOR, 1, 16)
RHYTHM = Rhythm()
AHEAD_S = START.mean_s * (1 + START.spread_ratio) + RHYTHM.interval_s
CONSTANT_FROM_S, REVERSAL_S = 600.0, 600.0
WAITING = 2.0  # requests in an engine's queue that the HPA aims at
STATIC = "static"
LAWS = ("law", "clairvoyant", "HPA", "KEDA")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. `burst`: the share of good requests from the onset until what was ordered for it is ready."""

    load: str
    seed: int
    law: str
    attainment: float
    gpu_hours: float
    sizes: tuple[tuple[float, int], ...]  # (when, replicas)
    attained_by_minute: tuple[float | None, ...]
    burst: float | None = None
    burst_s: float | None = None
    reversals: int = 0
    blind_ticks: int = 0

    def __str__(self) -> str:
        of = f"{self.load}, seed {self.seed}, {self.law}"
        return f"{of}: {100 * self.attainment:.1f} % / {self.gpu_hours:.2f} GPU-hours"


# --- what the clairvoyant knows


@cache
def fitted() -> EngineSignals:
    """What two engines have learned after a minute."""
    small = Fleet(FleetSpec(first_engines([POOL], {POOL.name: 2}), {SLO.name: SLO}), 7, lambda ride: False)
    small.run(jobs(Load("known", 60.0, ((0.0, 2.0),)), 7))
    return engine_signals(POOL.replica.machine.table, (replica.facts for replica in small.ledger.replicas.values()))


def lengths(of: Sequence[Job]) -> tuple[Lengths, Lengths]:
    """Of prompts and of answers."""
    return histogram([job.prompt_tokens for job in of]), histogram([job.output_tokens for job in of])


@cache
def trace_lengths() -> tuple[Lengths, Lengths]:
    """Of the whole trace, from which an hour's are drawn."""
    return lengths(azure())


def service(rate_rps: float, prompt: Lengths, output: Lengths) -> ServiceSignals:
    pool = PoolSignals(POOL.name, POOL.role, POOL.gpus, 1, 1, POOL.least, POOL.most, fitted())
    return ServiceSignals((ClassSignals(SLO, rate_rps, prompt, output),), (pool,), RATE_OVER_S)


def to_come(load: Load, start_s: float, end_s: float) -> ServiceSignals:
    """The service at the highest true rate in between, with the lengths of what arrives until then and runs now."""
    of = trace_lengths() if load.rates else lengths(arriving(start_s - RATE_OVER_S, end_s))
    return service(peak_rps(load, start_s, end_s), *of)


def needed(signals: ServiceSignals) -> int:
    """Production's law's least replicas."""
    return least_sizes(signals).sizes[POOL.name]


# --- runs


class Replay:
    """A law at work on a load, from `first` replicas on."""

    def __init__(self, load: Load, seed: int, law: str, first: int) -> None:
        self.load, self.seed, self.law, self.first = load, seed, law, first
        self.rides: list[Ride] = []
        self.telemetry = telemetry = Telemetry({SLO.name: SLO}, RHYTHM.scrape_s)
        spec = FleetSpec(first_engines([POOL], {POOL.name: first}), {SLO.name: SLO})
        self.fleet = fleet = Fleet(spec, seed, self._ended, telemetry.arrived, telemetry.first_token)
        self.members = members = Members(fleet, [POOL], Random(f"{seed}/starts"))
        ticks = Random(f"{seed}/ticks")
        self.scaler = Autoscaler(fleet, members, telemetry, {SLO.name: SLO}, ticks, RHYTHM, self._makers()[law])

    def run(self) -> Outcome:
        self.fleet.run(jobs(self.load, self.seed))
        self.fleet.check()
        sizes = self._sizes()
        return Outcome(
            self.load.name,
            self.seed,
            self.law,
            good_share(self.rides),
            self.members.gpu_seconds(self.load.duration_s) / 3600,
            sizes,
            tuple(_by_minute(self.rides, self.load.duration_s)),
            *self._burst(),
            reversals(sizes),
            self.scaler.blind_ticks,
        )

    def _ended(self, ride: Ride) -> bool:
        self.telemetry.ended(ride)
        self.rides.append(ride)
        return False

    def _makers(self) -> Mapping[str, Callable[[float], Law]]:
        """By a law's name, of a stabilisation window."""
        return {
            "law": Pacer,
            STATIC: Static,
            "HPA": lambda window_s: QueueHPA(window_s, self._waiting, WAITING),
            "KEDA": lambda window_s: RatioLaw(window_s, self._ratio),
            "clairvoyant": lambda window_s: Clairvoyant(window_s, partial(to_come, self.load), AHEAD_S),
        }

    def _waiting(self, pool: str) -> float:
        return self.telemetry.samples[-1].waiting.get(pool, 0.0)

    def _ratio(self, now: float) -> float | None:
        ttft, tpot = (self.telemetry.p90(metric, SLO.name, now) for metric in ("ttft", "tpot"))
        return None if ttft is None or tpot is None else max(ttft / SLO.ttft_s, tpot / SLO.tpot_s)

    def _sizes(self) -> tuple[tuple[float, int], ...]:
        changes = ((r.at_s, r.change.after) for r in self.scaler.resized if r.at_s < self.load.duration_s)
        return ((0.0, self.first), *changes)

    def _burst(self) -> tuple[float | None, float | None]:
        """From the onset until the last replica ordered in the 5 min after it is ready; else for a start-up."""
        onset_s = self.load.onset_s
        if onset_s is None:
            return None, None
        ordered = [pod for pod in self.members.pods if onset_s <= pod.ordered_s <= onset_s + 300]
        until_s = max((pod.ready_s for pod in ordered if pod.ready_s < inf), default=onset_s + START.mean_s)
        return good_share([r for r in self.rides if onset_s <= r.course.arrival_s < until_s]), until_s - onset_s


def run(load: Load, seed: int, law: str) -> Outcome:
    """It starts with what the clairvoyant would."""
    return Replay(load, seed, law, needed(to_come(load, 0.0, AHEAD_S))).run()


def least_static(load: Load, seed: int) -> Outcome:
    """Of the least static fleet that holds the target, looked for from between what mean and highest rate need."""
    tried: dict[int, Outcome] = {}

    def holds(n: int) -> bool:
        if n not in tried:
            tried[n] = Replay(load, seed, STATIC, n).run()
        return tried[n].attainment >= SLO.target_ratio

    middle_rps = (azure_rps() + peak_rps(load, 0.0, load.duration_s)) / 2
    n = needed(service(middle_rps, *trace_lengths()))
    while not holds(n):
        n += 1
    while n > 1 and holds(n - 1):
        n -= 1
    return tried[n]


def good_share(rides: Sequence[Ride]) -> float:
    verdicts = [judge(SLO, ride.course, ride.course.end_s or 0.0) for ride in rides]
    decided = [v for v in verdicts if v is not None]
    return sum(v is Verdict.GOOD for v in decided) / max(len(decided), 1)


def _by_minute(rides: Sequence[Ride], duration_s: float) -> Iterator[float | None]:
    by: dict[int, list[Ride]] = {}
    for ride in rides:
        by.setdefault(int(ride.course.arrival_s // 60), []).append(ride)
    for minute in range(int(duration_s // 60) + 1):
        yield good_share(by[minute]) if minute in by else None


def reversals(sizes: Sequence[tuple[float, int]]) -> int:
    """The most changes of direction within any 10 min, once settled."""
    turns = []
    moves = [(at, after - before) for (_, before), (at, after) in pairwise(sizes) if after != before]
    for (_, one), (at, other) in pairwise(moves):
        if one * other < 0 and at >= CONSTANT_FROM_S:
            turns.append(at)
    return max((sum(at <= t < at + REVERSAL_S for t in turns) for at in turns), default=0)
