"""The five set-ups of DistServe's evaluation (OSDI'24, Table 1, §6, figures 8 and 9), and the systems that serve them.

Objectives are kept apart by edition: the published curves, and the ratios read off them, are those of the OSDI paper;
arXiv v1 judged chat by tighter ones. Machines are measured_machines.py's; OPT-175B, of which no fit is published, has
the roofline, as much slower as the same engine's fit of OPT-66B is than its roofline at that tensor parallelism. Of the
two states that real runs with two decode stages were seen in (sim/pipeline.py), decode engines with stages are in the
better one, all evenly filled: the other cannot give the published curves of OPT-66B and OPT-175B. The project's own
policies run on the same machines: aggregated on vLLM's, disaggregated on DistServe's at the published placement. Times
are seconds, rates requests per second and GPU.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from paceline_api.catalog import find_model
from paceline_api.slo import SLOClass
from paceline_engine.step_time import StepTable
from paceline_engine.tables import TableMissing

from paceline_planner.papers import measured_machines as machines
from paceline_planner.papers.measured_machines import DISTSERVE_ENGINE, GPU_BYTES, VLLM_2023
from paceline_planner.roofline.gpu import GPUS
from paceline_planner.roofline.shape import Shape, of_catalogue
from paceline_planner.roofline.table import roofline_table
from paceline_planner.search.instances import Parallel
from paceline_planner.sim.rides import EngineSpec, FleetSpec

GPU = GPUS["a100-sxm-80gb"]
ANCHOR = "opt-66b"  # the largest model of the published fits
ANCHOR_PREFILL, ANCHOR_DECODE = (1024, 1024**2 / 2, 0, 0), (0, 0.0, 32, 32 * 1024)
DIGITISED = "distserve/fig8_fig9_digitised.csv"
System = Literal["vLLM", "DistServe", "ours aggregated", "ours disaggregated"]
SYSTEMS: tuple[System, ...] = ("vLLM", "DistServe", "ours aggregated", "ours disaggregated")


@dataclass(frozen=True, slots=True)
class Case:
    """One model and workload. Rates and ratios are read off the OSDI paper's figures 8 and 9 (±1 point)."""

    name: str
    figure: str  # of DIGITISED
    model: str
    workload: str
    vllm_tensor: int
    prefill: Parallel  # Table 3
    decode: Parallel
    prompts_per_gpu: int
    osdi: SLOClass
    arxiv: SLOClass
    rates: tuple[float, ...]
    scale_rate: float
    scale_figure: str
    ratio: float  # DistServe's rate at 90 % over vLLM's
    claimed: tuple[float, float]  # what the two editions say of such ratios for this workload
    by_roofline: bool = False


def _slo(ttft_s: float, tpot_s: float) -> SLOClass:
    return SLOClass("paper", ttft_s, tpot_s, target_ratio=0.9)


