"""The real runs of DistServe's evaluation, replayed on the simulator with the same arrivals and lengths.

OPT-13B, ShareGPT, A100-80G, DistServe's engine and vLLM of 2023 (a part of the runs published with its simulator,
Apache-2.0; the file is named by its reader, none of it is kept here). For each run: the share of requests within SLO
scales of 0.2 s TTFT and 0.1 s TPOT, measured and simulated, p50 and p90 of both, and the distance between their
distributions. Invariant: one set of constants an engine, read from the runs that measured_machines.py names, none by
run. Of vLLM there are two versions, and which one a run is of shows in its batches, not in its speed.
"""

from __future__ import annotations

import csv
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path

from paceline_api.slo import SLOClass
from paceline_engine.policies.vllm_v0 import MAX_PADDINGS

from paceline_planner.papers.measured_machines import CONSTANTS, Constants, distserve_engines, packed, vllm_engines
from paceline_planner.sim.fleet import Fleet
from paceline_planner.sim.rides import FleetSpec, Job, Ride

FILE = "distserve/opt13b_sharegpt_a100_measured.csv"
MODEL = "opt-13b"
SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)
SLO = SLOClass("chat", ttft_s=0.2, tpot_s=0.1)
LEVELS = (0.5, 0.9)
ONE_BATCH_S = 0.002  # first tokens of one batch reach the client 0.3–0.4 ms after each other, of two at least 20 ms


@dataclass(frozen=True, slots=True)
class Latency:
    """What one request got; `tpot_s` is 0 with one output token."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True)
class MeasuredRun:
    """One run: its requests in order of issue, and what they got. `config` is tensor and pipeline, one digit each."""

    system: str  # distserve or vllm
    config: str  # prefill TP, PP, decode TP, PP; of vllm TP, PP
    rate_rps: float
    jobs: tuple[Job, ...]
    measured: tuple[Latency, ...]

    @property
    def name(self) -> str:
        return f"{self.system} {self.config} at {self.rate_rps:g}/s"

    @cached_property
    def packs(self) -> bool:
        """Of vLLM, whether some batch held prompts that 0.2.2 and later, which pad them, do not put together."""
        if self.system != "vllm":
            return False
        firsts = sorted(
            (j.arrival_s + x.ttft_s, j.prompt_tokens) for j, x in zip(self.jobs, self.measured, strict=True)
        )
        batch: list[int] = []
        last_s = -inf
        for at_s, tokens in firsts:
            batch = [*batch, tokens] if at_s - last_s < ONE_BATCH_S else [tokens]
            if len(batch) * max(batch) - sum(batch) > MAX_PADDINGS:
                return True
            last_s = at_s
        return False


@dataclass(frozen=True)
class Comparison:
    """A run and its replay."""

    run: MeasuredRun
    simulated: tuple[Latency, ...]

    @cached_property
    def attainment_percent(self) -> tuple[tuple[float, float], ...]:
        """Measured and simulated, at each of SCALES."""
        return tuple((attainment(self.run.measured, s), attainment(self.simulated, s)) for s in SCALES)

    @cached_property
    def errors_points(self) -> tuple[float, ...]:
        """Simulated less measured attainment, at each of SCALES."""
        return tuple(simulated - measured for measured, simulated in self.attainment_percent)

    @cached_property
    def ratios(self) -> dict[str, float]:
        """Simulated to measured p50 and p90."""
        found: dict[str, float] = {}
        for name, of in (("ttft", ttft), ("tpot", tpot)):
            ours, theirs = sorted(map(of, self.simulated)), sorted(map(of, self.run.measured))
            found |= {f"{name}_p{100 * p:.0f}": quantile(ours, p) / quantile(theirs, p) for p in LEVELS}
        return found

    @cached_property
    def distances(self) -> dict[str, float]:
        """Kolmogorov and Smirnov's distance between the measured and the simulated distribution."""
        both = (("ttft", ttft), ("tpot", tpot))
        return {name: distance([*map(of, self.run.measured)], [*map(of, self.simulated)]) for name, of in both}


