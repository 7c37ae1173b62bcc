"""DistServe's introductory example as an experiment: 1.6, 5.6, 10 and 3.3 requests/s per GPU, and a better split.

Each variant is one machine and one way to batch prompts, for all of its figures alike. The judged one is the example's:
simdistserve's fit of vLLM with its host term and the 1 ms that it adds to a prefill, and one prompt of 512 tokens in a
step. At that length the paper finds an A100 saturated by OPT-13B (figure 3): two prompts in a step then take as long as
one after the other, which a fit that is linear in tokens does not say. Rates are requests per second; the objective is
met jointly: P90 of TTFT and P90 of TPOT, each by itself as in figure 1, give the same rates to 0.5 %.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from paceline_engine.policies.step import Limits
from paceline_engine.sim.setup import ReplicaSpec
from paceline_engine.step_time import HostTerm, StepTable
from paceline_engine.tables import load_table
from paceline_router.facts import Role

from paceline_planner.papers import distserve_2p1d as example
from paceline_planner.papers.experiment import Curve, Experiment, Finding, Grid, Lab, Panel, Result, within
from paceline_planner.papers.measured_machines import VLLM_2023, faster_prefill, machine
from paceline_planner.search.instances import Demand, decode_alone, prefill_alone
from paceline_planner.search.splits import Split, best_split
from paceline_planner.sim.rides import EngineSpec, FleetSpec
from paceline_planner.sim.steady import SteadyRule

Part = Literal["prefill-first", "prefill alone", "decode alone", "2P1D"]
PARTS: tuple[Part, ...] = ("prefill-first", "prefill alone", "decode alone", "2P1D")
GUESS_RPS: dict[Part, float] = {"prefill-first": 1.6, "prefill alone": 6.0, "decode alone": 9.5, "2P1D": 9.9}
PUBLISHED: dict[Part, float] = {"prefill-first": 1.6, "prefill alone": 5.6, "decode alone": 10.0, "2P1D": 3.3}
RULE, SEEDS = SteadyRule(most_arrivals=6000), (1, 2, 3)
FIRST_SEEDS = (1, 2, 3, 4, 5, 6)  # of the figure that is nearest to its bound
QUICK_RULE = SteadyRule(drop_s=5, arrivals=100, p99_residences=1, halves_points=100, most_arrivals=200)
MOST_GPUS = 6
FIRST_STEP = 1.1  # from guesses that are near
BOUND_MARGIN = 1.02  # by which a phase alone may be found too low
LEAST_BEST_RPS = 4.2  # per GPU, of the best split
CURVE_RATES = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.4, 2.8, 3.2, 3.4, 3.6, 4.0, 4.4, 4.8)


@dataclass(frozen=True, slots=True)
class Variant:
    """One machine, and the prompt tokens that it may put in a step."""

    name: str
    table: StepTable
    step_tokens: int = example.LENGTHS.prompt_tokens


def _variants() -> tuple[Variant, ...]:
    """The judged one first."""
    given = load_table(example.TABLE, example.MODEL)
    slower = replace(given, linear=tuple((n, s + 0.001) for n, s in given.linear))
    host = replace(given, host=replace(given.host, constant_s=0.003))
    measured = replace(faster_prefill(replace(given, host=HostTerm()), VLLM_2023.prefill_ratio), host=VLLM_2023.host)
    return (
        Variant("the example's machine, one prompt a step", slower),
        Variant("… without simdistserve's 1 ms a prefill", given),
        Variant("… nor one prompt a step: up to 2,048 tokens (vLLM 0.2–0.3's default)", given, step_tokens=2048),
        Variant("… that, and host 3 ms in place of 2 (least of 2024's engines)", host, step_tokens=2048),
        Variant("vLLM as measured on real runs, prompts batched", measured, step_tokens=VLLM_2023.max_batched_tokens),
    )


VARIANTS = _variants()


def replica(variant: Variant, role: Role) -> EngineSpec:
    """One GPU: prefill-first, or an instance of DistServe's."""
    spec = machine(variant.table, kv_constant_s=example.HANDOVER_S, kv_bytes_per_s=example.NVLINK_BYTES_PER_S)
    policy = "vllm-v0" if role is Role.MIXED else f"{role}-only"
    limits = Limits(max_batched_tokens=variant.step_tokens)
    setup = ReplicaSpec(spec, policy, None, limits, variant.step_tokens)
    return EngineSpec(str(role), role, setup)


