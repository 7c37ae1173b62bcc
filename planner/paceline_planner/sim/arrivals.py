"""What a simulated fleet is sent: drawn requests as a Poisson process without end, and a trace's requests as jobs.

Lengths and arrivals have generators of their own, so that a seed brings the same requests, at the same moments up to a
factor, whatever the rate. Deterministic; times are seconds, rates requests per second.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from paceline_planner.prompts import BLOCK_TOKENS
from paceline_planner.sim.rides import Job
from paceline_planner.traces import TraceRequest
from paceline_planner.workloads import LengthSource, poisson_arrivals


def poisson_jobs(lengths: LengthSource, rate_rps: float, seed: int, class_name: str) -> Iterator[Job]:
    """The requests that `paceline replay --seed` sends of these lengths, without end."""
    rng = Random(f"{seed}/lengths")
    arrivals = poisson_arrivals(rate_rps, Random(f"{seed}/arrivals"))
    return (Job(at, *lengths.draw(rng), class_name) for at in arrivals)


def job_of(request: TraceRequest, class_name: str, block_size: int) -> Job:
    """Its prefix blocks, BLOCK_TOKENS each, named by the engine's own smaller blocks of `block_size` tokens."""
    per_block = BLOCK_TOKENS // block_size
    hashes = tuple(block * per_block + i for block in request.prefix_blocks for i in range(per_block))
    known = hashes[: request.prompt_tokens // block_size]
    return Job(request.arrival_s, request.prompt_tokens, request.output_tokens, class_name, known)
