"""The report `paceline.report/v1` (DESIGN §10): what a run, or one run for each of several rates, came to.

`RunTally` takes requests as they end, `Run` is one rate's outcome, `Report` puts runs together. With several rates the
report's own figures are those of its headline: the highest rate that meets every class's target together with all
lower ones, else the lowest rate; each point of `curve` carries its own. Invariant: a run that was late is never valid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import orjson
from paceline_api.slo import SLOClass

from paceline_planner.aggregate import OUTCOMES, ClassFigures, ClassTally, Record, Samples, percent
from paceline_planner.validity import Json, Lateness, Reconciliation, rounded

SCHEMA = "paceline.report/v1"
LEVELS_PERCENT = (90.0, 99.0)  # the crossings that every comparison prints (DESIGN §1)


@dataclass(frozen=True, slots=True)
class Event:
    """What befell a simulated fleet: a replica that died or came, a pool that was resized."""

    at_s: float
    what: str


@dataclass(frozen=True, slots=True)
class Run:
    """One rate. `duration_s` is the window of arrivals in model seconds; `gpus` on average.

    `failed_legs` counts legs of requests that failed on a simulated fleet, by fault; most were sent again.
    """

    rate_rps: float
    duration_s: float
    gpus: float | None
    outcomes: Mapping[str, int]
    classes: Sequence[ClassFigures]
    samples: Sequence[Samples]
    lateness: Lateness
    simulated: bool
    interrupted: bool = False
    reconciliation: Reconciliation | None = None
    events: Sequence[Event] = ()
    failed_legs: Mapping[str, int] = field(default_factory=dict)

    @property
    def arrivals(self) -> int:
        return sum(self.outcomes.values())

    @property
    def faults(self) -> list[str]:
        """Why the run is not valid; empty when it is."""
        cut = ["it was interrupted"] if self.interrupted else []
        nothing = ["no request was decided"] if not any(figures.decided for figures in self.classes) else []
        return cut + nothing + self.lateness.faults(simulated=self.simulated)

    @property
    def attainment_percent(self) -> float | None:
        """Over all classes together."""
        return percent(sum(c.good for c in self.classes), sum(c.decided for c in self.classes))

    @property
    def goodput_rps(self) -> float:
        return sum(c.goodput_rps for c in self.classes)

    @property
    def goodput_rps_per_gpu(self) -> float | None:
        return self.goodput_rps / self.gpus if self.gpus else None

    @property
    def meets_targets(self) -> bool:
        return all(c.meets_target for c in self.classes if c.decided)

    def to_json(self) -> Json:
        return {
            "duration_s": rounded(self.duration_s),
            "arrivals": self.arrivals,
            "outcomes": {name: self.outcomes.get(name, 0) for name in dict.fromkeys((*OUTCOMES, *self.outcomes))},
            "classes": [_class_json(figures) for figures in self.classes],
        }

    def to_point(self) -> Json:
        """The run as a point of the curve over rate."""
        return {
            "rate_rps": rounded(self.rate_rps),
            "valid": not self.faults,
            "invalid_reason": "; ".join(self.faults) or None,
            "attainment_percent": rounded(self.attainment_percent),
            "goodput_rps": rounded(self.goodput_rps),
            "goodput_rps_per_gpu": rounded(self.goodput_rps_per_gpu),
            **self.to_json(),
            "lateness": self.lateness.to_json(),
            "reconciliation": self.reconciliation.to_json() if self.reconciliation else None,
            "events": [{"at_s": rounded(event.at_s), "what": event.what} for event in self.events],
            "failed_legs": dict(self.failed_legs),
        }


@dataclass(slots=True)
class RunTally:
    """Takes the requests of one run as they end."""

    slos: Mapping[str, SLOClass]
    classes: dict[str, ClassTally] = field(default_factory=dict)

    def add(self, record: Record, now: float) -> None:
        """Counts one request; KeyError for a class that has no objective. `now`: see ClassTally.add."""
        tally = self.classes.get(record.class_name)
        if tally is None:
            tally = self.classes[record.class_name] = ClassTally(self.slos[record.class_name])
        tally.add(record, now)

    def run(
        self,
        rate_rps: float,
        duration_s: float,
        *,
        gpus: float | None,
        lateness: Lateness,
        simulated: bool,
        interrupted: bool = False,
        reconciliation: Reconciliation | None = None,
    ) -> Run:
        """The run so far, over a window of `duration_s` > 0 of arrivals."""
        tallies = [self.classes[name] for name in self.slos if name in self.classes]
        return Run(
            rate_rps=rate_rps,
            duration_s=duration_s,
            gpus=gpus,
            outcomes=sum((tally.outcomes for tally in tallies), Counter()),
            classes=[tally.figures(duration_s, gpus) for tally in tallies],
            samples=[tally.samples() for tally in tallies],
            lateness=lateness,
            simulated=simulated,
            interrupted=interrupted,
            reconciliation=reconciliation,
        )


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where attainment falls below a level: interpolated between the rates around it, None outside of those tried."""

    level_percent: float
    rate_rps: float | None
    goodput_rps_per_gpu: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """Runs of one workload in order of rate, at least one. `step_times`: where a simulated machine's come from."""

    runs: Sequence[Run]
    workload: str
    time_scale: float = 1.0
    seed: int = 0
    step_times: Sequence[str] = ()

    @property
    def headline(self) -> Run:
        best = self.runs[0]
        for run in self.runs:
            if run.faults or not run.meets_targets:
                break
            best = run
        return best

    @property
    def simulated(self) -> bool:
        return any(run.simulated for run in self.runs)

    @property
    def interrupted(self) -> bool:
        return any(run.interrupted for run in self.runs)

    @property
    def faults(self) -> list[str]:
        return [f"at {run.rate_rps:g} requests/s {fault}" for run in self.runs for fault in run.faults]

    @property
    def crossings(self) -> list[Crossing]:
        return [crossing(self.runs, level) for level in LEVELS_PERCENT]

    def to_json(self) -> bytes:
        """UTF-8 JSON; figures that do not exist are null, never NaN."""
        headline = self.headline
        value: Json = {
            "schema": SCHEMA,
            "simulated": self.simulated,
            "valid": not self.faults,
            "invalid_reason": "; ".join(self.faults) or None,
            "interrupted": self.interrupted,
            "time_scale": self.time_scale,
            "seed": self.seed,
            "workload": self.workload,
            "gpus": rounded(headline.gpus),
            "rate_rps": rounded(headline.rate_rps),
            **headline.to_json(),
            "lateness": headline.lateness.to_json(),
            "reconciliation": headline.reconciliation.to_json() if headline.reconciliation else None,
            "curve": [run.to_point() for run in self.runs],
            "step_times": list(self.step_times),
            "crossings": [{name: rounded(v) for name, v in asdict(c).items()} for c in self.crossings],
        }
        return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def crossing(runs: Sequence[Run], level_percent: float) -> Crossing:
    """The first fall of attainment through the level, over rates in rising order."""
    points = [(run, run.attainment_percent) for run in runs if run.attainment_percent is not None]
    for (run, above), (after, below) in pairwise(points):
        if above >= level_percent > below:
            way = (above - level_percent) / (above - below)
            at = run.rate_rps + way * (after.rate_rps - run.rate_rps)
            gpus = run.gpus + way * (after.gpus - run.gpus) if run.gpus and after.gpus else None
            return Crossing(level_percent, at, at * level_percent / 100 / gpus if gpus else None)
        if above < level_percent:
            break
    return Crossing(level_percent, None, None)


def _class_json(figures: ClassFigures) -> Json:
    return {
        name: {p: rounded(v) for p, v in value.items()} if isinstance(value, dict) else rounded(value)
        for name, value in asdict(figures).items()
    }
