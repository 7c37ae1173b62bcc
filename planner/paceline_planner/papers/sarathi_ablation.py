"""What each half of Sarathi-Serve brings (OSDI'24, table 4): hybrid batches alone, chunked prefills alone, and both.

Yi-34B on two A100s, 128 requests, conversations at 1 request/s and summaries at 0.5. Hybrid alone is Sarathi with a
budget as large as the model's context; the scripts run the others with 512 tokens a step, though the paper says 1024.
What must hold is the order: both is nearly as fast to the first token as hybrid alone, and smoothest between tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from paceline_planner.papers.experiment import Curve, Experiment, Finding, Grid, Lab, Panel, Result
from paceline_planner.papers.sarathi_machines import YI, System
from paceline_planner.papers.sarathi_trial import CONTEXT_TOKENS, Case, Load, Trial, run

REQUESTS = 128
RATES_RPS = {"chat": 1.0, "arxiv": 0.5}
CALMER_RPS = 0.4  # arxiv once more, where it is not at the edge of saturation
KINDS = ("hybrid only", "chunked only", "both")
PUBLISHED_S = {  # P50 TTFT, P99 TBT
    "chat": {"hybrid only": (0.53, 0.68), "chunked only": (1.04, 0.17), "both": (0.76, 0.14)},
    "arxiv": {"hybrid only": (3.78, 1.38), "chunked only": (5.38, 0.20), "both": (3.90, 0.17)},
}
SEEDS = tuple(range(1, 13))
NO_LIMIT_S = 1e6


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over the seeds, and the trials."""

    ttft_s: float
    tbt_s: float
    trials: tuple[Trial, ...]


def system(kind: str, workload: str) -> System:
    match kind:
        case "hybrid only":
            return System(kind, "sarathi", budget=CONTEXT_TOKENS[workload])
        case "chunked only":
            return System(kind, "chunked-only", budget=512)
        case _:
            return System(kind, "sarathi", budget=512)


def trial(load: Load, rate_rps: float, kind_seed: tuple[str, int]) -> Trial:
    kind, seed = kind_seed
    return run(Case(YI, system(kind, load.workload), True, load, early=False), rate_rps, seed)


def measure(lab: Lab, workload: str, rate_rps: float, seeds: Sequence[int]) -> dict[str, Measured]:
    wanted = [(kind, seed) for kind in KINDS for seed in seeds]
    found = lab.each(partial(trial, Load(workload, lab.traces, REQUESTS, NO_LIMIT_S), rate_rps), wanted)
    by_kind = {}
    for i, kind in enumerate(KINDS):
        trials = tuple(found[i * len(seeds) : (i + 1) * len(seeds)])
        by_kind[kind] = Measured(fmean(t.median_ttft_s for t in trials), fmean(t.p99_tbt_s for t in trials), trials)
    return by_kind


def ablation(lab: Lab) -> Result:
    seeds = SEEDS[:3] if lab.quick else SEEDS
    found = {workload: measure(lab, workload, rate, seeds) for workload, rate in RATES_RPS.items()}
    calmer = measure(lab, "arxiv", CALMER_RPS, seeds)
    findings = [f for workload, of in found.items() for f in _order(workload, of)]
    panels = tuple(
        Panel(f"{workload}, each seed", "median TTFT, s", "P99 TBT, s", _curves(workload, of))
        for workload, of in found.items()
    )
    return Result(tuple(findings), (_grid(found),), panels, _remarks(found, calmer))


def _order(workload: str, found: dict[str, Measured]) -> list[Finding]:
    """The order of table 4, as ratios that must be above 1."""
    published = PUBLISHED_S[workload]
    pairs = (
        ("TTFT", 0, "both", "hybrid only"),
        ("TTFT", 0, "chunked only", "both"),
        ("TBT", 1, "chunked only", "both"),
        ("TBT", 1, "hybrid only", "chunked only"),
    )
    findings = []
    for name, column, more, less in pairs:
        ours = {kind: (m.ttft_s, m.tbt_s)[column] for kind, m in found.items()}
        expected = published[more][column] / published[less][column]
        findings.append(Finding(f"{workload} {name}: {more} / {less}", expected, ours[more] / ours[less], low=1.0))
    return findings


def _grid(found: dict[str, dict[str, Measured]]) -> Grid:
    rows = []
    for workload, of in found.items():
        for kind, m in of.items():
            ttft_s, tbt_s = PUBLISHED_S[workload][kind]
            cells = (ttft_s, m.ttft_s, m.ttft_s / ttft_s - 1), (tbt_s, m.tbt_s, m.tbt_s / tbt_s - 1)
            rows.append(
                (f"{workload}, {kind}", *(text for p, o, e in cells for text in (f"{p:g}", f"{o:.2f}", f"{e:+.0%}")))
            )
    columns = ("s", "TTFT P50 published", "ours", "error", "TBT P99 published", "ours", "error")
    return Grid("Table 4", columns, tuple(rows))


def _curves(workload: str, found: dict[str, Measured]) -> tuple[Curve, ...]:
    ours = [Curve(k, tuple(sorted((t.median_ttft_s, t.p99_tbt_s) for t in m.trials))) for k, m in found.items()]
    published = [Curve(f"{k}, published", (point,), published=True) for k, point in PUBLISHED_S[workload].items()]
    return (*ours, *published)


def _remarks(found: dict[str, dict[str, Measured]], calmer: dict[str, Measured]) -> tuple[str, ...]:
    spread = [t.median_ttft_s for t in found["arxiv"]["both"].trials]
    at_calmer = ", ".join(f"{kind} {m.ttft_s:.1f} / {m.tbt_s:.2f}" for kind, m in calmer.items())
    return (
        (
            "near saturation 128 requests say little: the median TTFT of both on arxiv is "
            f"{min(spread):.1f}-{max(spread):.1f} s over {len(spread)} seeds, of which the paper shows one"
        ),
        f"arxiv at {CALMER_RPS:g} requests/s, TTFT / TBT in s: {at_calmer}",
    )


EXPERIMENT = Experiment("sarathi-ablation", "Sarathi-Serve: its two halves", "table 4", ablation)
