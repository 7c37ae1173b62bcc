"""Adds up requests, one at a time as they end, into the figures of one class (DESIGN §1 and §10).

Verdicts come from `paceline_api.slo.judge` alone. Token gaps go into a histogram of 1 % wide bins, so that percentiles
of millions of gaps take 17 KiB. Invariants: arrivals = Σ outcomes = decided + undecided + left out; attainment =
good / decided.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from paceline_api.outcomes import Outcome
from paceline_api.slo import Course, SLOClass, Verdict, judge

CONNECTION_LOST = "connection_lost"  # known to a client only: the connection broke before an answer was complete
UNFINISHED = "unfinished"  # the run ended first
OUTCOMES = (*(str(outcome) for outcome in Outcome), CONNECTION_LOST)
LONG_GAP_TPOTS = 5.0  # DESIGN §1: the share of requests with a gap > 5 × TPOT stands beside goodput

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Record:
    """One request as it went. `gaps_s`: times between tokens of its stream; a lost connection counts as failed."""

    class_name: str
    course: Course
    gaps_s: Sequence[float] = ()
    connection_lost: bool = False

    @property
    def outcome(self) -> str:
        if self.connection_lost:
            return CONNECTION_LOST
        return str(self.course.outcome or UNFINISHED)


@dataclass(frozen=True, slots=True)
class Percentiles:
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class over one run. Rates are per model second; None where nothing was measured."""

    name: str
    target_percent: float
    ttft_limit_ms: float
    tpot_limit_ms: float
    arrivals: int
    decided: int
    undecided: int
    left_out: int  # rejected, or gone before a deadline had passed
    good: int
    attainment_percent: float | None
    attainment_worst_quartile_percent: float | None
    goodput_rps: float
    goodput_rps_per_gpu: float | None
    good_output_tokens_per_s: float
    gap_over_5_tpot_percent: float | None
    ttft_ms: Percentiles | None
    tpot_ms: Percentiles | None
    itl_ms: Percentiles | None

    @property
    def meets_target(self) -> bool:
        return self.attainment_percent is not None and self.attainment_percent >= self.target_percent


@dataclass(frozen=True, slots=True)
class Samples:
    """What a figure draws of one class: decided requests by arrival, and the latencies that were measured, seconds."""

    slo: SLOClass
    decided_arrival_s: Floats
    decided_good: npt.NDArray[np.bool_]
    ttft_s: Floats
    tpot_s: Floats


class GapHistogram:
    """Counts of durations from 10 µs to 10,000 s in bins 1 % wide; what lies outside counts in the end bins."""

    LEAST_S = 1e-5
    STEP = math.log(1.01)
    BINS = math.ceil(math.log(1e9) / STEP)

    def __init__(self) -> None:
        self.counts = np.zeros(self.BINS, dtype=np.int64)

    def add(self, gaps_s: Sequence[float]) -> None:
        gaps = np.maximum(np.asarray(gaps_s, dtype=np.float64), self.LEAST_S)
        bins = np.minimum((np.log(gaps / self.LEAST_S) / self.STEP).astype(np.int64), self.BINS - 1)
        np.add.at(self.counts, bins, 1)

    def percentiles_ms(self) -> Percentiles | None:
        """The middles of the bins that hold them: within 0.5 %."""
        total = int(self.counts.sum())
        if total == 0:
            return None
        ranks = [math.ceil(share * total) for share in (0.5, 0.9, 0.99)]
        found = np.searchsorted(np.cumsum(self.counts), ranks)
        return Percentiles(*(float(1e3 * self.LEAST_S * math.exp((bin_ + 0.5) * self.STEP)) for bin_ in found))


def percentiles_ms(seconds: Sequence[float] | Floats) -> Percentiles | None:
    """Interpolated percentiles in milliseconds; None of nothing."""
    if len(seconds) == 0:
        return None
    return Percentiles(*(float(1e3 * value) for value in np.percentile(np.asarray(seconds), (50, 90, 99))))