def pool(variant: Variant, role: Role, count: int) -> tuple[EngineSpec, ...]:
    return tuple(replace(replica(variant, role), name=f"{role}-{i}") for i in range(count))


def demand(quick: bool, seeds: tuple[int, ...] = (1,)) -> Demand:
    return Demand(example.LENGTHS, example.SLO, QUICK_RULE if quick else RULE, seeds[:1] if quick else seeds)


def setting(variant: Variant, part: Part, asked: Demand) -> tuple[Demand, FleetSpec]:
    match part:
        case "prefill-first":
            return asked, asked.fleet(pool(variant, Role.MIXED, 1))
        case "prefill alone":
            return prefill_alone(asked, *pool(variant, Role.PREFILL, 1))
        case "decode alone":
            return decode_alone(asked, *pool(variant, Role.DECODE, 1))
        case "2P1D":
            return asked, asked.fleet(pool(variant, Role.PREFILL, 2) + pool(variant, Role.DECODE, 1))


def sustained_rps(quick: bool, item: tuple[Variant, Part]) -> float:
    """Of the whole fleet."""
    variant, part = item
    judged = FIRST_SEEDS if part == "prefill-first" else SEEDS
    asked, spec = setting(variant, part, demand(quick, judged if variant.name == VARIANTS[0].name else SEEDS[:1]))
    return asked.goodput_rps(spec, GUESS_RPS[part], 0.1 if quick else 0.01, first_step=FIRST_STEP)


def phase_rps(quick: bool, item: tuple[Role, int]) -> float:
    """What `count` pooled instances of a phase sustain alone, on the judged machine; one seed."""
    role, count = item
    asked = demand(quick)
    alone = prefill_alone if role is Role.PREFILL else decode_alone
    asked, spec = alone(asked, *pool(VARIANTS[0], role, count))
    return asked.goodput_rps(spec, 7.0 * count if role is Role.PREFILL else 10.0 * count, 0.02, first_step=1.2)


def split_rps(asked: Demand, prefills: int, decodes: int, bound_rps: float) -> float:
    engines = pool(VARIANTS[0], Role.PREFILL, prefills) + pool(VARIANTS[0], Role.DECODE, decodes)
    return asked.goodput_rps(asked.fleet(engines), 0.97 * bound_rps, 0.02, first_step=FIRST_STEP)


def search(lab: Lab) -> tuple[Split, ...]:
    """Every split that may be the best, simulated."""
    counts = range(1, 4 if lab.quick else MOST_GPUS)
    wanted = [(role, n) for role in (Role.PREFILL, Role.DECODE) for n in counts]
    alone = dict(zip(wanted, lab.each(partial(phase_rps, lab.quick), wanted), strict=True))
    return best_split(
        max(counts) + 1,
        lambda n: BOUND_MARGIN * alone[Role.PREFILL, n],
        lambda n: BOUND_MARGIN * alone[Role.DECODE, n],
        partial(split_rps, demand(lab.quick)),
    )


def attainment(quick: bool, item: tuple[str, tuple[EngineSpec, ...], float]) -> float:
    """Percent at a rate per GPU, one seed."""
    _, engines, per_gpu = item
    asked = demand(quick)
    return asked.attained_percent(asked.fleet(engines), per_gpu * len(engines))


