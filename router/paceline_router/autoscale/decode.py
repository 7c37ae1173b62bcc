"""The decodes of like replicas: TPOT attainment, room for newcomers, and what mixed replicas leave for prompts.

A request's TPOT is the mean of the steps that it lived through. A short one sees the batch that it finds, a long one
the average batch: the fluctuation that counts shrinks with its tokens. Invariant: attainment and room never fall with a
replica, nor rise with the rates. Times are seconds. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, sqrt

from paceline_router.autoscale.machine import Machine
from paceline_router.autoscale.prefill import Room
from paceline_router.autoscale.queueing import MOST_POOLED, Population
from paceline_router.autoscale.workload import Load

SATURATED = 0.01  # what a saturated pool attains, divided by its load: nothing to rely on, and still a slope to climb
SURE = 0.99999  # more replicas balanced with each other need not be looked at
PATIENCE_SHARE = 0.5  # of the TTFT limit may be spent on a wait for a slot
ROUNDS = 24  # towards the fixed point of gap and batch; always as many, so that the result is monotone in the load
LEAST_LEFT = 0.02  # of a mixed replica's time for prompts, where decodes need all of it


@dataclass(frozen=True, slots=True)
class Decoded:
    """Shares by class, the gap that a newcomer finds, and what is asked of the slots per what they have."""

    tpot: tuple[float, ...]
    room: tuple[float, ...]
    gap_s: float
    utilisation: float


def decodes(machine: Machine, replicas: int, of: Sequence[Load], factor: float, slowdown: float) -> Decoded:
    """Of a group that gets `factor` times the loads, and whose requests stay `slowdown` times as long for prompts.

    Every power of two up to the replicas is tried for how many are balanced with each other, and the best taken: a
    calmer batch is better below the limit and worse above it, and so a replica more never makes it worse.
    """
    offered = sum(load.tokens_per_s for load in of)
    lasting_tokens = sum(load.tokens_per_s * load.emitted_mean for load in of) / offered  # a batch is another one then
    tokens_per_s = factor * offered / replicas
    sharing = machine.sharing
    alone = sharing.population(tokens_per_s, 1)
    utilisation = slowdown * tokens_per_s * sharing.gaps_s[-1] / sharing.slots
    floor = SATURATED / (1.0 + utilisation)
    tpot = [floor if sharing.gaps_s[0] <= load.slo.tpot_s else 0.0 for load in of]
    room = [floor] * len(of)
    pooled = 1 << (min(replicas, MOST_POOLED).bit_length() - 1)
    while pooled:
        population = sharing.population(tokens_per_s, pooled) if pooled > 1 else alone
        holding = sharing.population(slowdown * tokens_per_s, pooled) if slowdown > 1.0 else population
        for i, load in enumerate(of):
            tpot[i] = max(tpot[i], _tpot(machine, population, load, lasting_tokens))
            room[i] = max(room[i], _room(machine, holding, load, pooled))
        pooled = pooled // 2 if min(*tpot, *room) < SURE else 0
    return Decoded(tuple(tpot), tuple(room), alone.mean_gap_s, utilisation)


def _tpot(machine: Machine, population: Population, load: Load, lasting_tokens: float) -> float:
    mean_s, limit_s = population.mean_gap_s, load.slo.tpot_s
    share = 0.0
    for tokens, its_share in load.outputs:
        if tokens < 2:
            share += its_share
            continue
        bound_s = mean_s + (limit_s - mean_s) / sqrt(_unaveraged((tokens - 1) / lasting_tokens))
        share += its_share * population.at_most(machine.sharing.within(bound_s) - 1)
    return share


def _unaveraged(lives: float) -> float:
    """The variance of a mean over a time, where correlation decays as e^−t and the time is in units of that decay."""
    if lives < 1e-3:
        return 1.0
    return 2 * (lives - 1 + exp(-lives)) / lives**2


def _room(machine: Machine, population: Population, load: Load, pooled: int) -> float:
    patience_s = PATIENCE_SHARE * load.slo.ttft_s
    sharing = machine.sharing
    leave_rps = pooled * sharing.slots / (sharing.gaps_s[-1] * load.output_mean)
    return population.in_time(patience_s * leave_rps)


def room_for_prompts(machine: Machine, replicas: int, of: Sequence[Load], factor: float) -> Room:
    """What mixed replicas leave: decodes come first, and need a share of the time that grows with their number.

    That number follows from the gap between tokens, which prompts lengthen up to the TPOT limit and no further.
    """
    limit_s, sharing = machine.tpot_s, machine.sharing
    tokens_per_s = factor * sum(load.tokens_per_s for load in of) / replicas
    prompts = factor / replicas * sum(load.rate_rps * p.alone_s for load, p in zip(of, machine.prompts, strict=True))
    step_s = gap_s = sharing.gaps_s[0]
    for _ in range(ROUNDS):
        step_s = sharing.gap_s(min(tokens_per_s * gap_s, sharing.slots))
        gap_s = min(step_s / (1.0 - prompts), limit_s) if prompts < 1.0 else limit_s
    left = max(1.0 - machine.crowded_s(min(tokens_per_s * gap_s, sharing.slots)) / limit_s, LEAST_LEFT)
    busy = min(prompts / left, 1.0)
    paced = max(1.0 - step_s / (busy * limit_s + (1.0 - busy) * machine.stall_s), LEAST_LEFT)
    return Room(left, step_s, 1.0 / paced, max(gap_s / step_s, 1.0), transfers=False)
