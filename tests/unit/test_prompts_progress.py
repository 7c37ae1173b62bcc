"""No prompt starves: on machines too slow or too disturbed for the limits of those that decode, it still advances.

The pacer and its policy drive a made-up machine on a fake clock, as vLLM's scheduler would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import pytest
from engines import make_request, make_table
from paceline_engine.lengths import OutputLengths
from paceline_engine.policies.stall_free import (
    KEPT_OUT_STEPS,
    OVERDUE_S,
    OVERDUE_SHARE,
    REPLAN_STEPS,
    StallFree,
)
from paceline_engine.policies.step import Limits, View
from paceline_engine.request import Objective, Request
from paceline_engine.step_time import StepShape, StepTimeModel
from paceline_engine.vllm.guess import CPU_CORE, GuessedModel, Shape, guess_table
from paceline_engine.vllm.pacer import HELD, BorrowedKV, Pacer

SMALL = Shape(layers=4, hidden=256, heads=8, kv_heads=4, head_dim=32, intermediate=704)
TILE, MOST = 16, 2048
LONG = 4000
Machine = Callable[[StepShape], float]


def calm(slower: float) -> Machine:
    """A core that computes the 5 M model, `slower` times as slow as when it has nothing else to do."""
    return lambda x: slower * (0.0033 + 0.0002 * x.prefill_tokens + 1e-8 * x.prefill_pairs + 0.0003 * x.decodes)


def disturbed(slower: float, seed: int) -> Machine:
    """The same with steps that vary by a half, and one in ten that waits for its core."""
    rng, quiet = Random(seed), calm(slower)
    return lambda x: (
        quiet(x) * rng.lognormvariate(0, 0.5) + (rng.expovariate(100 / slower) if rng.random() < 0.1 else 0)
    )


def alone_s(machine: Machine) -> float:
    """What the long prompt takes with nobody beside it and the largest steps."""
    return sum(machine(StepShape(MOST, MOST * (before + MOST / 2), 0, 0)) for before in (0, LONG - MOST))


@dataclass
class Rig:
    """One engine; what vLLM's queues would hold is `order`."""

    machine: Machine
    host_s: float = 0.0  # between a step's result and the next plan
    now: float = 0.0
    done: dict[str, tuple[int, int]] = field(default_factory=dict)  # computed and emitted tokens of who is there
    times: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model, lengths = GuessedModel(guess_table(SMALL, CPU_CORE, "m", 1, 100_000)), OutputLengths()
        kv, limits = BorrowedKV(4000, 16), Limits(32, MOST, TILE)
        self.pacer = Pacer(StallFree(model, lengths), model, lengths, kv, limits)

    def add(self, id_: str, prompt: int, output: int, objective: Objective | None = None) -> None:
        self.pacer.take(id_, prompt, output, self.now, objective, handle=id_)
        self.done[id_], self.times[id_] = (0, 0), []

    def _plan(self) -> tuple[list[str], int]:
        """Who may run, in order, and the budget; vLLM's own where nobody has an objective."""
        view = self.pacer.view
        view.decodes, view.partials, view.waiting = [], [], []
        for id_, (computed, emitted) in self.done.items():
            tracked = self.pacer.tracked[id_]
            tracked.stands_at(computed, emitted, self.now)
            tracked.blocks = HELD if computed else []
            (view.decodes if tracked.decoding else view.partials if computed else view.waiting).append(tracked)
        if not self.pacer.paced:
            return list(self.done), MOST
        plan = self.pacer.plan(self.now)
        return [*plan.run, *plan.admit], plan.token_budget

    def step(self) -> None:
        order, budget = self._plan()
        prefill, pairs, decodes, chunks = 0, 0.0, 0, {}
        for id_ in order:
            computed, emitted = self.done[id_]
            left = self.pacer.tracked[id_].prompt_tokens + emitted - computed
            chunk = chunks[id_] = min(left, budget)
            budget -= chunk
            if computed and left == 1:
                decodes += chunk
            else:
                prefill, pairs = prefill + chunk, pairs + chunk * (computed + chunk / 2)
            self.done[id_] = computed + chunk, emitted + (0 < chunk == left)
        shape = StepShape(prefill, pairs, decodes, 200 * decodes)
        self.pacer.depart(shape, self.now)
        self.now += self.machine(shape)
        self._land([id_ for id_, chunk in chunks.items() if chunk and not self._owes(id_)])

    def _owes(self, id_: str) -> bool:
        computed, emitted = self.done[id_]
        return computed < self.pacer.tracked[id_].prompt_tokens + emitted - 1

    def _land(self, emitted: list[str]) -> None:
        for id_ in emitted:
            self.times[id_].append(self.now)
        ended = {id_ for id_ in emitted if len(self.times[id_]) == self.pacer.tracked[id_].max_tokens}
        self.pacer.land([(id_, 1, id_ in ended) for id_ in emitted], self.now)
        for id_ in ended:
            del self.done[id_]
        self.now += self.host_s

    def until(self, ends: Callable[[], bool], steps: int = 20_000) -> None:
        while not ends():
            self.step()
            steps -= 1
            assert steps, "it never came to that"

    def acquaint(self) -> None:
        """A start-up's requests, without an objective."""
        for tokens in (16, 64, 256, 1000, LONG):
            self.add(f"first{tokens}", tokens, 8)
            self.until(lambda: not self.done)