def quartiles_percent(prompt_tokens: Sequence[int], good: Sequence[int]) -> list[float]:
    """Attainment of each quartile by prompt length, the short ones first; equal lengths stay in one quartile."""
    if not prompt_tokens:
        return []
    lengths, verdicts = np.asarray(prompt_tokens), np.asarray(good, dtype=np.float64)
    quartile = np.searchsorted(np.percentile(lengths, (25, 50, 75)), lengths, side="left")
    return [float(100 * verdicts[quartile == q].mean()) for q in np.unique(quartile)]


def worst_quartile_percent(prompt_tokens: Sequence[int], good: Sequence[int]) -> float | None:
    """The least of them; None of nothing."""
    return min(quartiles_percent(prompt_tokens, good), default=None)


@dataclass(slots=True)
class ClassTally:
    """Adds up the requests of one class."""

    slo: SLOClass
    outcomes: Counter[str] = field(default_factory=Counter)
    undecided: int = 0
    left_out: int = 0
    good_tokens: int = 0
    streams: int = 0
    long_gaps: int = 0
    gaps: GapHistogram = field(default_factory=GapHistogram)
    arrival_s: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: array[int] = field(default_factory=lambda: array("q"))
    good: array[int] = field(default_factory=lambda: array("b"))
    ttft_s: array[float] = field(default_factory=lambda: array("d"))
    tpot_s: array[float] = field(default_factory=lambda: array("d"))

    def add(self, record: Record, now: float) -> None:
        """Counts one request, which has ended or will not be waited for; `now` decides those without an end."""
        course = record.course
        self.outcomes[record.outcome] += 1
        match judge(self.slo, course, now):
            case None if course.outcome is None:
                self.undecided += 1
            case None:
                self.left_out += 1
            case verdict:
                self.arrival_s.append(course.arrival_s)
                self.prompt_tokens.append(course.prompt_tokens)
                self.good.append(verdict is Verdict.GOOD)
                self.good_tokens += course.output_tokens if verdict is Verdict.GOOD else 0
        if course.streamed and course.ttft_s is not None:
            self.ttft_s.append(course.ttft_s)
            self._add_gaps(record.gaps_s)
        if course.streamed and course.tpot_s is not None and course.outcome is Outcome.COMPLETED:
            self.tpot_s.append(course.tpot_s)

    def _add_gaps(self, gaps_s: Sequence[float]) -> None:
        self.streams += 1
        if len(gaps_s) > 0:
            self.gaps.add(gaps_s)
            self.long_gaps += max(gaps_s) > LONG_GAP_TPOTS * self.slo.tpot_s

    def figures(self, duration_s: float, gpus: float | None) -> ClassFigures:
        """The class over a window of `duration_s` of arrivals."""
        decided, good = len(self.good), sum(self.good)
        return ClassFigures(
            name=self.slo.name,
            target_percent=100 * self.slo.target_ratio,
            ttft_limit_ms=1e3 * self.slo.ttft_s,
            tpot_limit_ms=1e3 * self.slo.tpot_s,
            arrivals=self.outcomes.total(),
            decided=decided,
            undecided=self.undecided,
            left_out=self.left_out,
            good=good,
            attainment_percent=percent(good, decided),
            attainment_worst_quartile_percent=worst_quartile_percent(self.prompt_tokens, self.good),
            goodput_rps=good / duration_s,
            goodput_rps_per_gpu=good / duration_s / gpus if gpus else None,
            good_output_tokens_per_s=self.good_tokens / duration_s,
            gap_over_5_tpot_percent=percent(self.long_gaps, self.streams),
            ttft_ms=percentiles_ms(self.ttft_s),
            tpot_ms=percentiles_ms(self.tpot_s),
            itl_ms=self.gaps.percentiles_ms(),
        )

    def samples(self) -> Samples:
        return Samples(
            slo=self.slo,
            decided_arrival_s=np.array(self.arrival_s),
            decided_good=np.array(self.good, dtype=np.bool_),
            ttft_s=np.array(self.ttft_s),
            tpot_s=np.array(self.tpot_s),
        )


def percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
