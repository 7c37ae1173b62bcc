"""Pipeline stages: what a micro-batch costs, what overlaps, who runs with whom, and that nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from engines import make_replica, make_request, make_table
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.outcomes import Outcome
from paceline_api.slo import SLOClass
from paceline_engine.policies import POLICIES
from paceline_engine.request import Leg
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.pipeline import TURN_S, PipelinedReplica
from paceline_engine.sim.setup import ReplicaSpec
from paceline_engine.step_time import HostTerm
from paceline_planner.sim.fleet import EngineSpec, Fleet, FleetSpec, Job
from paceline_router.facts import Role

HOST = HostTerm(constant_s=0.003)


def make_machine(stages: int = 2, **over: object) -> MachineSpec:
    table = replace(make_table(), host=HOST)
    fields = {"tile_tokens": 1, "noise_ratio": 0.0, "stall_probability": 0.0, "stages": stages} | over
    return MachineSpec(table, **fields)  # type: ignore[arg-type]  # a factory's overrides


def make_pipeline(policy: str = "vllm-v1", **over: object) -> PipelinedReplica:
    replica = make_replica(policy, machine=make_machine(**over))  # type: ignore[arg-type]  # a factory's overrides
    assert isinstance(replica, PipelinedReplica)
    return replica


class Drive:
    """Runs a pipelined replica; `now` is when the last micro-batch ended."""

    def __init__(self, replica: PipelinedReplica, requests: int = 0) -> None:
        self.replica, self.now = replica, 0.0
        self._ends: list[float] = []
        for i in range(requests):
            replica.submit(make_request(str(i), prompt_tokens=16, max_tokens=60))
        if requests:
            self.run(1)

    def run(self, ends: int) -> list[tuple[float, list[str]]]:
        """Until `ends` micro-batches have ended: when each did, and whose tokens it brought."""
        out: list[tuple[float, list[str]]] = []
        while len(out) < ends:
            self.start()
            soonest = min(self._ends)
            if len(self._ends) < self.replica.machine.spec.stages and self.now < self.replica.next_start_s < soonest:
                self.now = self.replica.next_start_s
                continue
            self.now = self._ends.pop(0)
            assert self.now == soonest, "in the order in which they began"
            out.append((self.now, [r.id for r in self.replica.finish(self.now).tokens]))
        return out

    def ends_s(self) -> float:
        """When the oldest micro-batch in flight will have ended."""
        return self._ends[0]

    def start(self) -> None:
        while self.replica.can_begin(self.now) and (seconds := self.replica.begin(self.now)) is not None:
            self._ends.append(self.now + seconds)


def test_a_lone_token_takes_every_stage_and_the_way_between_them() -> None:
    alone, piped = make_replica("vllm-v1", machine=make_machine(1)), make_pipeline(send_s=0.001)
    for replica in (alone, piped):
        replica.submit(make_request(prompt_tokens=100, max_tokens=3))
    seconds = alone.begin(0.0)
    assert seconds is not None
    assert piped.begin(0.0) == pytest.approx(seconds + 0.001)


def test_two_micro_batches_overlap_and_the_cycle_is_that_of_half_the_requests() -> None:
    drive = Drive(make_pipeline(), 8)
    ends = drive.run(12)
    assert all(len(tokens) == 4 for _, tokens in ends)
    cycle_s = ends[-1][0] - ends[-3][0]
    assert cycle_s == pytest.approx(drive.replica.machine.step_s(0, 0.0, 4, 4 * 30), rel=0.02)
    assert 0.3 * cycle_s < ends[-1][0] - ends[-2][0] < 0.7 * cycle_s, "one half's token between two of the other's"
    assert {*ends[-1][1]} | {*ends[-2][1]} == {str(i) for i in range(8)}


def test_a_prefill_between_decodes_leaves_a_bubble_behind_it() -> None:
    def bubble_s(prompt_tokens: int) -> float:
        drive = Drive(make_pipeline("vllm-v0"), 4)
        drive.run(4)
        before_s = drive.replica.bubble_s
        drive.replica.submit(make_request("long", prompt_tokens=prompt_tokens, max_tokens=2, arrival_s=drive.now))
        drive.run(6)
        return drive.replica.bubble_s - before_s

    assert bubble_s(1500) > bubble_s(16) + 0.05


def test_in_a_loop_newcomers_join_the_crew_that_came_back_unless_they_miss_it() -> None:
    drive = Drive(make_pipeline("decode-only", one_loop=True))
    piped = drive.replica
    piped.submit(make_request("a", prompt_tokens=16, max_tokens=50))
    drive.run(1)
    drive.start()
    assert piped.begin(drive.now) is None, "one crew, one micro-batch"
    for id_, before_its_tokens_are_out_s in (("early", 0.01), ("late", TURN_S / 2)):
        at = drive.ends_s() - before_its_tokens_are_out_s
        piped.submit(make_request(id_, prompt_tokens=16, max_tokens=50, arrival_s=at, leg=Leg.DECODE))
    drive.run(1)
    while (fetched := piped.next_transfer()) is not None:
        piped.kv_arrived(fetched.id)
    crews = {frozenset(tokens) for _, tokens in drive.run(12)[-4:]}
    assert crews == {frozenset({"a", "early"}), frozenset({"late"})}


def test_an_abort_in_flight_takes_effect_when_its_micro_batch_is_through() -> None:
    drive = Drive(make_pipeline(), 4)
    piped = drive.replica
    drive.start()
    assert piped.batch is not None
    victim = piped.batch.decodes[0]
    assert piped.abort(victim.id)
    assert victim.blocks
    drive.run(2)
    assert not victim.blocks
    assert piped.requests == 3
    piped.view.kv.check(list(piped.holders()))


@given(
    policy=st.sampled_from(sorted(POLICIES)),
    stages=st.integers(2, 4),
    one_loop=st.booleans(),
    rate=st.floats(1, 40),
    seed=st.integers(0, 1000),
)
def test_every_job_ends_whatever_the_policy_and_the_number_of_stages(
    policy: str, stages: int, one_loop: bool, rate: float, seed: int
) -> None:
    rng, at, jobs = Random(seed), 0.0, []
    for _ in range(30):
        at += rng.expovariate(rate)
        jobs.append(Job(at, rng.randint(1, 900), rng.randint(1, 60), "c"))
    spec = ReplicaSpec(make_machine(stages, one_loop=one_loop), policy, kv_blocks=120)
    engine = EngineSpec("m", Role.MIXED, spec, gpus=stages)
    fleet = Fleet(FleetSpec((engine,), {"c": SLOClass("c", 1.0, 0.1)}), seed, lambda ride: False)
    fleet.run(iter(jobs))
    fleet.check()
    assert fleet.outcomes[Outcome.COMPLETED] == 30
    replica = fleet.engines["m"]
    assert replica.view.running == 0


def test_tokens_come_out_in_the_order_in_which_micro_batches_began() -> None:
    drive = Drive(make_pipeline("vllm-v0"))
    for i, prompt in enumerate((900, 16, 400, 16)):
        drive.replica.submit(make_request(str(i), prompt_tokens=prompt, max_tokens=20))
    assert all(a < b for (a, _), (b, _) in pairwise(drive.run(30)))
