"""What tensor and pipeline parallelism do for each phase, over rate (DistServe, OSDI'24, §3 and figures 4 and 5).

Prefill: mean TTFT of uniform prompts, one in a step, on two stages against twice the tensor parallelism; M/D/1's closed
forms beside the simulation, and the rate at which pipelining overtakes. Decode: mean TPOT over rate of the same two
instances, and one step's time and tokens per second as GPUs are added either way. Machines are DistServe's published
fits without host terms, for the closed forms have none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from statistics import fmean

from paceline_api.slo import SLOClass
from paceline_engine.policies.step import Limits
from paceline_engine.sim.setup import ReplicaSpec
from paceline_engine.step_time import HostTerm, StepTable
from paceline_router.facts import Role

from paceline_planner.feasible import lone_prefill_s
from paceline_planner.papers.experiment import Curve, Experiment, Finding, Grid, Lab, Panel, Result, crossing, within
from paceline_planner.papers.measured_machines import DISTSERVE_ENGINE, machine, published_table
from paceline_planner.search.instances import Demand, Parallel, decode_alone
from paceline_planner.search.trial import serve
from paceline_planner.sim.arrivals import poisson_jobs
from paceline_planner.sim.rides import EngineSpec, FleetSpec
from paceline_planner.workloads import Fixed

PROMPT_TOKENS = 512
UTILISATIONS = (0.1, 0.3, 0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.4, 1.5, 1.6)  # of one instance's 1 / D
PROMPTS, WARM_UP = 4000, 500
QUEUED = 0.8  # of an instance's own capacity: above it, a run as short as these says little of a mean
CONTEXT, BATCH = 256, 128  # figure 5
ANSWER_TOKENS, ANSWERS = 64, 1500
DECODE_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 1.1, 1.2, 1.3)  # of what tensor parallelism sustains at BATCH
SLO = SLOClass("any", ttft_s=1e6, tpot_s=1e6)


@dataclass(frozen=True, slots=True)
class Pair:
    """Twice the GPUs of `base`, as tensor or as pipeline parallelism."""

    model: str
    base: Parallel

    @property
    def tensor(self) -> Parallel:
        return Parallel(2 * self.base.tensor, self.base.pipeline)

    @property
    def pipeline(self) -> Parallel:
        return Parallel(self.base.tensor, 2 * self.base.pipeline)


PAIRS = (Pair("opt-13b", Parallel(1)), Pair("opt-66b", Parallel(2)))


def table(model: str, parallel: Parallel) -> StepTable:
    found = published_table(DISTSERVE_ENGINE.table, model, parallel.tensor, parallel.pipeline)
    return replace(found, host=HostTerm())


def prefill_s(model: str, parallel: Parallel) -> float:
    """D: one prompt alone, through all stages."""
    return lone_prefill_s(table(model, parallel), PROMPT_TOKENS)


def two_stages_ttft_s(d: float, rate: float) -> float:
    """Mean TTFT of two pipeline stages of D / 2 each; rate below 2 / D."""
    return d + rate * d**2 / (4 * (2 - rate * d))


def twice_the_tensor_ttft_s(d: float, k: float, rate: float) -> float:
    """Mean TTFT of one instance that is K times as fast; rate below K / D."""
    return d / k + rate * d**2 / (2 * k * (k - rate * d))


def overtaken_at(d: float, k: float) -> float:
    """The rate from which two stages answer sooner than K times the speed, by bisection of the closed forms."""
    low, high = 0.0, k / d * (1 - 1e-9)
    for _ in range(60):
        middle = (low + high) / 2
        sooner = twice_the_tensor_ttft_s(d, k, middle) < two_stages_ttft_s(d, middle)
        low, high = (middle, high) if sooner else (low, middle)
    return low


def mean_ttft_s(count: int, point: tuple[str, Parallel, float]) -> float:
    """Simulated; prompts of the first moments are left out."""
    model, parallel, rate = point
    spec = machine(table(model, parallel), stages=parallel.pipeline)
    replica = ReplicaSpec(spec, "prefill-only", token_budget=PROMPT_TOKENS)
    fleet = FleetSpec((EngineSpec("prefill", Role.MIXED, replica, parallel.gpus),), {SLO.name: SLO}, "round-robin")
    courses = serve(fleet, islice(poisson_jobs(Fixed(PROMPT_TOKENS, 1), rate, 1, SLO.name), count), 1)
    return fmean(c.ttft_s or 0.0 for c in courses[min(WARM_UP, count // 10) :])


def run(lab: Lab) -> Result:
    findings: list[Finding] = []
    panels, rows = [], []
    for pair in PAIRS:
        found, panel = prefill(lab, pair)
        findings += found
        panels.append(panel)
    for pair in PAIRS:
        found, panel = decode(lab, pair)
        findings += found
        panels.append(panel)
        rows += decode_rows(pair.model)
        findings += decode_findings(pair)
    columns = ("decode", "step, ms", "tokens/s", "tokens/s per GPU")
    grid = Grid(f"batch {BATCH} a micro-batch, {CONTEXT} tokens of context (figure 5's setting)", columns, tuple(rows))
    return Result(tuple(findings), (grid,), tuple(panels))


def prefill(lab: Lab, pair: Pair) -> tuple[list[Finding], Panel]:
    d, fast = prefill_s(pair.model, pair.base), prefill_s(pair.model, pair.tensor)
    k = d / fast
    rates = [u / d for u in (UTILISATIONS[1::3] if lab.quick else UTILISATIONS)]
    by_tensor = [rate for rate in rates if rate < 0.95 * k / d]
    count = 600 if lab.quick else PROMPTS
    points = [(pair.model, pair.tensor, r) for r in by_tensor] + [(pair.model, pair.pipeline, r) for r in rates]
    seconds = lab.each(partial(mean_ttft_s, count), points)
    tensor = list(zip(by_tensor, seconds, strict=False))
    pipeline = list(zip(rates, seconds[len(by_tensor) :], strict=True))
    formula = [(r, twice_the_tensor_ttft_s(d, k, r)) for r in by_tensor]
    stages = [(r, two_stages_ttft_s(d, r)) for r in rates]
    speeds = [k] * len(tensor) + [2.0] * len(pipeline)
    off = [
        abs(s / f - 1)
        for (rate, s), (_, f), speed in zip(tensor + pipeline, formula + stages, speeds, strict=True)
        if rate * d <= QUEUED * speed
    ]
    at = crossing([(rate, dict(pipeline)[rate] - seconds) for rate, seconds in tensor], 0.0)
    expected = overtaken_at(d, k)
    name = f"{pair.model}, {pair.tensor} against {pair.pipeline}, K = {k:.2f}"
    findings = [
        Finding(f"{name}: largest distance of simulated mean TTFT from the closed form", 0.0, max(off), 0.0, 0.1),
        within(f"{name}: pipelining overtakes at", expected, at, 0.15, "rps", "closed form"),
    ]
    curves = (
        Curve(f"{pair.tensor}", tuple(tensor)),
        Curve(f"{pair.pipeline}", tuple(pipeline)),
        Curve(f"{pair.tensor}, closed form", tuple(formula), published=True),
        Curve(f"{pair.pipeline}, closed form", tuple(stages), published=True),
    )
    return findings, Panel(f"prefill of {PROMPT_TOKENS} tokens, {pair.model}", "requests/s", "mean TTFT, s", curves)


def mean_tpot_s(count: int, point: tuple[str, Parallel, float]) -> float:
    """Simulated, behind a prefill that takes no time; the first third and the last tenth are left out."""
    model, parallel, rate = point
    spec = machine(table(model, parallel), stages=parallel.pipeline, kv_constant_s=0.0, kv_bytes_per_s=1e15)
    replica = ReplicaSpec(spec, "decode-only", limits=Limits(max_requests=1024))
    instance = EngineSpec("decode", Role.DECODE, replica, parallel.gpus)
    alone, fleet = decode_alone(Demand(Fixed(CONTEXT, ANSWER_TOKENS), SLO), instance)
    courses = serve(fleet, islice(alone.jobs(rate, 1), count), 1)
    return fmean(c.tpot_s or 0.0 for c in courses[count // 3 : -count // 10])


def decode(lab: Lab, pair: Pair) -> tuple[list[Finding], Panel]:
    most = decode_step(pair.model, pair.tensor)[1] / ANSWER_TOKENS
    rates = [share * most for share in (DECODE_SHARES[::4] if lab.quick else DECODE_SHARES)]
    points = [(pair.model, parallel, rate) for parallel in (pair.tensor, pair.pipeline) for rate in rates]
    seconds = lab.each(partial(mean_tpot_s, 150 if lab.quick else ANSWERS), points)
    tensor = list(zip(rates, seconds, strict=False))
    pipeline = list(zip(rates, seconds[len(rates) :], strict=True))
    name = f"{pair.model} decode, {pair.tensor} against {pair.pipeline}"
    findings = [
        Finding(f"{name}: mean TPOT at the lowest rate", None, tensor[0][1] / pipeline[0][1], high=1.0, unit="ratio"),
        Finding(f"{name}: the same at the highest", None, tensor[-1][1] / pipeline[-1][1], low=1.0, unit="ratio"),
    ]
    curves = (Curve(f"{pair.tensor}", tuple(tensor)), Curve(f"{pair.pipeline}", tuple(pipeline)))
    title = f"decode of {ANSWER_TOKENS} tokens after {CONTEXT}, {pair.model}"
    return findings, Panel(title, "requests/s", "mean TPOT, s", curves)


def decode_step(model: str, parallel: Parallel) -> tuple[float, float]:
    """Seconds of a step through all stages, and tokens per second with a full micro-batch in each stage."""
    seconds = table(model, parallel).seconds4(0, 0.0, BATCH, BATCH * CONTEXT)
    return seconds, parallel.pipeline * BATCH / seconds


def decode_rows(model: str) -> list[tuple[str, ...]]:
    least = 1 if model == "opt-13b" else 2
    shapes = [Parallel(least * n, 1) for n in (1, 2, 4) if least * n <= 8] + [Parallel(least, n) for n in (2, 4)]
    rows: list[tuple[str, ...]] = []
    for shape in shapes:
        seconds, rate = decode_step(model, shape)
        rows.append((f"{model} {shape}", f"{1e3 * seconds:.1f}", f"{rate:.0f}", f"{rate / shape.gpus:.0f}"))
    return rows


def decode_findings(pair: Pair) -> list[Finding]:
    alone, tensor, pipeline = (decode_step(pair.model, p) for p in (pair.base, pair.tensor, pair.pipeline))
    name = f"{pair.model} decode, GPUs doubled"
    return [
        Finding(f"{name}: step time by tensor parallelism", None, alone[0] / tensor[0], 1.0, 2.0, "x faster"),
        Finding(f"{name}: tokens/s by stages", None, pipeline[1] / alone[1], tensor[1] / alone[1], 2.0, "x"),
    ]


EXPERIMENT = Experiment(
    "distserve-parallelism", "DistServe: tensor against pipeline parallelism", "OSDI'24 §3, figures 4, 5", run
)
