"""Hours of real load for the autoscaler's benchmark: Azure's conversation trace, and ServeGen's rates with its lengths.

PACELINE_TRACES names the folder. Deterministic from a seed; rates are requests per second.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import inf
from pathlib import Path
from random import Random
from statistics import fmean

from paceline_planner.sim.fleet import Job
from paceline_planner.traces import read
from paceline_planner.workloads import Empirical

CLASS = "interactive"
AZURE = "azure/AzureLLMInferenceTrace_conv.csv"
SERVEGEN = "servegen/language_m-small"
BIN_S, BINS, DAY_S = 600.0, 6, 86_400.0  # ServeGen's windows, those of an hour
DAYS = range(6)  # of ServeGen's fourteen, the first six: none of their windows is missing
RATE_OVER_S = 60.0  # a trace's "true" rate at a moment is over this long around it, the window of production's rates
CONSTANT = "constant load"


@dataclass(frozen=True, slots=True)
class Load:
    """`rates` are (from, requests per second) as generated, empty for a trace. `onset_s`: of its steepest rise."""

    name: str
    duration_s: float
    rates: tuple[tuple[float, float], ...] = ()
    onset_s: float | None = None


def traces() -> Path:
    return Path(os.environ["PACELINE_TRACES"])


@cache
def azure() -> tuple[Job, ...]:
    return tuple(Job(r.arrival_s, r.prompt_tokens, r.output_tokens, CLASS) for r in read(traces() / AZURE))


def azure_rps() -> float:
    return len(azure()) / azure()[-1].arrival_s


def loads() -> list[Load]:
    """The trace, and the hours."""
    return [Load("Azure conversation", azure()[-1].arrival_s), *(hour(day) for day in DAYS)]


def constant(duration_s: float) -> Load:
    return Load(CONSTANT, duration_s, ((0.0, azure_rps()),))


def last_half(load: Load) -> Load:
    """Of an hour."""
    middle = load.duration_s / 2
    rates = tuple((at - middle, rate) for at, rate in load.rates if at >= middle)
    onset_s = load.onset_s - middle if load.onset_s is not None and load.onset_s >= middle else None
    return Load(f"{load.name}, last half", middle, rates, onset_s)


@cache
def servegen_rates() -> tuple[float, ...]:
    """Requests per second of each window of 600 s, summed over the clients that have a dataset file."""
    total: dict[float, float] = {}
    for dataset in sorted((traces() / SERVEGEN).glob("chunk-*-dataset.json")):
        with open(dataset.with_name(dataset.name.replace("dataset.json", "trace.csv"))) as file:
            for row in csv.reader(file):
                total[float(row[0])] = total.get(float(row[0]), 0.0) + float(row[1] or 0.0)
    return tuple(total[at] for at in sorted(total))


def hour(day: int) -> Load:
    """The six windows of a day whose last is furthest above their first; a window of 0 is one that is missing."""
    per_day = int(DAY_S / BIN_S)
    rates = servegen_rates()[day * per_day : (day + 1) * per_day]
    whole = [i for i in range(per_day - BINS + 1) if all(rates[i : i + BINS])]
    first = max(whole, key=lambda i: rates[i + BINS - 1] - rates[i])
    found = rates[first : first + BINS]
    factor = azure_rps() / fmean(found)
    scaled = tuple((i * BIN_S, rate * factor) for i, rate in enumerate(found))
    onset = max(pairwise(scaled), key=lambda pair: pair[1][1] - pair[0][1])[1][0]
    return Load(f"ServeGen day {day + 1}, {first / 6:04.1f} h", BINS * BIN_S, scaled, onset)


def jobs(load: Load, seed: int) -> Iterator[Job]:
    """The trace as it is; or Poisson arrivals at the hour's rates, with lengths drawn from the trace."""
    if not load.rates:
        yield from azure()
        return
    arrivals, lengths = Random(f"{seed}/{load.name}/arrivals"), Random(f"{seed}/{load.name}/lengths")
    source = Empirical([(job.prompt_tokens, job.output_tokens) for job in azure()])
    ends = [*(start for start, _ in load.rates[1:]), load.duration_s]
    for (at, rate), end in zip(load.rates, ends, strict=True):
        while (at := at + arrivals.expovariate(rate)) < end:
            yield Job(at, *source.draw(lengths), CLASS)


def peak_rps(load: Load, start_s: float, end_s: float) -> float:
    """The highest true rate in between."""
    if load.rates:
        ends = [*(at for at, _ in load.rates[1:]), inf]
        return max(r for (at, r), end in zip(load.rates, ends, strict=True) if at <= end_s and end > start_s)
    return max(trace_rates()[int(start_s // 10) : int(end_s // 10) + 1], default=0.0)


def arriving(start_s: float, end_s: float) -> tuple[Job, ...]:
    """Of the trace, in between; all where nobody does."""
    return tuple(job for job in azure() if start_s <= job.arrival_s < end_s) or azure()


@cache
def trace_rates() -> tuple[float, ...]:
    """The trace's rate around the middle of each 10 s."""
    steps = int(azure()[-1].arrival_s // 10) + 1
    tens = [0] * steps
    for job in azure():
        tens[int(job.arrival_s // 10)] += 1
    half = int(RATE_OVER_S // 20)
    spans = [tens[max(i - half, 0) : i + half] for i in range(steps)]
    return tuple(sum(span) / (10 * max(len(span), 1)) for span in spans)
