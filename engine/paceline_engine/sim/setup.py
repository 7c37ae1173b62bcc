"""From settings to a simulated replica: the one place where truth (machine) and belief (prior) are put together.

The server and the fleet simulator both build their replicas here. The prior is the machine's table without its tile
steps, noise and stalls, unless another one is given; a test may scale it wrong on purpose. Pure.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING

from paceline_engine.kv_blocks import KVBlocks
from paceline_engine.lengths import OutputLengths
from paceline_engine.pd import LEASE_S
from paceline_engine.policies import POLICIES, PolicySetting
from paceline_engine.policies.step import Limits
from paceline_engine.sim.machine import Machine, MachineSpec
from paceline_engine.sim.pipeline import PipelinedReplica
from paceline_engine.sim.replica import Replica
from paceline_engine.step_time import HostTerm, StepTable, StepTimeModel

if TYPE_CHECKING:
    from random import Random


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """One simulated replica. `kv_blocks` 0: as many as the table's memory holds. `token_budget` 0: the policy's own."""

    machine: MachineSpec
    policy: str = "stall-free"
    prior: StepTable | None = None
    limits: Limits = field(default_factory=Limits)
    token_budget: int = 0
    block_size: int = 16
    kv_blocks: int = 0
    lease_s: float = LEASE_S


def build(spec: ReplicaSpec, rng: Random) -> Replica:
    """A replica that is idle and has learnt nothing yet; KeyError names an unknown policy."""
    table = spec.machine.table
    model = StepTimeModel(spec.prior or table)
    lengths = OutputLengths()
    machine = Machine(spec.machine, rng)
    policy = POLICIES[spec.policy](PolicySetting(model, lengths, spec.token_budget))
    kv = KVBlocks(spec.kv_blocks or max(1, table.kv_tokens // spec.block_size), spec.block_size)
    kind = Replica if spec.machine.stages == 1 else PipelinedReplica
    return kind(policy, kv, spec.limits, machine, model, lengths, spec.lease_s)


def scaled(table: StepTable, factor: float) -> StepTable:
    """`table` with every time multiplied: a prior that is wrong by a known amount."""
    host = HostTerm(*(factor * x for x in astuple(table.host)))
    return replace(
        table,
        name=f"{table.name} × {factor:g}",
        linear=tuple((n, factor * s) for n, s in table.linear),
        pair_s=factor * table.pair_s,
        mixed_s=factor * table.mixed_s,
        decode=tuple((b, factor * s, factor * kv) for b, s, kv in table.decode),
        host=host,
    )
