"""What holds for every batching policy on every workload: conservation, the budget, progress, determinism."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from engines import BATCH, INTERACTIVE, make_replica, make_request, make_table
from hypothesis import example, given
from hypothesis import strategies as st
from paceline_engine.policies import POLICIES
from paceline_engine.policies.stall_free import HORIZON_TOKENS, StallFree
from paceline_engine.policies.step import Step, View
from paceline_engine.request import Leg
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.replica import Replica, TooLong
from paceline_engine.step_time import StepTimeModel


@dataclass(frozen=True)
class Arrival:
    gap_s: float
    prompt_tokens: int
    max_tokens: int
    batch: bool
    prefix: int


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        st.floats(0, 0.5),
        st.integers(1, 900),
        st.integers(1, 60),
        st.booleans(),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=25,
)


Ended = tuple[str, int, float, float]  # id, tokens, first and last token


def drive(replica: Replica, arrivals: list[Arrival], aborts: Random | None = None) -> list[Ended]:
    """Serve all arrivals in order and return who finished, the KV checked after every step."""
    pending = []
    at = 0.0
    for i, a in enumerate(arrivals):
        at += a.gap_s
        hashes = tuple(hash((a.prefix, k)) for k in range(a.prompt_tokens // 16)) if a.prefix else ()
        pending.append(
            make_request(
                str(i),
                prompt_tokens=a.prompt_tokens,
                max_tokens=a.max_tokens,
                arrival_s=at,
                objective=BATCH if a.batch else INTERACTIVE,
                block_hashes=hashes,
            )
        )
    now, steps = 0.0, 0
    out: list[Ended] = []
    while True:
        while pending and pending[0].arrival_s <= now:
            request = pending.pop(0)
            try:
                replica.submit(request)
            except TooLong:
                assert request.prompt_tokens + request.max_tokens > replica.capacity_tokens
        seconds = replica.begin(now)
        if seconds is None:
            assert not replica.requests, "an idle replica has nobody waiting"
            if not pending:
                return out
            now = pending[0].arrival_s
            continue
        batch = replica.batch
        assert batch is not None
        assert batch.tokens <= replica.budget_tokens, "the token budget is never exceeded"
        if aborts is not None and aborts.random() < 0.1 and replica.requests:
            replica.abort(aborts.choice(sorted(replica._live)))
        now += seconds
        for r in replica.finish(now).finished:
            assert r.emitted_tokens == r.max_tokens
            out.append((r.id, r.emitted_tokens, r.first_token_s, r.last_token_s))
        replica.view.kv.check(list(replica.holders()))
        steps += 1
        assert steps < 20_000, "every admitted request makes progress"


@pytest.mark.parametrize("policy", sorted(POLICIES))
@given(arrivals=ARRIVALS, kv_blocks=st.integers(30, 400))
def test_every_request_finishes_and_no_block_is_lost(policy: str, arrivals: list[Arrival], kv_blocks: int) -> None:
    replica = make_replica(policy, kv_blocks=kv_blocks)
    fit = [a for a in arrivals if a.prompt_tokens + a.max_tokens <= kv_blocks * 16]
    assert len(drive(replica, arrivals)) == len(fit)
    assert replica.view.kv.available == kv_blocks


@pytest.mark.parametrize("policy", sorted(POLICIES))
@given(arrivals=ARRIVALS, kv_blocks=st.integers(60, 200), seed=st.integers(0, 99))
def test_aborts_at_any_moment_leave_nothing_behind(
    policy: str, arrivals: list[Arrival], kv_blocks: int, seed: int
) -> None:
    replica = make_replica(policy, kv_blocks=kv_blocks)
    drive(replica, arrivals, Random(seed))
    assert replica.view.kv.available == kv_blocks
    taken = sum(a.prompt_tokens + a.max_tokens <= kv_blocks * 16 for a in arrivals)
    assert replica.counters.finished + replica.counters.aborted == taken


@pytest.mark.parametrize("policy", sorted(POLICIES))
@given(arrivals=ARRIVALS)
@example(  # a prompt that finds no room, before three that hold it and could go on
    [
        *(Arrival(0.0, 1, 13, False, 0), Arrival(0.0, 1, 22, False, 0), Arrival(0.25, 597, 1, True, 0)),
        *(Arrival(0.0, 475, 1, True, 0), Arrival(0.0, 475, 1, True, 0), Arrival(0.375, 305, 1, False, 0)),
    ]
)
def test_the_same_seed_gives_the_same_result(policy: str, arrivals: list[Arrival]) -> None:
    machine = MachineSpec(make_table(), noise_ratio=0.05, stall_probability=0.01)
    runs = [drive(make_replica(policy, kv_blocks=100, seed=7, machine=machine), arrivals) for _ in range(2)]
    assert runs[0] == runs[1]


class Watched:
    """The stall-free policy, each step that it plans checked: who is left out must still be able to meet its pace."""

    def __init__(self, inner: StallFree, model: StepTimeModel) -> None:
        self.inner, self.model, self.left_out = inner, model, 0

    def plan(self, view: View, start_s: float) -> Step:
        step = self.inner.plan(view, start_s)
        chunk = step.token_budget - len(step.decodes) if step.prefills else 0
        context = sum(r.total_tokens for r in view.decodes)
        deepest = max((r.computed_tokens for r in step.prefills), default=0)
        pairs = chunk * (deepest + chunk / 2)
        end_s = start_s + self.model.predict4(
            chunk, pairs, len(step.decodes), sum(r.total_tokens for r in step.decodes)
        )
        pace_s = self.model.predict4(0, 0.0, len(view.decodes), context) if view.decodes else 0.0
        running = {id(r) for r in step.decodes}
        for r in view.decodes:
            if id(r) in running:
                continue
            self.left_out += 1
            h = min(HORIZON_TOKENS, r.max_tokens - r.emitted_tokens)
            due_s = r.first_token_s + (r.emitted_tokens + h - 1) * r.objective.tpot_s
            assert end_s + h * pace_s <= due_s + 1e-9, "a decode was left out of a step that made it late"
            assert end_s + pace_s <= r.last_token_s + r.objective.max_stall_s + 1e-9, "and one that stalled it"
        return step

    def victim(self, view: View, start_s: float):  # type: ignore[no-untyped-def]  # as the policy's
        return self.inner.victim(view, start_s)


def watched_replica() -> tuple[Replica, Watched]:
    replica = make_replica("stall-free")
    assert isinstance(replica.policy, StallFree)
    watched = Watched(replica.policy, replica.model)
    replica.policy = watched
    return replica, watched


@given(arrivals=ARRIVALS)
def test_stall_free_leaves_no_decode_out_of_a_step_when_that_makes_it_late(arrivals: list[Arrival]) -> None:
    replica, _ = watched_replica()
    drive(replica, arrivals)


def test_stall_free_lets_batch_decodes_sit_out_while_interactive_ones_need_the_time() -> None:
    """So that the property above is not true for want of cases."""
    replica, watched = watched_replica()
    rng = Random(3)
    drive(replica, [Arrival(0.03, rng.randint(50, 600), 40, i % 2 == 0, 0) for i in range(120)])
    assert watched.left_out > 100


def test_a_prefill_leg_parks_its_kv_until_it_is_read_and_frees_it_when_the_lease_ends() -> None:
    replica = make_replica(kv_blocks=64)
    for name in ("read", "forgotten"):
        replica.submit(make_request(name, max_tokens=1, leg=Leg.PREFILL))
    seconds = replica.begin(0.0)
    assert seconds is not None
    replica.finish(seconds)
    assert set(replica.parked) == {"read", "forgotten"}
    assert replica.renew("read", 1.0) is not None
    assert replica.release("read")
    assert not replica.release("read")
    assert replica.expire(seconds + 29.9) == []
    assert replica.expire(seconds + 30.0) == ["forgotten"]
    assert replica.renew("forgotten", seconds + 30.1) is None
    assert replica.view.kv.available == 64


def test_a_decode_leg_takes_room_first_and_emits_its_first_token_in_one_decode_step() -> None:
    replica = make_replica(kv_blocks=20)
    for name in ("a", "b"):
        replica.submit(make_request(name, prompt_tokens=120, max_tokens=3, leg=Leg.DECODE))
    assert replica.begin(0.0) is None, "nothing runs before its KV is there"
    first = replica.next_transfer()
    assert first is not None
    assert first.id == "a"
    second = replica.next_transfer()
    assert second is not None, "both fit"
    replica.submit(make_request("c", prompt_tokens=120, max_tokens=3, leg=Leg.DECODE))
    assert replica.next_transfer() is None, "there is no KV room for a third"
    replica.kv_arrived("a")
    replica.kv_failed("b", recompute=True)
    seconds = replica.begin(0.0)
    assert replica.batch is not None
    assert [r.id for r in replica.batch.decodes] == ["a"]
    assert [r.id for r, _ in replica.batch.chunks] == ["b"], "a failed hand-over is computed here"
    assert seconds is not None
    assert {r.id for r in replica.finish(seconds).tokens} == {"a", "b"}
