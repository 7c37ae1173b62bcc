"""The autoscaler over real load: GPU-hours and attainment beside static fleets, an HPA, KEDA's rule and a clairvoyant.

    python benchmarks/autoscale_replay.py [--quick] [--out build/autoscale-replay] [--workload NAME …]

Production's router, batching policy, law and steward on the virtual clock, metrics as late as Prometheus has them (15 s
scrapes, 60 s rates), cold starts. Load: the Azure conversation trace, and from each of six ServeGen days the hour with
the steepest rise, rates scaled to the Azure trace's mean, lengths from the Azure trace; PACELINE_TRACES names the
folder. Then 40 min of constant load, in which a law should not reverse. The clairvoyant is the law told the highest
true rate and the true lengths from now until a replica ordered at the next tick is surely ready; it knows no
stabilisation window. The least static fleet is found in hindsight, for each load and seed. Exit code 1 where the law
attains less than the target, saves less than 80 % of what the clairvoyant saves against that fleet (by load where the
clairvoyant saves anything, and over all), or reverses more than once in 10 min of constant load. On 2 cores about
35 min, `--quick` 3.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import pairwise
from math import inf
from pathlib import Path
from random import Random
from statistics import fmean

from autoscale_loads import (
    CLASS,
    CONSTANT,
    RATE_OVER_S,
    Load,
    arriving,
    azure,
    azure_rps,
    constant,
    jobs,
    last_half,
    loads,
    peak_rps,
)
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
from paceline_router.metrics import TOKEN_BOUNDS
from paceline_router.scaling.steward import Law
from rich.console import Console
from rich.table import Table

TABLE, MODEL, TENSOR = "l40s", "llama-2-13b", 1  # 17,504 tokens of KV: memory sets the sizes, in steps of a tenth
SLO = SLOClass(CLASS, ttft_s=1.5, tpot_s=0.08, target_ratio=0.95)
# Assumed: 30 s for the process and its CUDA graphs, and 26 GB of weights at 2 GB/s from a local disk.
START = StartUp(43.0)
POOL = PoolSpec("mixed", Role.MIXED, ReplicaSpec(MachineSpec(load_table(TABLE, MODEL, TENSOR))), START, TENSOR, 1, 16)
RHYTHM = Rhythm()
CONSTANT_S, CONSTANT_FROM_S, REVERSAL_S = 2400.0, 600.0, 600.0
WAITING = 2.0  # requests in an engine's queue that the HPA aims at
SAVED = 0.8
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, half an hour of ServeGen, no rivals")
    parser.add_argument("--out", type=Path, default=Path("build/autoscale-replay"))
    parser.add_argument("--workload", action="append", help="only those whose name holds this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if not os.environ.get("PACELINE_TRACES"):
        parser.error("set PACELINE_TRACES to the folder of traces (see CONTRIBUTING.md)")
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [x for x in loads() if not args.workload or any(w in x.name for w in args.workload)]
    steady = constant(CONSTANT_S / 2 if args.quick else CONSTANT_S)
    if args.quick:
        wanted = [last_half(x) for x in wanted if x.rates][:1]
    seeds = (1,) if args.quick else (1, 2, 3)
    laws = LAWS[:2] if args.quick else LAWS
    work = [(load, seed, law) for law in laws for load in wanted for seed in seeds]
    work += [(steady, seed, law) for law in laws for seed in seeds]
    with ProcessPoolExecutor(args.jobs) as pool:
        static = [pool.submit(least_static, load, seed) for load in wanted for seed in seeds]
        outcomes = list(pool.map(run, *zip(*work, strict=True)))
        outcomes += [each.result() for each in static]
    figures = {"simulated": True, "runs": [asdict(o) for o in outcomes]}
    (args.out / "autoscale-replay.json").write_text(json.dumps(figures, indent=1) + "\n")
    console = Console(width=120)
    missed = show(console, wanted, outcomes, laws)
    draw(wanted, outcomes, args.out / "autoscale-replay.png")
    for line in missed:
        console.print(f"MISSED: {line}", style="bold red")
    return 1 if missed else 0


@dataclass(frozen=True, slots=True)
class Saved:
    """GPU-hours against the least static fleets' `static`."""

    static: float = 0.0
    law: float = 0.0
    clairvoyant: float = 0.0

    def __add__(self, other: Saved) -> Saved:
        return Saved(self.static + other.static, self.law + other.law, self.clairvoyant + other.clairvoyant)

    def __str__(self) -> str:
        return f"the law saves {self.law:.1f} of {self.static:.1f} GPU-hours, the clairvoyant {self.clairvoyant:.1f}"


