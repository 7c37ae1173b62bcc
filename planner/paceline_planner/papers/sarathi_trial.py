"""One trial of Sarathi-Serve's capacity search, and the search: how many requests a second meet both of its limits.

A trial sends Poisson arrivals to one replica for half an hour or 2,048 requests, whichever ends first, and holds when
the P99 of all gaps between tokens, pooled over requests, is within the objective and the median scheduling delay is at
most 2 s (OSDI'24, §5.1; the repository's scripts). Capacity is the highest rate found to hold. Deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice, takewhile
from pathlib import Path
from random import Random

import numpy as np
from paceline_api.slo import SLOClass

from paceline_planner import traces
from paceline_planner.papers.sarathi_machines import Deployment, System, engine
from paceline_planner.search.trial import highest_rate
from paceline_planner.sim.arrivals import poisson_jobs
from paceline_planner.sim.fleet import Fleet
from paceline_planner.sim.rides import FleetSpec, Job, Ride
from paceline_planner.workloads import Empirical, LengthSource, Lognormal

CHAT_FILE = "sarathi/sharegpt_8k_filtered_stats_llama2_tokenizer.csv"
CONTEXT_TOKENS = {"chat": 8192, "arxiv": 16384}
MEDIAN_DELAY_S = 2.0
TBT_QUANTILE = 0.99
REQUESTS = 2048
MOST_S = 1800.0
BRACKET = 1.25
CLASS = "paper"


ARXIV_PROMPT, ARXIV_OUTPUT = Lognormal(8000, 0.68), Lognormal(206, 0.43, least=2)
ARXIV_LONG_OUTPUT, ARXIV_LONG_RATIO = Lognormal(2000, 0.3), 0.015


class Arxiv:
    """arxiv-summarization as the paper cut it (table 2): median, P90 and standard deviation of its lengths.

    Prompts 7,059, 12,985, 3,638; outputs 208, 371, 265, so a few are far longer. Longer sums are drawn again. Fitted by
    search over 200,000 draws; the medians above are those before the cut.
    """

    def draw(self, rng: Random) -> tuple[int, int]:
        while True:
            of = ARXIV_LONG_OUTPUT if rng.random() < ARXIV_LONG_RATIO else ARXIV_OUTPUT
            prompt, output = ARXIV_PROMPT.draw(rng), of.draw(rng)
            if prompt + output <= CONTEXT_TOKENS["arxiv"]:
                return prompt, output


@dataclass(frozen=True, slots=True)
class Load:
    """What a trial sends: `requests` at most, within `most_s`."""

    workload: str  # chat or arxiv
    traces: Path
    requests: int = REQUESTS
    most_s: float = MOST_S


@dataclass(frozen=True, slots=True)
class Case:
    """One column of a figure. `early`: a trial that can no longer hold ends."""

    deployment: Deployment
    system: System
    relaxed: bool
    load: Load
    early: bool = True

    @property
    def slo_s(self) -> float:
        return self.deployment.slo_s[self.relaxed]


@dataclass(frozen=True, slots=True)
class Trial:
    """What a rate gave."""

    rate_rps: float
    p99_tbt_s: float
    median_ttft_s: float
    holds: bool


@cache
def lengths(load: Load) -> LengthSource:
    if load.workload == "arxiv":
        return Arxiv()
    pairs = [(r.prompt_tokens, r.output_tokens) for r in traces.read(load.traces / CHAT_FILE)]
    return Empirical(pairs)


def jobs(load: Load, rate_rps: float, seed: int) -> Iterator[Job]:
    """The same requests at every rate, in the same order."""
    sent = islice(poisson_jobs(lengths(load), rate_rps, seed, CLASS), load.requests)
    return takewhile(lambda job: job.arrival_s <= load.most_s, sent)


@dataclass(slots=True)
class Watch:
    """The rides of a trial. It stops early once more requests or gaps are late than the trial may have in all."""

    slo_s: float
    most_s: float
    most_delayed: float
    most_late: float
    rides: list[Ride] = field(default_factory=list)
    delayed: int = 0
    late: int = 0

    def arrived(self, ride: Ride) -> None:
        self.rides.append(ride)

    def began(self, ride: Ride) -> None:
        self.delayed += ride.started_s - ride.job.arrival_s > MEDIAN_DELAY_S

    def ended(self, ride: Ride) -> bool:
        self.late += sum(gap > self.slo_s for gap in ride.gaps_s)
        if self.delayed > self.most_delayed or self.late > self.most_late:
            return True
        return (ride.course.end_s or 0.0) > self.most_s


def serve(case: Case, rate_rps: float, seed: int) -> Watch:
    """The rides of a trial, with the times between their tokens."""
    load = case.load
    slo = SLOClass(CLASS, MEDIAN_DELAY_S, case.slo_s, 0.9, case.slo_s, ttft_s_per_1k_prompt_tokens=4 * case.slo_s)
    spec = FleetSpec(
        (engine(case.deployment, case.system, case.relaxed, CONTEXT_TOKENS[load.workload]),),
        {CLASS: slo},
        "round-robin",
        record_gaps=True,
    )
    sent = list(jobs(load, rate_rps, seed))
    most = (math.inf, math.inf)
    if case.early:
        most = (len(sent) / 2, (1 - TBT_QUANTILE) * sum(job.output_tokens for job in sent))
    watch = Watch(case.slo_s, load.most_s, *most)
    fleet = Fleet(spec, seed, watch.ended, watch.arrived, watch.began)
    fleet.run(iter(sent))
    fleet.check()
    return watch


def run(case: Case, rate_rps: float, seed: int) -> Trial:
    watch = serve(case, rate_rps, seed)
    begun = [r for r in watch.rides if r.course.first_token_s is not None]
    gaps = np.concatenate([np.array(r.gaps_s) for r in begun])
    p99 = float(np.quantile(gaps, TBT_QUANTILE))
    delay = float(np.median([r.started_s - r.job.arrival_s for r in begun]))
    if watch.delayed > watch.most_delayed:
        delay = math.inf
    ttft = float(np.median([r.course.ttft_s for r in begun]))
    return Trial(rate_rps, p99, ttft, p99 <= case.slo_s and delay <= MEDIAN_DELAY_S)


@dataclass(frozen=True, slots=True)
class Capacity:
    """`rate_rps` 0: no rate tried held. `trials` ascend by rate."""

    rate_rps: float
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """That of `rate_rps`, which must not be 0."""
        return next(t for t in self.trials if t.rate_rps == self.rate_rps)


@dataclass(frozen=True, slots=True)
class Search:
    """One capacity to find. `guess_rps` only says where to begin."""

    case: Case
    guess_rps: float
    seed: int
    tolerance: float


def find(wanted: Search) -> Capacity:
    return search(partial(run, wanted.case, seed=wanted.seed), wanted.guess_rps, wanted.tolerance)


def search(trial: Callable[[float], Trial], guess_rps: float, tolerance: float) -> Capacity:
    """Bracket from `guess_rps`, a quarter more or less at a time, then bisect to a bracket `tolerance` wide."""
    trials: dict[float, Trial] = {}

    def holds(rate: float) -> bool:
        trials[rate] = trial(rate)
        return trials[rate].holds

    found = highest_rate(holds, guess_rps, tolerance, first_step=BRACKET, further_step=BRACKET)
    return Capacity(found, tuple(trials[rate] for rate in sorted(trials)))
