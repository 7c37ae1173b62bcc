"""Generation stalls of Orca and vLLM (Sarathi-Serve, OSDI'24, figure 1), and what an objective costs each (figure 12).

Yi-34B on two A100s. A backlog of summaries shows answers that stop for seconds while prompts run; conversations at
three rates show the tail; capacities over the objective show that vLLM's limit is its stalls, not its batch size.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from paceline_planner.papers.experiment import Curve, Experiment, Finding, Grid, Lab, Panel, Result, ratio
from paceline_planner.papers.sarathi_capacity import SEEDS, Found, load, measure
from paceline_planner.papers.sarathi_machines import ORCA, SARATHI, VLLM, YI, System
from paceline_planner.papers.sarathi_trial import Case, Load, run, serve

FIGURE_1 = (
    replace(ORCA, name="Orca"),
    replace(VLLM, name="vLLM v0", max_requests=256),
    replace(SARATHI, name="Sarathi 1536", max_requests=256, budget=1536),
)
REQUESTS = 128
AT_ONCE_RPS = 1e6
NO_LIMIT_S = 1e6
SEVERAL_S = 2.0  # the least that "several seconds" may mean
FLAT = 1.3  # how much Sarathi's tail may grow where vLLM's grows by half
RATES_RPS = (0.55, 0.7, 1.0)
FIGURE_1_S = {"vLLM v0": ((0.55, 1.39), (1.0, 2.05)), "Sarathi 1536": ((0.55, 0.53), (1.0, 0.53))}
TAIL_SEEDS = tuple(range(1, 9))
FIGURE_12 = (
    replace(VLLM, name="vLLM v0, 32 requests", max_requests=32),
    replace(VLLM, name="vLLM v0, 64 requests", max_requests=64),
    replace(VLLM, name="vLLM v0, 128 requests", max_requests=128),
    replace(SARATHI, name="Sarathi 512", budget=512),
    replace(SARATHI, name="Sarathi 2048", budget=2048),
)
OBJECTIVES_S = (0.1, 0.2, 0.5, 1.0)
STRICT_S, RELAXED_S = 0.2, 1.0
FIGURE_12_GAIN = {STRICT_S: ("Sarathi 512", 3.5), RELAXED_S: ("Sarathi 2048", 1.65)}
GUESS_RPS = {"vllm-v0": 0.35, "sarathi": 1.0}
SAME = 0.1  # how far vLLM's capacities at three batch sizes may be apart


Tails = dict[tuple[str, float], float]  # P99 TBT in seconds by system and rate
Capacities = dict[tuple[str, float], Found]  # by system and objective


def emitted(case_seed: tuple[Case, int]) -> list[float]:
    """When each token of a backlog came out, ascending."""
    watch = serve(case_seed[0], AT_ONCE_RPS, case_seed[1])
    times = [np.cumsum([r.course.first_token_s or 0.0, *r.gaps_s]) for r in watch.rides if r.gaps_s]
    return [float(t) for t in np.sort(np.concatenate(times))]


def tail_s(of: Load, what: tuple[System, float, int]) -> float:
    system, rate, seed = what
    return run(Case(YI, system, True, of, early=False), rate, seed).p99_tbt_s


def run_all(lab: Lab) -> Result:
    backlog = Load("arxiv", lab.traces, REQUESTS // 2 if lab.quick else REQUESTS, NO_LIMIT_S)
    times = lab.each(emitted, [(Case(YI, s, True, backlog, early=False), 1) for s in FIGURE_1])
    by_system = dict(zip((s.name for s in FIGURE_1), times, strict=True))
    pauses = {name: float(np.max(np.diff(at))) for name, at in by_system.items()}
    tails = _tails(lab)
    found = _capacities(lab)
    findings = (*_stalls(pauses), *_flat(tails), *_batch_sizes(found))
    panels = (_emitted_panel(by_system), _tail_panel(tails), _capacity_panel(found))
    return Result(findings, (_capacity_grid(found),), panels, _remarks(tails))


def _tails(lab: Lab) -> Tails:
    """P99 TBT of conversations by system and rate, the median of its seeds."""
    seeds = TAIL_SEEDS[:1] if lab.quick else TAIL_SEEDS
    wanted = [(s, rate, seed) for s in FIGURE_1[1:] for rate in RATES_RPS for seed in seeds]
    got = lab.each(partial(tail_s, Load("chat", lab.traces, REQUESTS, NO_LIMIT_S)), wanted)
    pairs = list(zip(wanted, got, strict=True))
    return {
        (s.name, rate): float(np.median([p99 for (of, at, _), p99 in pairs if (of, at) == (s, rate)]))
        for s in FIGURE_1[1:]
        for rate in RATES_RPS
    }


def _capacities(lab: Lab) -> Capacities:
    systems = FIGURE_12[1:4] if lab.quick else FIGURE_12
    objectives = (STRICT_S,) if lab.quick else OBJECTIVES_S
    guesses = {
        Case(replace(YI, slo_s=(slo_s, slo_s)), system, False, load(lab, "chat")): GUESS_RPS[system.policy]
        for system in systems
        for slo_s in objectives
    }
    return {(case.system.name, case.slo_s): f for case, f in measure(lab, guesses, SEEDS[:1]).items()}


def _stalls(pauses: dict[str, float]) -> list[Finding]:
    """The longest time in which no answer of the backlog gets a token."""
    limits = {"Sarathi 1536": (None, SEVERAL_S / 2)}
    found = []
    for name, pause in pauses.items():
        low, high = limits.get(name, (SEVERAL_S, None))
        found.append(Finding(f"backlog of summaries, {name}: longest pause of all", None, pause, low, high, "s"))
    return found


def _flat(tails: Tails) -> list[Finding]:
    growth = {s.name: tails[s.name, RATES_RPS[-1]] / tails[s.name, RATES_RPS[0]] for s in FIGURE_1[1:]}
    published = {name: points[-1][1] / points[0][1] for name, points in FIGURE_1_S.items()}
    return [
        Finding(
            f"P99 TBT at {RATES_RPS[-1]:g} / {RATES_RPS[0]:g} requests/s, {name}",
            published[name],
            grown,
            high=FLAT if name.startswith("Sarathi") else None,
        )
        for name, grown in growth.items()
    ]


def _batch_sizes(found: Capacities) -> list[Finding]:
    vllm = [f.rate_rps for (name, slo_s), f in found.items() if name.startswith("vLLM") and slo_s == STRICT_S]
    findings = [
        Finding(
            f"vLLM's strict capacity, most / least of {len(vllm)} batch sizes",
            1.0,
            ratio(max(vllm), min(vllm)),
            high=1 + SAME,
        )
    ]
    for slo_s, (name, published) in FIGURE_12_GAIN.items():
        if (name, slo_s) in found:
            gain = ratio(found[name, slo_s].rate_rps, found["vLLM v0, 128 requests", slo_s].rate_rps)
            findings.append(Finding(f"{name} / vLLM at {slo_s:g} s", published, gain, published * 0.8, published * 1.2))
    return findings


def _capacity_grid(found: Capacities) -> Grid:
    objectives = sorted({slo_s for _, slo_s in found})
    names = list(dict.fromkeys(name for name, _ in found))
    rows = tuple((name, *(f"{found[name, slo_s].rate_rps:.2f}" for slo_s in objectives)) for name in names)
    return Grid(
        "Capacity of Yi-34B TP2 by objective, requests/s", ("P99 TBT, s", *(f"{o:g}" for o in objectives)), rows
    )


def _emitted_panel(by_system: dict[str, list[float]]) -> Panel:
    curves = []
    for name, at in by_system.items():
        kept = range(0, len(at), max(1, len(at) // 2000))
        curves.append(Curve(name, tuple((at[i], float(i)) for i in kept)))
    return Panel("A backlog of summaries (figure 1a)", "s", "tokens of all answers", tuple(curves))


def _tail_panel(tails: Tails) -> Panel:
    curves = [Curve(s.name, tuple((rate, tails[s.name, rate]) for rate in RATES_RPS)) for s in FIGURE_1[1:]]
    curves += [Curve(f"{name}, published", points, published=True) for name, points in FIGURE_1_S.items()]
    return Panel("Conversations (figure 1b)", "requests/s", "P99 TBT, s", tuple(curves))


def _capacity_panel(found: Capacities) -> Panel:
    names = dict.fromkeys(name for name, _ in found)
    curves = tuple(
        Curve(name, tuple((slo_s, f.rate_rps) for (of, slo_s), f in found.items() if of == name)) for name in names
    )
    return Panel("Capacity by objective (figure 12)", "P99 TBT, s", "requests/s", curves)


def _remarks(tails: Tails) -> tuple[str, ...]:
    rate = RATES_RPS[0]
    pairs = (f"{s.name} {tails[s.name, rate]:.2f} s ({dict(FIGURE_1_S[s.name])[rate]:g})" for s in FIGURE_1[1:])
    return (f"tails at {rate:g} requests/s, figure 1's in brackets: {', '.join(pairs)}",)


EXPERIMENT = Experiment("sarathi-stalls", "Sarathi-Serve: generation stalls", "figures 1, 12", run_all)