def long_prompt(
    machine: Machine, limit_ms: float, stall_ms: float, streams: int = 1, host_s: float = 0.0
) -> tuple[Rig, float]:
    """Streams that have run for a while, and a long prompt beside them; its time to first token, seconds."""
    rig = Rig(machine, host_s)
    rig.acquaint()
    for k in range(streams):
        rig.add(f"stream{k}", 64, 4000, Objective("fast", 1.0, limit_ms / 1e3, stall_ms / 1e3))
    rig.until(lambda: all(len(rig.times[f"stream{k}"]) >= 40 for k in range(streams)))
    sent_s = rig.now
    rig.add("long", LONG, 1)
    rig.until(lambda: bool(rig.times["long"]))
    return rig, rig.now - sent_s


LIMITS = [
    pytest.param(30, 30, id="no gap above the mean"),
    pytest.param(30, 90, id="gaps of three times the mean"),
    pytest.param(60, 60, id="twice the time"),
]


@pytest.mark.parametrize("slower", [1, 3, 5, 8, 12])
@pytest.mark.parametrize(("limit_ms", "stall_ms"), LIMITS)
def test_a_long_prompt_takes_at_most_three_times_as_long_beside_a_stream(
    limit_ms: float, stall_ms: float, slower: float
) -> None:
    _, ttft_s = long_prompt(calm(slower), limit_ms, stall_ms)
    assert ttft_s <= 3 * alone_s(calm(slower))


@pytest.mark.parametrize("slower", [1, 5, 12])
@pytest.mark.parametrize(("limit_ms", "stall_ms"), LIMITS)
def test_a_long_prompt_takes_at_most_five_times_as_long_where_steps_are_disturbed(
    limit_ms: float, stall_ms: float, slower: float
) -> None:
    _, ttft_s = long_prompt(disturbed(slower, 1), limit_ms, stall_ms)
    assert ttft_s <= 5 * alone_s(calm(slower))


@pytest.mark.parametrize("limit_ms", [x / 4 for x in range(32, 120)])
def test_what_the_host_does_between_steps_keeps_no_prompt_from_the_least_step(limit_ms: float) -> None:
    """A limit that just holds that step at the moment of a token does not hold it a moment later, nor at any other."""
    _, ttft_s = long_prompt(calm(1), limit_ms, limit_ms, host_s=0.001)
    assert ttft_s <= 4 * alone_s(calm(1))


@pytest.mark.parametrize("slower", [1, 3, 5])
def test_a_stream_that_can_keep_its_mean_keeps_it_under_a_long_prompt(slower: float) -> None:
    rig, _ = long_prompt(calm(slower), 30, 90)
    rig.until(lambda: len(rig.times["stream0"]) == 1000)
    times = rig.times["stream0"]
    assert times[-1] - times[0] <= 0.030 * 999


@pytest.mark.parametrize("slower", [1, 2])
def test_where_a_prompt_fits_below_the_stall_limit_no_gap_exceeds_it(slower: float) -> None:
    rig, ttft_s = long_prompt(calm(slower), 30, 30)
    gaps = [b - a for a, b in pairwise(rig.times["stream0"]) if b > rig.now - ttft_s]
    assert max(gaps) <= 0.030


