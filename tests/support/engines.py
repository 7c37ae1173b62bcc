"""Factories for engine tests: small tables, requests and replicas with defaults."""

from __future__ import annotations

from random import Random

from paceline_engine.policies.step import Limits
from paceline_engine.request import Leg, Objective, Request
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.replica import Emitted, Replica
from paceline_engine.sim.setup import ReplicaSpec, build
from paceline_engine.step_time import StepTable

INTERACTIVE = Objective("interactive", 0.4, 0.04, 0.12)
BATCH = Objective("batch", 30.0, 0.25, 0.75)


def make_table(kv_tokens: int = 16_384) -> StepTable:
    """Round figures near Llama-13B on an A100: 20 ms + 0.15 ms a prefill token, 20 ms + 0.1 ms a decode."""
    return StepTable(
        name="test",
        source="round figures",
        gpu="test",
        model="test",
        tensor=1,
        linear=((1, 0.020), (4096, 0.634)),
        pair_s=2e-8,
        mixed_s=0.0,
        decode=((1, 0.020, 5e-7), (1024, 0.122, 5e-7)),
        kv_tokens=kv_tokens,
        kv_bytes_per_token=819_200,
    )


def make_request(id_: str = "r", **over: object) -> Request:
    fields: dict[str, object] = {
        "prompt_tokens": 100,
        "max_tokens": 10,
        "arrival_s": 0.0,
        "objective": INTERACTIVE,
        "leg": Leg.WHOLE,
    }
    return Request(id_, **(fields | over))  # type: ignore[arg-type]  # a factory's overrides are checked by the test


def make_replica(policy: str = "stall-free", *, kv_blocks: int = 1024, seed: int = 0, **over: object) -> Replica:
    """A replica on a deterministic machine unless `machine` says otherwise."""
    fields: dict[str, object] = {
        "machine": MachineSpec(make_table(), tile_tokens=1, noise_ratio=0.0, stall_probability=0.0),
        "limits": Limits(max_requests=64, max_batched_tokens=2048),
        "kv_blocks": kv_blocks,
    }
    return build(ReplicaSpec(policy=policy, **(fields | over)), Random(seed))  # type: ignore[arg-type]  # as above


def run_steps(replica: Replica, now: float, steps: int = 1 << 30) -> tuple[float, list[Emitted]]:
    """Run until idle, or `steps` steps; the time then, and what each step brought."""
    out: list[Emitted] = []
    while len(out) < steps and (seconds := replica.begin(now)) is not None:
        now += seconds
        out.append(replica.finish(now))
    return now, out