def ttft(latency: Latency) -> float:
    return latency.ttft_s


def tpot(latency: Latency) -> float:
    return latency.tpot_s


def read_runs(path: Path) -> list[MeasuredRun]:
    """Every run of a file, by system, configuration and rate; KeyError names a missing column."""
    rows: dict[tuple[str, str, float], list[dict[str, str]]] = {}
    with path.open(newline="") as lines:
        for row in csv.DictReader(lines):
            rows.setdefault((row["system"], row["cfg_ptp_ppp_dtp_dpp"], float(row["rate_rps"])), []).append(row)
    return [_run(*key, rows[key]) for key in sorted(rows)]


def _run(system: str, config: str, rate_rps: float, rows: list[dict[str, str]]) -> MeasuredRun:
    rows.sort(key=lambda row: float(row["issue_s"]))
    jobs = (Job(float(r["issue_s"]), int(r["prompt_len"]), int(r["output_len"]), SLO.name) for r in rows)
    measured = (Latency(float(r["ttft_ms"]) / 1e3, float(r["tpot_ms"]) / 1e3) for r in rows)
    return MeasuredRun(system, config, rate_rps, tuple(jobs), tuple(measured))


def fleet(
    system: str, config: str, model: str = MODEL, constants: Constants = CONSTANTS, *, packs: bool = False
) -> FleetSpec:
    """The run's machines; ValueError for another system. The KV transfer counts in TPOT, as its authors count it."""
    classes = {SLO.name: SLO}
    match system, [int(digit) for digit in config]:
        case "distserve", [prefill_tp, prefill_pp, decode_tp, decode_pp]:
            one = constants.distserve
            engines = distserve_engines(model, (prefill_tp, prefill_pp), (decode_tp, decode_pp), one)
            return FleetSpec(engines, classes, "round-robin", transfer_in_tpot=True, front_s=one.front_s)
        case "vllm", [tensor, 1]:
            version = packed(constants.vllm) if packs else constants.vllm
            return FleetSpec(vllm_engines(model, tensor, version), classes, "round-robin", front_s=version.front_s)
        case _:
            raise ValueError(f"no machine is known for {system} with configuration {config}")


def replay(run: MeasuredRun, model: str = MODEL, constants: Constants = CONSTANTS) -> Comparison:
    """Serve the run's requests at the moments they were issued."""
    rides: dict[int, Ride] = {}

    def ended(ride: Ride) -> bool:
        rides[ride.id] = ride
        return False

    simulated = Fleet(fleet(run.system, run.config, model, constants, packs=run.packs), 1, ended)
    simulated.run(iter(run.jobs))
    simulated.check()
    courses = (rides[i + 1].course for i in range(len(run.jobs)))
    return Comparison(run, tuple(Latency(c.ttft_s or 0.0, c.tpot_s or 0.0) for c in courses))


def attainment(latencies: Sequence[Latency], scale: float, slo: SLOClass = SLO) -> float:
    """Percent of requests within `scale` times both limits."""
    good = sum(x.ttft_s <= scale * slo.ttft_s and x.tpot_s <= scale * slo.tpot_s for x in latencies)
    return 100.0 * good / len(latencies)


def quantile(ordered: Sequence[float], level: float) -> float:
    """The value below which `level` of an ascending sequence lies."""
    return ordered[min(int(level * len(ordered)), len(ordered) - 1)]


def distance(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest gap between two empirical distribution functions."""
    a, b = sorted(a), sorted(b)
    return max(abs(bisect_right(a, x) / len(a) - bisect_right(b, x) / len(b)) for x in (*a, *b))


@dataclass(frozen=True, slots=True)
class Errors:
    """Attainment errors over runs and scales, in points; the ratios' worst distance from 1."""

    mean_points: float
    max_points: float
    worst_ratio: float


def errors(comparisons: Sequence[Comparison]) -> Errors:
    """Over at least one run."""
    points = [abs(e) for c in comparisons for e in c.errors_points]
    ratios = [abs(r - 1.0) for c in comparisons for r in c.ratios.values()]
    return Errors(sum(points) / len(points), max(points), max(ratios))