def test_requests_whose_pace_the_machine_cannot_keep_run_together_not_one_by_one() -> None:
    rig = Rig(calm(10))
    rig.acquaint()
    began_s = rig.now
    for k in range(8):
        rig.add(f"r{k}", 64, 100, Objective("hopeless", 1.0, 0.005, 0.015))
    rig.until(lambda: not rig.done)
    assert rig.now - began_s < 3 * 100 * calm(10)(StepShape(0, 0.0, 8, 800))


def behind(start_s: float, tpot_s: float) -> Request:
    """A decode that has just emitted, four tokens late; it catches up if nothing comes between."""
    r = make_request("d", max_tokens=1000, objective=Objective("c", 1.0, tpot_s, 3 * tpot_s))
    r.computed_tokens, r.emitted_tokens, r.blocks = 149, 50, HELD
    r.first_token_s, r.last_token_s = start_s - 54 * tpot_s, start_s
    return r


def test_where_means_leave_no_room_a_prompt_has_a_tenth_of_the_time() -> None:
    model = StepTimeModel(make_table())
    policy = StallFree(model, OutputLengths(prior_tokens=1000))
    limits = Limits(32, MOST, TILE)
    long = make_request("long", prompt_tokens=LONG, objective=Objective("c", 60.0, 0.025, 0.075))
    long.blocks, long.computed_tokens = HELD, 1
    began, prefilled_s = [], 0.0
    for k in range(500):
        now = 0.02 * k
        view = View(BorrowedKV(4000, 16), limits, [behind(now, 0.025)], [long])
        step = policy.plan(view, now)
        if step.prefills:
            began.append(now)
            chunk = step.token_budget - 1
            prefilled_s += model.predict4(chunk, chunk * (1 + chunk / 2), 1, 150) - model.predict4(0, 0.0, 1, 150)
    assert not policy.plan(View(BorrowedKV(4000, 16), limits, [behind(10.0, 0.025)]), 10.0).prefills
    assert [round(b - a, 2) for a, b in pairwise(began)] == pytest.approx(
        [OVERDUE_S + 0.02] * (len(began) - 1), abs=0.021
    )
    assert 0.5 * OVERDUE_SHARE < prefilled_s / 10.0 <= 1.1 * OVERDUE_SHARE


def test_a_prompt_that_fits_nowhere_waits_its_own_time_not_that_of_one_long_gone() -> None:
    policy = StallFree(StepTimeModel(make_table()), OutputLengths(prior_tokens=1000))
    limits = Limits(32, MOST, TILE)

    def tokens(now: float) -> int:
        long = make_request("long", prompt_tokens=LONG, objective=Objective("c", 60.0, 0.025, 0.075))
        long.blocks, long.computed_tokens = HELD, 1
        return sum(
            1 for _ in policy.plan(View(BorrowedKV(4000, 16), limits, [behind(now, 0.025)], [long]), now).prefills
        )

    assert tokens(0.0) == 0  # it begins to wait, and leaves
    policy.plan(View(BorrowedKV(4000, 16), limits, [behind(0.1, 0.025)]), 0.1)
    assert tokens(100.0) == 0


@pytest.mark.parametrize("is_lost", [False, True], ids=["can be in time", "late anyway"])
@pytest.mark.parametrize(("free", "tried"), [(4000, 5), (0, 0)], ids=["there is KV", "there is none"])
def test_whom_only_the_pace_of_others_keeps_out_is_tried_once_in_a_while(is_lost: bool, free: int, tried: int) -> None:
    """Forty decodes fill their TPOT without end: what is predicted of one more is put to the test."""
    model = StepTimeModel(make_table())
    tpot_s = model.predict4(0, 0.0, 40, 40 * 150)
    policy = StallFree(model, OutputLengths(prior_tokens=100))
    kv = BorrowedKV(4000, 16)
    kv.free = free
    ttft_s = 0.0 if is_lost else 60.0
    joined = []
    for k in range(160):
        now = 10.0 + 0.02 * k
        slo = Objective("c", ttft_s, tpot_s, 3 * tpot_s)
        prompt = make_request("next", prompt_tokens=150, objective=slo, arrival_s=10.0)
        view = View(kv, Limits(256, MOST, TILE), [behind(now, tpot_s) for _ in range(40)], [], [prompt])
        joined += [now for _ in policy.plan(view, now).prefills]
    assert len(joined) == tried
    assert [round(b - a, 2) for a, b in pairwise(joined)] == pytest.approx(
        [OVERDUE_S + 0.02] * (len(joined) - 1), abs=0.021
    )