def curves(lab: Lab, best: Split) -> Panel:
    """Attainment over rate of one GPU, 2P1D and the best split."""
    fleets = {
        "prefill-first": pool(VARIANTS[0], Role.MIXED, 1),
        "2P1D": pool(VARIANTS[0], Role.PREFILL, 2) + pool(VARIANTS[0], Role.DECODE, 1),
        str(best): pool(VARIANTS[0], Role.PREFILL, best.prefills) + pool(VARIANTS[0], Role.DECODE, best.decodes),
    }
    rates = CURVE_RATES[::4] if lab.quick else CURVE_RATES
    wanted = [
        (name, engines, rate)
        for name, engines in fleets.items()
        for rate in rates
        if name != "prefill-first" or rate <= 2.8
    ]
    percents = lab.each(partial(attainment, lab.quick), wanted)
    points: dict[str, list[tuple[float, float]]] = {}
    for (name, _, rate), percent in zip(wanted, percents, strict=True):
        points.setdefault(name, []).append((rate, percent))
    shown = tuple(Curve(name, tuple(of)) for name, of in points.items())
    return Panel("OPT-13B, 512 in, 64 out, 0.4 s / 40 ms", "requests/s per GPU", "attainment, %", shown)


def run(lab: Lab) -> Result:
    variants = VARIANTS[:1] if lab.quick else VARIANTS
    wanted = [(variant, part) for variant in variants for part in PARTS]
    rates = dict(
        zip(((v.name, p) for v, p in wanted), lab.each(partial(sustained_rps, lab.quick), wanted), strict=True)
    )
    splits = search(lab)
    rows = tuple(_row(variant.name, {part: rates[variant.name, part] for part in PARTS}) for variant in variants)
    judged = {part: rates[variants[0].name, part] for part in PARTS}
    columns = ("variant", *PARTS, "min(2P, D) / 3", "2P1D / prefill-first")
    grids = (
        Grid("requests/s per GPU, each row one machine", columns, rows),
        Grid(
            f"splits of up to {MOST_GPUS} GPUs that may be the best, simulated",
            ("split", "rps/GPU"),
            tuple((str(s), f"{s.per_gpu_rps:.2f}") for s in splits),
        ),
    )
    return Result(_findings(judged, splits[0]), grids, (curves(lab, splits[0]),))


def _row(name: str, of: dict[Part, float]) -> tuple[str, ...]:
    both = of["2P1D"] / 3
    bound = min(2 * of["prefill alone"], of["decode alone"]) / 3
    cells = (of["prefill-first"], of["prefill alone"], of["decode alone"], both, bound, both / of["prefill-first"])
    return (name, *(f"{cell:.2f}" for cell in cells))


def _findings(of: dict[Part, float], best: Split) -> tuple[Finding, ...]:
    bound = min(2 * of["prefill alone"], of["decode alone"]) / 3
    ratio = of["2P1D"] / 3 / of["prefill-first"]
    note = "faster than the paper's: nothing but the fit and its host term is in it"
    return (
        within("prefill-first, one GPU", PUBLISHED["prefill-first"], of["prefill-first"], 0.1, "rps"),
        within("prefill alone", PUBLISHED["prefill alone"], of["prefill alone"], 0.25, "rps", note),
        within("decode alone", PUBLISHED["decode alone"], of["decode alone"], 0.1, "rps"),
        within("2P1D, simulated", PUBLISHED["2P1D"], of["2P1D"] / 3, 0.1, "rps/GPU"),
        within("min(2P, D) / 3", PUBLISHED["2P1D"], bound, 0.1, "rps/GPU", "ignores queueing between the phases"),
        Finding("2P1D / prefill-first", 3.3 / 1.6, ratio, example.RATIO_LOW, example.RATIO_HIGH),
        Finding(
            f"best split found: {best}", 3.36, best.per_gpu_rps, LEAST_BEST_RPS, unit="rps/GPU", note="3P2D by min"
        ),
    )


EXPERIMENT = Experiment("distserve-2p1d", "DistServe's example: 2P1D", "OSDI'24 §1, figure 1; blog", run)
