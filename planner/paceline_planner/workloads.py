"""Makes workloads: lengths from documented distributions or a trace, arrivals from a Poisson or Gamma process.

Pure: the caller passes the seeded generators, one for lengths and one for arrivals, so that the same seed at another
rate sends the same requests. Lengths are lognormals with cut-offs, fitted to the published statistics that each entry
of SYNTHETIC names; arrivals start after 0 and never decrease.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

from paceline_planner.traces import TraceRequest

if TYPE_CHECKING:
    from random import Random


class WorkloadError(ValueError):
    """A workload that cannot be made; the message says what to change."""


class LengthSource(Protocol):
    """Draws (prompt tokens, output tokens), both ≥ 1."""

    def draw(self, rng: Random) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Whole tokens from a lognormal of this median and σ of the logarithm, never below `least`."""

    median: float
    sigma: float
    least: int = 1

    def draw(self, rng: Random) -> int:
        return max(self.least, round(self.median * math.exp(self.sigma * rng.gauss(0.0, 1.0))))


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Two independent lognormals; a pair longer than `total_tokens` is drawn again, or its prompt cut to fit.

    The medians are those before the cut; the statistics after it are the source's.
    """

    prompt: Lognormal
    output: Lognormal
    total_tokens: int
    shorten_prompt: bool
    source: str

    def draw(self, rng: Random) -> tuple[int, int]:
        while True:
            prompt, output = self.prompt.draw(rng), self.output.draw(rng)
            if prompt + output <= self.total_tokens:
                return prompt, output
            if self.shorten_prompt and output < self.total_tokens:
                return self.total_tokens - output, output


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same lengths for every request."""

    prompt_tokens: int
    output_tokens: int

    def draw(self, rng: Random) -> tuple[int, int]:
        return self.prompt_tokens, self.output_tokens


@dataclass(frozen=True, slots=True)
class Empirical:
    """Lengths drawn, with replacement, from a trace's pairs."""

    pairs: Sequence[tuple[int, int]]

    def draw(self, rng: Random) -> tuple[int, int]:
        return rng.choice(self.pairs)


# Fitted by random search over 60,000 draws to the mean, p50 and p90 of each source; tests/unit/test_workloads.py
# holds the targets and the tolerance.
SYNTHETIC = {
    "chat": Synthetic(
        Lognormal(1538.6, 1.357, least=4),
        Lognormal(99.6, 1.902, least=2),
        total_tokens=2048,
        shorten_prompt=False,
        source="ShareGPT up to 2048 tokens, OPT tokenizer, as DistServe (OSDI'24) filtered it",
    ),
    "code": Synthetic(
        Lognormal(147.6, 0.506),
        Lognormal(78.0, 0.703),
        total_tokens=2048,
        shorten_prompt=False,
        source="HumanEval, OPT tokenizer, as DistServe (OSDI'24) used it",
    ),
    "summarisation": Synthetic(  # only means are published: σ as in arxiv-summarization (Sarathi-Serve) and 0.7
        Lognormal(2170.0, 0.475),
        Lognormal(71.0, 0.7),
        total_tokens=2048,
        shorten_prompt=True,
        source="LongBench cut at 2048 tokens, as DistServe (OSDI'24) used it",
    ),
}


def parse_lengths(spec: str) -> LengthSource:
    """`chat`, `code`, `summarisation` or `fixed:PROMPT,OUTPUT`. Raises WorkloadError."""
    if spec in SYNTHETIC:
        return SYNTHETIC[spec]
    kind, _, lengths = spec.partition(":")
    if kind != "fixed":
        raise WorkloadError(f"no workload {spec!r}; choose {', '.join(SYNTHETIC)} or fixed:PROMPT,OUTPUT")
    try:
        prompt, output = (int(part) for part in lengths.split(","))
    except ValueError as e:
        raise WorkloadError(f"{spec!r} names no two lengths; write for example fixed:512,64") from e
    if prompt < 1 or output < 1:
        raise WorkloadError(f"{spec!r} has a length below 1; write for example fixed:512,64")
    return Fixed(prompt, output)


def gamma_arrivals(rate_rps: float, cv: float, rng: Random) -> Iterator[float]:
    """Arrival times in seconds, without end; gaps are Gamma with mean 1/rate and this coefficient of variation."""
    if not (rate_rps > 0 and math.isfinite(rate_rps)) or cv <= 0:
        raise WorkloadError(f"rate {rate_rps} and cv {cv} must be above 0")
    shape = cv**-2
    at = 0.0
    while True:
        at += rng.gammavariate(shape, 1 / (rate_rps * shape))
        yield at


def poisson_arrivals(rate_rps: float, rng: Random) -> Iterator[float]:
    """Arrival times in seconds of a Poisson process, without end."""
    return gamma_arrivals(rate_rps, 1.0, rng)


def synthesise(lengths: LengthSource, arrivals: Iterable[float], rng: Random) -> Iterator[TraceRequest]:
    """Requests with drawn lengths at the given times."""
    return (TraceRequest(at, *lengths.draw(rng)) for at in arrivals)


def at_rate(requests: list[TraceRequest], rate_rps: float) -> list[TraceRequest]:
    """The same arrivals stretched to a mean rate, keeping their burstiness. Raises WorkloadError."""
    own = mean_rate_rps(requests)
    if not math.isfinite(own):
        raise WorkloadError("the trace has too few arrivals to stretch; give lengths alone, or a longer trace")
    factor = own / rate_rps
    return [replace(request, arrival_s=request.arrival_s * factor) for request in requests]


def mean_rate_rps(requests: list[TraceRequest]) -> float:
    """Gaps per second between the first and the last arrival; infinite when there is no time between them."""
    span = requests[-1].arrival_s - requests[0].arrival_s if requests else 0.0
    return (len(requests) - 1) / span if span > 0 else math.inf


def until(requests: Iterable[TraceRequest], duration_s: float) -> Iterator[TraceRequest]:
    """The requests that arrive before `duration_s`."""
    return takewhile(lambda request: request.arrival_s < duration_s, requests)


def clipped(request: TraceRequest, context_tokens: int) -> TraceRequest:
    """The request cut to a model's context: its output to leave room for a prompt token, then its prompt."""
    output = min(request.output_tokens, context_tokens - 1)
    prompt = min(request.prompt_tokens, context_tokens - output)
    return replace(request, prompt_tokens=prompt, output_tokens=output)