def test_one_at_a_time_joins_beyond_the_pace_of_others() -> None:
    """Long answers end rarely: were another tried after each wait, the batch would grow until nobody keeps a pace."""
    model = StepTimeModel(make_table())
    tpot_s = model.predict4(0, 0.0, 40, 40 * 150)
    policy = StallFree(model, OutputLengths(prior_tokens=3000))
    slo = Objective("c", 60.0, tpot_s, 3 * tpot_s)
    running: list[Request] = []
    joined: list[float] = []
    for k in range(400):
        now = 10.0 + 0.02 * k
        if k == 200:
            running.clear()  # its answer has ended
        prompt = make_request("next", prompt_tokens=150, objective=slo, arrival_s=10.0)
        decodes = [*(behind(now, tpot_s) for _ in range(40)), *running]
        for r in policy.plan(View(BorrowedKV(4000, 16), Limits(256, MOST, TILE), decodes, [], [prompt]), now).prefills:
            r.blocks, r.computed_tokens, r.emitted_tokens, r.first_token_s, r.last_token_s = HELD, 150, 1, now, now
            running.append(r)
            joined.append(now)
    assert [round(at - 10.0, 1) for at in joined] == pytest.approx([OVERDUE_S, 4.0 + OVERDUE_S], abs=0.11)


def test_a_late_prompt_that_finds_kv_is_not_kept_out_for_good_by_what_is_left_for_others() -> None:
    policy = StallFree(StepTimeModel(make_table()), OutputLengths(prior_tokens=100))
    kv = BorrowedKV(1000, 16)
    kv.free = 900
    joined = 0
    for k in range(200):
        now = 10.0 + 0.02 * k
        late = make_request("late", prompt_tokens=10_500, objective=Objective("c", 1.0, 0.2, 0.6), arrival_s=0.0)
        decode = behind(now, 0.2)
        joined += bool(policy.plan(View(kv, Limits(256, MOST, TILE), [decode], [], [late]), now).prefills)
    assert joined > 0


@pytest.mark.parametrize("hopeless_running", [True, False])
def test_a_request_that_nobody_could_serve_in_time_costs_the_others_nothing(hopeless_running: bool) -> None:
    """Forty decodes fill the TPOT of their class; one of 1 ms among them, or none, the next of the class stays out."""
    model = StepTimeModel(make_table())
    tpot_s = model.predict4(0, 0.0, 40, 40 * 150)
    policy = StallFree(model, OutputLengths(prior_tokens=100))
    decodes = [behind(10.0, tpot_s) for _ in range(40)]
    if hopeless_running:
        decodes[0].objective = Objective("hopeless", 1.0, 0.001, 0.003)
    prompt = make_request("next", prompt_tokens=150, objective=Objective("c", 5.0, tpot_s, 3 * tpot_s), arrival_s=10.0)
    view = View(BorrowedKV(4000, 16), Limits(256, MOST, TILE), decodes, [], [prompt])
    assert not policy.plan(view, 10.0).prefills


@pytest.mark.parametrize(
    ("what", "decodes", "places", "spare", "repeat"),
    [
        ("nobody waits", 4, 256, 10.0, REPLAN_STEPS),
        ("no place", 4, 4, 10.0, KEPT_OUT_STEPS),
        ("no time", 4, 256, 1.02, 1),
        ("room", 4, 256, 10.0, 1),
    ],
)
def test_a_step_without_a_prompt_is_planned_anew_where_time_alone_may_let_one_in(
    what: str, decodes: int, places: int, spare: float, repeat: int
) -> None:
    """The TPOT is `spare` times a step of the decodes with the prompt among them."""
    model = StepTimeModel(make_table())
    tpot_s = spare * model.predict4(0, 0.0, decodes + 1, (decodes + 1) * 150)
    slo = Objective("c", 60.0, tpot_s, 3 * tpot_s)
    waiting = [make_request("next", prompt_tokens=150, objective=slo, arrival_s=10.0)]
    view = View(BorrowedKV(4000, 16), Limits(places, MOST, TILE), [behind(10.0, tpot_s) for _ in range(decodes)])
    view.waiting = [] if what == "nobody waits" else waiting
    step = StallFree(model, OutputLengths(prior_tokens=800)).plan(view, 10.0)
    assert (bool(step.prefills), step.repeat) == (what == "room", repeat)