TP1, TP2, TP4 = Parallel(1), Parallel(2), Parallel(4)
CHAT = (2.0, 4.6)
CASES = (
    Case(
        "chat, OPT-13B",
        "13B rate",
        "opt-13b",
        "chat",
        1,
        TP2,
        TP1,
        100,
        _slo(0.25, 0.1),
        _slo(0.2, 0.1),
        (0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 2.25, 2.5, 3.0),
        1.5,
        "13B slo@1.5",
        4.6,
        CHAT,
    ),
    Case(
        "chat, OPT-66B",
        "66B rate",
        "opt-66b",
        "chat",
        4,
        TP4,
        Parallel(2, 2),
        25,
        _slo(2.5, 0.15),
        _slo(0.4, 0.1),
        (0.0625, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
        0.75,
        "66B slo@.75",
        2.75,
        CHAT,
    ),
    Case(
        "chat, OPT-175B",
        "175B rate",
        "opt-175b",
        "chat",
        8,
        Parallel(3, 3),
        Parallel(4, 3),
        25,
        _slo(4.0, 0.2),
        _slo(4.0, 0.2),
        (0.03125, 0.0625, 0.09375, 0.125, 0.15625, 0.1875, 0.21875, 0.25),
        0.125,
        "175B slo@.125",
        2.0,
        CHAT,
        by_roofline=True,
    ),
    Case(
        "code, OPT-66B",
        "HumanEval rate",
        "opt-66b",
        "code",
        4,
        TP4,
        Parallel(2, 2),
        50,
        _slo(0.125, 0.2),
        _slo(0.125, 0.2),
        (0.125, 0.25, 0.375, 0.625, 0.875, 1.125, 1.375, 1.625, 1.875),
        0.875,
        "HumanEval slo@.875",
        5.7,
        (3.2, 5.7),
    ),
    Case(
        "summarisation, OPT-66B",
        "LongBench rate",
        "opt-66b",
        "summarisation",
        4,
        TP4,
        Parallel(2, 2),
        25,
        _slo(15.0, 0.15),
        _slo(15.0, 0.15),
        (0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.5625, 0.625),
        0.375,
        "LongBench slo@.375",
        4.3,
        (4.3, 4.48),
    ),
)


def digitised(folder: Path) -> Mapping[tuple[str, str], tuple[tuple[float, float], ...]]:
    """(x, attainment in percent) by figure and system, ascending; points that the plots do not show are left out."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with (folder / DIGITISED).open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row["attainment_pct"]:
                point = (float(row["x"]), float(row["attainment_pct"]))
                points.setdefault((row["figure"], row["system"]), []).append(point)
    return {key: tuple(sorted(found)) for key, found in points.items()}


def anchored_table(name: str, model: str, tensor: int, stages: int) -> StepTable:
    """The published fit; where there is none, the roofline as much slower as the engine's fit of ANCHOR is than its."""
    try:
        return machines.published_table(name, model, tensor, stages)
    except TableMissing:
        of = shape(model)
        fit, roof = machines.published_table(name, ANCHOR, tensor, 1), roofline_table(shape(ANCHOR), GPU, tensor)
        bare = replace(fit, host=roof.host)
        prefill = bare.seconds4(*ANCHOR_PREFILL) / roof.seconds4(*ANCHOR_PREFILL)
        decode = bare.seconds4(*ANCHOR_DECODE) / roof.seconds4(*ANCHOR_DECODE)
        table = roofline_table(of, GPU, tensor, stages)
        slower = machines.faster_prefill(table, prefill)
        knots = tuple((n, decode * s, decode * kv) for n, s, kv in table.decode)
        room = tensor * stages * GPU_BYTES - of.weight_bytes
        return replace(slower, decode=knots, kv_tokens=int(room // of.kv_bytes_per_token))


def shape(model: str) -> Shape:
    found = find_model(model)
    assert found is not None
    return of_catalogue(found)


def fleet(case: Case, system: System, slo: SLOClass) -> FleetSpec:
    """One instance or pair of a system; TPOT holds the KV transfer, as DistServe counts it."""
    classes = {slo.name: slo}
    if system in ("vLLM", "ours aggregated"):
        engines = machines.vllm_engines(case.model, case.vllm_tensor, tables=anchored_table)
        if system == "ours aggregated":
            engines = tuple(_deadline_driven(e) for e in engines)
        return FleetSpec(engines, classes, "round-robin", front_s=VLLM_2023.front_s)
    prefill, decode = ((p.tensor, p.pipeline) for p in (case.prefill, case.decode))
    engines = machines.distserve_engines(case.model, prefill, decode, tables=anchored_table)
    if system == "ours disaggregated":
        engines = tuple(_deadline_driven(e) for e in engines)
    elif decode[1] > 1:
        engines = tuple(even(e) for e in engines)
    return FleetSpec(engines, classes, "round-robin", transfer_in_tpot=True, front_s=DISTSERVE_ENGINE.front_s)


def even(engine: EngineSpec) -> EngineSpec:
    """The same engine with its stages evenly filled, and KV fetched while they run."""
    spec = engine.spec
    return replace(engine, spec=replace(spec, machine=replace(spec.machine, one_loop=False)))


def _deadline_driven(engine: EngineSpec) -> EngineSpec:
    """The same machine under the project's own policy."""
    spec = even(engine).spec
    limits = replace(spec.limits, max_batched_tokens=8192)
    return replace(engine, spec=replace(spec, policy="stall-free", token_budget=0, limits=limits))