# --- what the clairvoyant knows


@cache
def fitted() -> EngineSignals:
    """What two engines have learned after a minute."""
    small = Fleet(FleetSpec(first_engines([POOL], {POOL.name: 2}), {SLO.name: SLO}), 7, lambda ride: False)
    small.run(jobs(Load("known", 60.0, ((0.0, 2.0),)), 7))
    facts = [replica.facts for replica in small.ledger.replicas.values()]
    return EngineSignals(
        POOL.replica.machine.table,
        fmean(f.mixed_scale for f in facts),
        fmean(f.mixed_offset_s for f in facts),
        fmean(f.decode_scale for f in facts),
        fmean(f.decode_offset_s for f in facts),
    )


def service(rate_rps: float, lengths: Sequence[Job]) -> ServiceSignals:
    prompts, outputs = [j.prompt_tokens for j in lengths], [j.output_tokens for j in lengths]
    load = ClassSignals(SLO, rate_rps, histogram(prompts), histogram(outputs))
    pool = PoolSignals(POOL.name, POOL.role, POOL.gpus, 1, 1, POOL.least, POOL.most, fitted())
    return ServiceSignals((load,), (pool,), RATE_OVER_S)


def to_come(load: Load, start_s: float, end_s: float) -> ServiceSignals:
    """The service at the highest true rate in between, with the lengths of what arrives until then and runs now."""
    return service(peak_rps(load, start_s, end_s)[SLO.name], arriving(load, start_s - RATE_OVER_S, end_s))


def histogram(tokens: Sequence[int]) -> Lengths:
    shares = [sum(t <= bound for t in tokens) / len(tokens) for bound in TOKEN_BOUNDS]
    steps = (shares[0], *(b - a for a, b in pairwise(shares)))
    return Lengths(fmean(tokens), tuple(zip(TOKEN_BOUNDS, steps, strict=True)))


def needed(signals: ServiceSignals) -> int:
    """Production's law's least replicas."""
    return least_sizes(signals).sizes[POOL.name]


# --- runs


def run(load: Load, seed: int, law: str, replicas: int | None = None) -> Outcome:
    """One law over one load; it starts with what the clairvoyant would, unless `replicas` are given."""
    ahead_s = START.mean_s * (1 + START.spread_ratio) + RHYTHM.interval_s
    first = replicas or needed(to_come(load, 0.0, ahead_s))
    telemetry = Telemetry({SLO.name: SLO}, RHYTHM.scrape_s)
    rides: list[Ride] = []

    def ended(ride: Ride) -> bool:
        telemetry.ended(ride)
        rides.append(ride)
        return False

    spec = FleetSpec(first_engines([POOL], {POOL.name: first}), {SLO.name: SLO})
    fleet = Fleet(spec, seed, ended, telemetry.arrived, telemetry.first_token)
    members = Members(fleet, [POOL], Random(f"{seed}/starts"))

    def waiting(pool: str) -> float:
        return telemetry.samples[-1].waiting.get(pool, 0.0)

    def ratio(now: float) -> float | None:
        ttft, tpot = telemetry.p90("ttft", SLO.name, now), telemetry.p90("tpot", SLO.name, now)
        return None if ttft is None or tpot is None else max(ttft / SLO.ttft_s, tpot / SLO.tpot_s)

    makers: Mapping[str, Callable[[float], Law]] = {
        "law": Pacer,
        "static": Static,
        "HPA": lambda window_s: QueueHPA(window_s, waiting, WAITING),
        "KEDA": lambda window_s: RatioLaw(window_s, ratio),
        "clairvoyant": lambda window_s: Clairvoyant(window_s, partial(to_come, load), ahead_s),
    }
    scaler = Autoscaler(fleet, members, telemetry, {SLO.name: SLO}, Random(f"{seed}/ticks"), RHYTHM, makers[law])
    fleet.run(jobs(load, seed))
    fleet.check()
    sizes = [(0.0, first), *((r.at_s, r.change.after) for r in scaler.resized if r.at_s < load.duration_s)]
    burst, burst_s = _burst(load, members, rides)
    return Outcome(
        load.name,
        seed,
        law,
        _good(rides),
        members.gpu_seconds(load.duration_s) / 3600,
        tuple(sizes),
        tuple(_by_minute(rides, load.duration_s)),
        burst,
        burst_s,
        _reversals(sizes),
        scaler.blind_ticks,
    )


