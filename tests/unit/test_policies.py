"""Each batching policy as a table: what is running and waiting, and what the next step holds."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import pytest
from engines import BATCH, make_replica, make_request, make_table, run_steps
from paceline_engine.kv_blocks import KVBlocks
from paceline_engine.lengths import OutputLengths
from paceline_engine.policies.newcomers import LATELY_S, TTFT_SHARE, Newcomers
from paceline_engine.policies.stall_free import StallFree
from paceline_engine.policies.step import Limits, View
from paceline_engine.request import Objective, Request
from paceline_engine.sim.replica import Replica
from paceline_engine.step_time import StepTimeModel


@dataclass(frozen=True)
class Case:
    says: str
    policy: str
    decodes: int
    prompts: tuple[int, ...]
    steps: tuple[tuple[int, tuple[int, ...]], ...]  # of each step: decodes, chunks


def with_decodes(policy: str, count: int) -> tuple[Replica, float]:
    """A replica in which `count` requests of 16 tokens decode and nothing else happens."""
    replica = make_replica(policy)
    for i in range(count):
        replica.submit(make_request(f"d{i}", prompt_tokens=16, max_tokens=2000, objective=BATCH))
    now = 0.0
    while len(replica.view.decodes) < count:
        now, _ = run_steps(replica, now, 1)
    return replica, now


CASES = [
    Case("vLLM v0 stalls every decode behind whole prompts", "vllm-v0", 2, (600, 600), ((0, (600, 600)), (4, ()))),
    Case("vLLM v0 batches prompts up to its token limit", "vllm-v0", 0, (1500, 1500), ((0, (1500,)), (0, (1500,)))),
    Case("Orca runs whole prompts beside the decodes", "orca", 2, (600, 600), ((2, (600, 600)), (4, ()))),
    Case(
        "Sarathi cuts a prompt to what decodes leave of 512", "sarathi", 2, (600,), ((2, (510,)), (2, (90,)), (3, ()))
    ),
    Case("Sarathi fills the rest with the next prompt", "sarathi", 0, (600, 600), ((0, (512,)), (0, (88, 424)))),
    Case("vLLM v1 takes a prompt whole within 2048", "vllm-v1", 2, (600,), ((2, (600,)), (3, ()))),
    Case("vLLM v1 cuts where the budget ends", "vllm-v1", 2, (1500, 1500), ((2, (1500, 546)), (3, (954,)))),
    Case("split-fuse fills every step to 768", "split-fuse", 2, (600, 600), ((2, (600, 166)), (3, (434,)))),
    Case("prefill-only batches up to saturation", "prefill-only", 0, (200, 200, 200), ((0, (200, 200)), (0, (200,)))),
    Case("prefill-only runs a long prompt alone", "prefill-only", 0, (900, 100), ((0, (900,)), (0, (100,)))),
    Case("decode-only computes a prompt that lost its KV", "decode-only", 2, (600,), ((2, (600,)), (3, ()))),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.says)
def test_a_policy_composes_its_steps(case: Case) -> None:
    replica, now = with_decodes(case.policy, case.decodes)
    for i, tokens in enumerate(case.prompts):
        replica.submit(make_request(f"p{i}", prompt_tokens=tokens, max_tokens=100, arrival_s=now))
    seen = []
    for _ in case.steps:
        seconds = replica.begin(now)
        assert seconds is not None
        assert replica.batch is not None
        seen.append((len(replica.batch.decodes), tuple(chunk for _, chunk in replica.batch.chunks)))
        now += seconds
        replica.finish(now)
    assert tuple(seen) == case.steps


def test_orca_reserves_the_longest_answer_so_that_nothing_is_preempted() -> None:
    replica = make_replica("orca", kv_blocks=20)
    for i in range(3):
        replica.submit(make_request(str(i), prompt_tokens=100, max_tokens=60))
    replica.begin(0.0)
    assert len(replica.view.partials) == 2, "160 tokens each, 320 in the pool"


def test_vllm_v1_overcommits_kv_and_preempts_the_latest() -> None:
    replica = make_replica("vllm-v1", kv_blocks=20)
    for i in range(3):
        replica.submit(make_request(str(i), prompt_tokens=100, max_tokens=80))
    _, steps = run_steps(replica, 0.0)
    assert replica.counters.preemptions > 0
    assert [r.id for s in steps for r in s.finished] == ["0", "1", "2"]


def learnt(replica: Replica) -> Replica:
    """The replica after enough steps that its prediction is trusted and its margin narrow."""
    now = 0.0
    for i in range(60):
        replica.submit(
            make_request(f"w{i}", prompt_tokens=40 * (1 + i % 7), max_tokens=8, arrival_s=now, objective=BATCH)
        )
        now, _ = run_steps(replica, now, 4)
    run_steps(replica, now)
    return replica


def stall_free_step(decoding: Request, prompt_tokens: int, now: float) -> tuple[int, float]:
    """Prefill tokens and seconds of the step beside one decode, from a replica that knows its machine."""
    replica = learnt(make_replica("stall-free"))
    replica.view.kv.grow(decoding, decoding.total_tokens)
    replica._live[decoding.id] = decoding
    replica.view.decodes.append(decoding)
    replica.submit(make_request("p", prompt_tokens=prompt_tokens, max_tokens=100, arrival_s=now))
    seconds = replica.begin(now)
    assert replica.batch is not None
    assert seconds is not None
    return replica.batch.prefill_tokens, seconds


def decoding_at(now: float, emitted: int, behind_s: float = 0.0) -> Request:
    """A decode with `emitted` tokens at its mean pace of 40 ms, less what it is behind."""
    request = make_request("d", prompt_tokens=100, max_tokens=400)
    request.computed_tokens, request.emitted_tokens = 100 + emitted - 1, emitted
    request.first_token_s = now - (emitted - 1) * 0.04 - behind_s
    request.last_token_s = now
    return request


def test_stall_free_grows_the_step_with_what_the_decode_can_make_up_for_later() -> None:
    on_pace, on_pace_s = stall_free_step(decoding_at(100.0, 50), 1500, 100.0)
    behind, behind_s = stall_free_step(decoding_at(100.0, 50, behind_s=0.58), 1500, 100.0)
    assert 0.04 < on_pace_s <= 0.12, "longer than one token's pace, within the stall cap of 3 × TPOT"
    assert behind_s < on_pace_s
    assert 0 <= behind < on_pace


def test_stall_free_ends_a_chunk_on_a_tile() -> None:
    tokens, _ = stall_free_step(decoding_at(100.0, 50), 1500, 100.0)
    assert (tokens + 1) % 128 == 0, "with the one decode, the step is whole tiles"


def test_stall_free_gives_prefills_everything_when_nobody_decodes() -> None:
    replica = learnt(make_replica("stall-free"))
    replica.submit(make_request("p", prompt_tokens=1500, max_tokens=10, arrival_s=100.0, objective=BATCH))
    replica.begin(100.0)
    assert replica.batch is not None
    assert replica.batch.prefill_tokens == 1500


def test_stall_free_serves_the_prompt_with_the_least_slack_first_and_lost_ones_last() -> None:
    replica = learnt(make_replica("stall-free"))
    replica.submit(make_request("lost", prompt_tokens=1500, max_tokens=10, arrival_s=90.0))
    replica.submit(make_request("late-ish", prompt_tokens=300, max_tokens=10, arrival_s=99.9))
    replica.submit(make_request("urgent", prompt_tokens=300, max_tokens=10, arrival_s=99.75))
    replica.begin(100.0)
    assert replica.batch is not None
    order = [r.id for r, _ in replica.batch.chunks]
    assert order[0] == "urgent"
    assert "lost" not in order or order[-1] == "lost"


def test_a_prompt_that_may_not_begin_yet_keeps_none_of_the_unfinished_from_going_on() -> None:
    replica, now = make_replica(kv_blocks=4096), 0.0
    ran: list[list[str]] = []
    for i, ttft_s in enumerate((30.0, 20.0, 14.0, 9.0, 5.0)):  # each newcomer is the most pressing
        objective = Objective("interactive", ttft_s, 0.04, 0.12)
        replica.submit(make_request(f"p{i}", prompt_tokens=3000, arrival_s=now, objective=objective))
        seconds = replica.begin(now)
        assert seconds is not None, "four prompts are half done, and nothing runs"
        assert replica.batch is not None
        ran.append([r.id for r, _ in replica.batch.chunks])
        now += seconds
        replica.finish(now)
    assert ran == [["p0"], ["p1"], ["p2"], ["p3"], ["p3", "p2", "p1"]]


@pytest.mark.parametrize(
    ("seen", "later_s", "most_s"),
    [
        ([], 0.0, inf),
        ([("chat", 0.4), ("batch", 10.0)], 0.0, 0.2),
        ([("chat", 0.4), ("chat", 0.1)], 0.0, 0.2),
        ([("chat", -0.1), ("batch", 10.0)], 0.0, 5.0),
        ([("chat", 0.4)], LATELY_S + 1.0, inf),
    ],
    ids=[
        "nobody came: no bound",
        "the class with the shortest time binds",
        "one that waited at a router brings less, and does not tighten its class",
        "one that is late already says nothing of its class",
        "a class that is no longer seen is forgotten",
    ],
)
def test_a_step_leaves_those_who_come_meanwhile_half_of_their_time(
    seen: list[tuple[str, float]], later_s: float, most_s: float
) -> None:
    newcomers = Newcomers()
    newcomers.note([make_request(name, objective=Objective(name, s, 0.05, 0.15)) for name, s in seen], 1.0)
    assert newcomers.most_s(1.0 + later_s) == pytest.approx(most_s)


@pytest.mark.parametrize("ttft_s", [0.1, 0.4])
def test_a_long_prompt_of_a_patient_class_makes_way_for_those_of_another_that_may_come(ttft_s: float) -> None:
    model = StepTimeModel(make_table())
    policy = StallFree(model, OutputLengths())
    limits = Limits(max_batched_tokens=1 << 16)

    def step_s(waiting: list[Request], now: float) -> float:
        view = View(KVBlocks(8192, 16), limits, [], [], waiting)
        return model.predict4(policy.plan(view, now).token_budget, 0.0, 0, 0)

    def long() -> Request:
        return make_request("long", prompt_tokens=40_000, objective=Objective("batch", 100.0, 0.25, 0.75))

    before_s = step_s([long()], 0.0)
    came = make_request("came", objective=Objective("chat", ttft_s, 0.05, 0.15), arrival_s=1.0)
    step_s([came], 1.0)
    after_s = step_s([long()], 2.0)
    assert after_s <= TTFT_SHARE * ttft_s < before_s
