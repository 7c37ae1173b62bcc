"""Which prompts are saved: the fewest are late, and nobody is dropped."""

from __future__ import annotations

from itertools import permutations

from engines import BATCH, make_request, make_table
from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.budget import NO_SPEED, StepLoad, best_pace
from paceline_engine.policies.prefill_order import put_off, shortest_first, split
from paceline_engine.request import Objective, Request
from paceline_engine.step_time import StepTimeModel

MODEL = StepTimeModel(make_table())
TOKENS_PER_S = 5000.0


def prompt(tokens: int, due_s: float, name: str = "p") -> Request:
    return make_request(name, prompt_tokens=tokens, objective=Objective("interactive", due_s, 0.04, 0.12))


def seconds(r: Request) -> float:
    return r.left_tokens / TOKENS_PER_S + MODEL.attention_s(r.left_tokens**2 / 2)


def late(order: tuple[Request, ...]) -> int:
    at, found = 0.0, 0
    for r in order:
        at += seconds(r)
        found += at > r.ttft_deadline_s
    return found


@given(st.lists(st.tuples(st.integers(10, 4000), st.floats(0.05, 2.0)), min_size=1, max_size=6))
def test_no_order_leaves_fewer_late(prompts: list[tuple[int, float]]) -> None:
    requests = sorted((prompt(n, due) for n, due in prompts), key=lambda r: r.ttft_deadline_s)
    kept, given_up = put_off(requests, MODEL, TOKENS_PER_S, 0.0, 0.0)
    assert sorted(map(id, kept + given_up)) == sorted(map(id, requests)), "each is in one of the two"
    assert late(tuple(kept)) == 0
    assert len(given_up) == min(late(order) for order in permutations(requests))


def test_the_longest_gives_way_to_two_short_ones() -> None:
    requests = [prompt(4000, 0.9, "long"), prompt(500, 1.0, "a"), prompt(500, 1.1, "b")]
    kept, given_up = put_off(requests, MODEL, TOKENS_PER_S, 0.0, 0.0)
    assert [r.id for r in kept] == ["a", "b"]
    assert [r.id for r in given_up] == ["long"]


def test_what_cannot_begin_in_time_is_lost_and_a_preempted_request_never_is() -> None:
    preempted = prompt(1000, 0.1, "preempted")
    preempted.emitted_tokens, preempted.preemptions = 3, 1
    savable, lost = split([prompt(1000, 0.1, "late"), prompt(100, 5.0, "fine"), preempted], MODEL, 0.0, 0.0)
    assert [r.id for r in savable] == ["preempted", "fine"]
    assert [r.id for r in lost] == ["late"]


def test_lost_prompts_come_shortest_first_but_those_that_hold_kv_before_them() -> None:
    begun = make_request("begun", prompt_tokens=900, objective=BATCH)
    begun.blocks = [1]
    short, long = make_request("short", prompt_tokens=10), make_request("long", prompt_tokens=500)
    assert [r.id for r in shortest_first([long, short, begun])] == ["begun", "short", "long"]


@given(
    decodes=st.integers(1, 200),
    even_s=st.floats(0.001, 0.3),
    longer=st.floats(1.0, 8.0),
    work=st.integers(1, 20_000),
)
def test_a_pace_is_one_of_the_two_limits_and_its_speed_is_possible(
    decodes: int, even_s: float, longer: float, work: int
) -> None:
    load = StepLoad(decodes, 500 * decodes)
    decode_s = load.seconds(MODEL)
    pace = best_pace(load, MODEL, work, even_s, longer * even_s, decode_s, 2048, 128)
    assert pace.step_s in (even_s, longer * even_s)
    fastest = max(n / load.seconds(MODEL, n) for n in range(1, 2049))
    assert NO_SPEED <= pace.tokens_per_s <= fastest * 1.001