def least_static(load: Load, seed: int) -> Outcome:
    """Of the least static fleet that holds the target."""
    tried: dict[int, Outcome] = {}

    def holds(n: int) -> bool:
        if n not in tried:
            tried[n] = run(load, seed, "static", n)
        return tried[n].attainment >= SLO.target_ratio

    n = needed(service(azure_rps(), azure()))
    while not holds(n):
        n += 1
    while n > 1 and holds(n - 1):
        n -= 1
    return tried[n]


def _good(rides: Sequence[Ride]) -> float:
    verdicts = [judge(SLO, ride.course, ride.course.end_s or 0.0) for ride in rides]
    decided = [v for v in verdicts if v is not None]
    return sum(v is Verdict.GOOD for v in decided) / max(len(decided), 1)


def _by_minute(rides: Sequence[Ride], duration_s: float) -> Iterator[float | None]:
    by: dict[int, list[Ride]] = {}
    for ride in rides:
        by.setdefault(int(ride.course.arrival_s // 60), []).append(ride)
    for minute in range(int(duration_s // 60) + 1):
        yield _good(by[minute]) if minute in by else None


def _burst(load: Load, members: Members, rides: Sequence[Ride]) -> tuple[float | None, float | None]:
    """From the onset until the last replica that was ordered in the 5 min after it is ready; else for a start-up."""
    if load.onset_s is None:
        return None, None
    ordered = [pod for pod in members.pods if load.onset_s <= pod.ordered_s <= load.onset_s + 300]
    until = max((pod.ready_s for pod in ordered if pod.ready_s < inf), default=load.onset_s + START.mean_s)
    return _good([r for r in rides if load.onset_s <= r.course.arrival_s < until]), until - load.onset_s


def _reversals(sizes: Sequence[tuple[float, int]]) -> int:
    """The most changes of direction within any 10 min, once settled."""
    turns = []
    moves = [(at, after - before) for (_, before), (at, after) in pairwise(sizes) if after != before]
    for (_, one), (at, other) in pairwise(moves):
        if one * other < 0 and at >= CONSTANT_FROM_S:
            turns.append(at)
    return max((sum(at <= t < at + REVERSAL_S for t in turns) for at in turns), default=0)


# --- results


def show(console: Console, wanted: Sequence[Load], outcomes: Sequence[Outcome], laws: Sequence[str]) -> list[str]:
    """The tables; what the law misses."""
    rows = Table(title=f"{MODEL}, tensor {TENSOR}, on {TABLE}: attainment % / GPU-hours, mean of seeds — SIMULATED")
    for column in ("load", "static", *laws, "saved by law", "of clairvoyant's", "burst: law", "clairvoyant"):
        rows.add_column(column, justify="left" if column == "load" else "right")
    missed, totals = [], Saved()
    for load in wanted:
        means = {law: [o for o in outcomes if (o.load, o.law) == (load.name, law)] for law in ("static", *laws)}
        hours = {law: fmean(o.gpu_hours for o in found) for law, found in means.items()}
        attained = {law: 100 * fmean(o.attainment for o in found) for law, found in means.items()}
        saved = hours["static"] - hours["law"]
        possible = hours["static"] - hours["clairvoyant"]
        share = f"{100 * saved / possible:.0f} %" if possible > 0 else "–"
        bursts = [_mean_burst(means[law]) for law in ("law", "clairvoyant")]
        cells = [f"{attained[law]:.1f} / {hours[law]:.1f}" for law in ("static", *laws)]
        rows.add_row(load.name, *cells, f"{100 * saved / hours['static']:.0f} %", share, *bursts)
        if attained["law"] < 100 * SLO.target_ratio:
            missed.append(f"{load.name}: the law attains {attained['law']:.1f} %")
        totals += Saved(hours["static"], saved, possible)
        if possible > 0 and saved < SAVED * possible:
            missed.append(f"{load.name}: the law saves {saved:.2f} GPU-hours, the clairvoyant {possible:.2f}")
    rows.caption = f"over all: {totals}"
    console.print(rows)
    if totals.law < SAVED * totals.clairvoyant:
        missed.append(f"over all: {totals}")
    steady = Table(title="constant load: attainment %, GPU-hours, most reversals within 10 min — SIMULATED")
    for column in ("", *laws):
        steady.add_column(column, justify="left" if not column else "right")
    found = {law: [o for o in outcomes if (o.load, o.law) == (CONSTANT, law)] for law in laws}
    steady.add_row("attainment", *(f"{100 * fmean(o.attainment for o in f):.1f}" for f in found.values()))
    steady.add_row("GPU-hours", *(f"{fmean(o.gpu_hours for o in f):.1f}" for f in found.values()))
    steady.add_row("reversals", *(str(max(o.reversals for o in f)) for f in found.values()))
    console.print(steady)
    most = max(o.reversals for o in found["law"])
    return [*missed, *([f"{most} reversals within 10 min at constant load"] if most > 1 else [])]


def _mean_burst(found: Sequence[Outcome]) -> str:
    with_burst = [o for o in found if o.burst is not None and o.burst_s is not None]
    if not with_burst:
        return "–"
    good, seconds = fmean(o.burst or 0.0 for o in with_burst), fmean(o.burst_s or 0.0 for o in with_burst)
    return f"{100 * good:.0f} % over {seconds:.0f} s"


def draw(wanted: Sequence[Load], outcomes: Sequence[Outcome], path: Path) -> None:
    """For each load the sizes over time, and attainment by minute, of the first seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(wanted), figsize=(3.6 * len(wanted), 5), layout="constrained", squeeze=False)
    for column, load in enumerate(wanted):
        above, below = axes[0][column], axes[1][column]
        for o in (o for o in outcomes if o.load == load.name and o.seed == 1):
            times = [at / 60 for at, _ in o.sizes] + [load.duration_s / 60]
            counts = [n for _, n in o.sizes]
            above.step(times, [*counts, counts[-1]], where="post", label=o.law, linewidth=1)
            if o.law in ("law", "clairvoyant"):
                below.plot([100 * (a if a is not None else 1) for a in o.attained_by_minute], label=o.law, linewidth=1)
        rates = [peak_rps(load, 60.0 * m, 60.0 * m + 1)[SLO.name] for m in range(int(load.duration_s // 60))]
        above.plot(rates, color="grey", linewidth=0.7, linestyle=":", label="requests/s")
        above.set(title=load.name, ylim=(0, None))
        below.axhline(100 * SLO.target_ratio, color="grey", linewidth=0.7)
        below.set(xlabel="minute", ylim=(0, 102))
    axes[0][0].set_ylabel("replicas")
    axes[1][0].set_ylabel("attainment by minute, %")
    axes[0][0].legend(fontsize=7)
    figure.suptitle(f"{MODEL} on {TENSOR} × {TABLE}\nSIMULATED, virtual clock", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
