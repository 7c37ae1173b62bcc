"""The autoscaler over real load: GPU-hours and attainment beside static fleets, an HPA, KEDA's rule and a clairvoyant.

    python benchmarks/autoscale_replay.py [--quick] [--others-once] [--out build/autoscale-replay] [--workload NAME …]

Load: the Azure conversation trace, and from each of six ServeGen days the hour with the steepest rise, rates scaled to
the Azure trace's mean, lengths from the Azure trace; PACELINE_TRACES names the folder. Then 40 min of constant load, in
which a law should not reverse. The least static fleet is found in hindsight, for each load and seed. Exit code 1 where
the law attains less than the target, saves less than 80 % of what the clairvoyant saves against that fleet (by load
where the clairvoyant saves anything, and over all), or reverses more than once in 10 min of constant load. The JSON is
written after every run. On 2 cores about 35 min, `--quick` 3.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from autoscale_hours import LAWS, MODEL, SLO, STATIC, TABLE, TENSOR, Outcome, least_static, run
from autoscale_loads import CONSTANT, Load, constant, last_half, loads, peak_rps
from rich.console import Console
from rich.table import Table

CONSTANT_S = 2400.0
SAVED = 0.8
FIGURES, FIGURE = "autoscale-replay.json", "autoscale-replay.png"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, half an hour of ServeGen, no rivals")
    parser.add_argument("--out", type=Path, default=Path("build/autoscale-replay"))
    parser.add_argument("--workload", action="append", help="only those whose name holds this")
    parser.add_argument("--others-once", action="store_true", help="all but the law on the first seed only")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if not os.environ.get("PACELINE_TRACES"):
        parser.error("set PACELINE_TRACES to the folder of traces (see CONTRIBUTING.md)")
    wanted = [x for x in loads() if not args.workload or any(w in x.name for w in args.workload)]
    if not wanted:
        parser.error(f"no load's name holds {' or '.join(args.workload)}; there are: {names(loads())}")
    steady = constant(CONSTANT_S / 2 if args.quick else CONSTANT_S)
    if args.quick:
        wanted = [last_half(x) for x in wanted if x.rates][:1]
    laws, seeds = (LAWS[:2], (1,)) if args.quick else (LAWS, (1, 2, 3))
    others = seeds[:1] if args.others_once else seeds
    console = Console(width=120)
    args.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    with ProcessPoolExecutor(args.jobs) as pool:
        work = {law: seeds if law == laws[0] else others for law in (*laws[:2], STATIC, *laws[2:])}
        for outcome in finished(pool, wanted, steady, work):
            outcomes.append(outcome)
            console.print(str(outcome))
            figures = {"simulated": True, "runs": [asdict(o) for o in outcomes]}
            (args.out / FIGURES).write_text(json.dumps(figures, indent=1) + "\n")
    missed = [*show_hours(console, wanted, outcomes, laws), *show_constant(console, outcomes, laws)]
    draw(wanted, outcomes, args.out / FIGURE)
    for line in missed:
        console.print(f"MISSED: {line}", style="bold red")
    return 1 if missed else 0


def names(of: Sequence[Load]) -> str:
    return "; ".join(load.name for load in of)


def finished(
    pool: ProcessPoolExecutor, wanted: Sequence[Load], steady: Load, laws: Mapping[str, Sequence[int]]
) -> Iterator[Outcome]:
    """Every run's outcome as it comes, asked for law by law on its seeds; at constant load nothing is to be saved."""
    asked: list[Future[Outcome]] = []
    for law, seeds in laws.items():
        if law == STATIC:
            asked += [pool.submit(least_static, load, seed) for seed in seeds for load in wanted]
        else:
            asked += [pool.submit(run, load, seed, law) for seed in seeds for load in (*wanted, steady)]
    for each in as_completed(asked):
        yield each.result()


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


@dataclass(frozen=True, slots=True)
class Means:
    """Of one load's runs over the seeds, by law; attainment in percent."""

    hours: dict[str, float]
    attained: dict[str, float]
    bursts: dict[str, str]

    @classmethod
    def of(cls, load: Load, outcomes: Sequence[Outcome], laws: Sequence[str]) -> Means:
        runs = {law: [o for o in outcomes if (o.load, o.law) == (load.name, law)] for law in (STATIC, *laws)}
        return cls(
            {law: fmean(o.gpu_hours for o in found) for law, found in runs.items()},
            {law: 100 * fmean(o.attainment for o in found) for law, found in runs.items()},
            {law: _mean_burst(found) for law, found in runs.items()},
        )

    def saved(self) -> Saved:
        static = self.hours[STATIC]
        return Saved(static, static - self.hours["law"], static - self.hours["clairvoyant"])


def show_hours(console: Console, wanted: Sequence[Load], outcomes: Sequence[Outcome], laws: Sequence[str]) -> list[str]:
    """The table of the hours; what the law misses."""
    rows = Table(title=f"{MODEL}, tensor {TENSOR}, on {TABLE}: attainment % / GPU-hours, mean of seeds — SIMULATED")
    for column in ("load", STATIC, *laws, "saved by law", "of clairvoyant's", "burst: law", "clairvoyant"):
        rows.add_column(column, justify="left" if column == "load" else "right")
    missed, total = [], Saved()
    for load in wanted:
        means = Means.of(load, outcomes, laws)
        saved = means.saved()
        cells = [f"{means.attained[law]:.1f} / {means.hours[law]:.1f}" for law in (STATIC, *laws)]
        share = f"{100 * saved.law / saved.clairvoyant:.0f} %" if saved.clairvoyant > 0 else "–"
        bursts = means.bursts["law"], means.bursts["clairvoyant"]
        rows.add_row(load.name, *cells, f"{100 * saved.law / saved.static:.0f} %", share, *bursts)
        if means.attained["law"] < 100 * SLO.target_ratio:
            missed.append(f"{load.name}: the law attains {means.attained['law']:.1f} %")
        if saved.clairvoyant > 0 and saved.law < SAVED * saved.clairvoyant:
            missed.append(f"{load.name}: {saved}")
        total += saved
    rows.caption = f"over all: {total}"
    console.print(rows)
    return [*missed, *([f"over all: {total}"] if total.law < SAVED * total.clairvoyant else [])]


def show_constant(console: Console, outcomes: Sequence[Outcome], laws: Sequence[str]) -> list[str]:
    """The table of the constant load; what the law misses."""
    rows = Table(title="constant load: attainment %, GPU-hours, most reversals within 10 min — SIMULATED")
    for column in ("", *laws):
        rows.add_column(column, justify="left" if not column else "right")
    found = {law: [o for o in outcomes if (o.load, o.law) == (CONSTANT, law)] for law in laws}
    cells: dict[str, Callable[[list[Outcome]], str]] = {
        "attainment": lambda of: f"{100 * fmean(o.attainment for o in of):.1f}",
        "GPU-hours": lambda of: f"{fmean(o.gpu_hours for o in of):.1f}",
        "reversals": lambda of: str(max(o.reversals for o in of)),
    }
    for name, cell in cells.items():
        rows.add_row(name, *(cell(found[law]) for law in laws))
    console.print(rows)
    most = max(o.reversals for o in found["law"])
    return [f"{most} reversals within 10 min at constant load"] if most > 1 else []


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
        rates = [peak_rps(load, 60.0 * m, 60.0 * m + 1) for m in range(int(load.duration_s // 60))]
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
