"""The pacer: what is in flight counts once, steps last from result to result, prompts kept waiting get a trial."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

import pytest
from engines import make_table
from paceline_engine.lengths import OutputLengths
from paceline_engine.policies.stall_free import StallFree
from paceline_engine.policies.step import Limits
from paceline_engine.request import Objective
from paceline_engine.step_time import StepShape, StepTimeModel
from paceline_engine.vllm.__main__ import PACKAGES, main, surround, sweep
from paceline_engine.vllm.pacer import HELD, BorrowedKV, Pacer

FAST = Objective("fast", 1.0, 0.05, 0.15)
DECODE = StepShape(0, 0.0, 1, 100)


def make_pacer(stages: int = 1, policy: object = None) -> Pacer:
    model, lengths = StepTimeModel(make_table()), OutputLengths()
    kv = BorrowedKV(512, 16)
    chosen = policy or StallFree(model, lengths)
    return Pacer(chosen, model, lengths, kv, Limits(32, 2048, 16), stages)  # type: ignore[arg-type]  # a test's policy


def take(pacer: Pacer, id_: str, objective: Objective | None = FAST, prompt: int = 100, now: float = 0.0) -> None:
    pacer.take(id_, prompt, 50, now, objective, handle=id_)


def running(pacer: Pacer, *ids: str, emitted: int = 1) -> None:
    """These decode, and nobody else is there."""
    view = pacer.view
    view.decodes, view.partials, view.waiting = [], [], []
    for id_ in ids:
        tracked = pacer.tracked[id_]
        tracked.stands_at(tracked.prompt_tokens + emitted - 1, emitted, pacer.start_s(0.0))
        tracked.blocks = HELD
        view.decodes.append(tracked)


def test_with_nothing_in_flight_a_step_starts_now() -> None:
    assert make_pacer().start_s(3.0) == 3.0


def test_a_step_starts_where_those_in_flight_end() -> None:
    pacer = make_pacer()
    first = pacer.depart(DECODE, 1.0)
    second = pacer.depart(StepShape(64, 2048.0, 1, 100), 1.001)
    assert pacer.start_s(1.002) == pytest.approx(1.0 + first.predicted_s + second.predicted_s)
    assert pacer.start_s(9.0) == 9.0, "late as it is, it has not ended before now"


def test_micro_batches_of_a_pipeline_start_at_once() -> None:
    pacer = make_pacer(stages=2)
    pacer.depart(DECODE, 1.0)
    assert pacer.start_s(1.001) == 1.001


def test_a_busy_engines_step_is_timed_from_result_to_result() -> None:
    pacer = make_pacer()
    take(pacer, "a")
    pacer.depart(DECODE, 1.0)
    assert pacer.land([("a", 1, False)], 1.02).measured_s == pytest.approx(0.02)
    pacer.depart(DECODE, 1.023)
    assert pacer.land([("a", 1, False)], 1.05).measured_s == pytest.approx(0.03), "what the host did in between counts"


def test_an_idle_engines_step_is_timed_from_its_schedule() -> None:
    pacer = make_pacer()
    take(pacer, "a")
    pacer.depart(DECODE, 1.0)
    pacer.land([("a", 1, True)], 1.02)
    take(pacer, "b")
    pacer.depart(DECODE, 5.0)
    assert pacer.land([("b", 1, False)], 5.02).measured_s == pytest.approx(0.02)
    pacer.rest()
    pacer.depart(DECODE, 7.0)
    assert pacer.land([("b", 1, False)], 7.02).measured_s == pytest.approx(0.02), "nobody could run until 7"


def test_with_two_in_flight_a_step_is_not_timed_over_both() -> None:
    pacer = make_pacer()
    take(pacer, "a")
    pacer.depart(DECODE, 1.0)
    pacer.depart(DECODE, 1.001)
    pacer.land([("a", 1, False)], 1.02)
    pacer.depart(DECODE, 1.021)
    assert pacer.land([("a", 1, False)], 1.04).measured_s == pytest.approx(0.02)


def test_tokens_in_flight_count_as_emitted_when_they_will_have_landed() -> None:
    pacer = make_pacer()
    take(pacer, "a")
    tracked = pacer.tracked["a"]
    pacer.depart(DECODE, 1.0)
    tracked.stands_at(101, 2, 1.04)
    assert (tracked.emitted_tokens, tracked.last_token_s, tracked.first_token_s) == (2, 1.04, 1.04)
    pacer.land([("a", 2, False)], 1.03)
    assert (tracked.first_token_s, tracked.out_s) == (1.03, 1.03), "what was seen replaces what was predicted"


def test_stalls_and_misses_are_counted_for_those_with_an_objective() -> None:
    pacer = make_pacer()
    take(pacer, "a")
    take(pacer, "b", None)
    for now in (2.0, 2.3, 2.4):
        pacer.depart(DECODE, now - 0.02)
        pacer.land([(id_, 1, now == 2.4) for id_ in ("a", "b")], now)
    counts = pacer.counts
    assert (counts.stalls, counts.missed_ttft, counts.missed_tpot) == (1, 1, 1)
    assert (pacer.paced, pacer.tracked) == (0, {})


def test_a_request_that_is_known_is_not_taken_twice() -> None:
    pacer = make_pacer()
    take(pacer, "a")
    take(pacer, "a")
    assert pacer.paced == 1
    pacer.forget("a")
    pacer.forget("a")
    assert pacer.paced == 0


def test_the_plan_names_a_victim_only_where_blocks_are_short() -> None:
    pacer = make_pacer()
    take(pacer, "a")
    take(pacer, "b", Objective("slow", 5.0, 1.0, 3.0))
    running(pacer, "a", "b")
    pacer.kv.free = 2
    assert pacer.plan(1.0).victim is None
    pacer.kv.free = 1
    assert pacer.plan(1.0).victim == "b", "it has most room"


@pytest.mark.parametrize("behind_ms", range(-60, 61))
def test_guessed_tokens_may_seem_to_be_an_answers_last(behind_ms: int) -> None:
    """Tokens in flight count as emitted, those of speculation that may not hold too."""
    pacer, now = make_pacer(), 10.0
    for id_ in ("ahead", "last"):
        take(pacer, id_)
    running(pacer, "ahead", "last")
    for id_, emitted, behind_s in (("ahead", 20, 0.0), ("last", 50, behind_ms / 1e3)):
        tracked = pacer.tracked[id_]
        tracked.computed_tokens, tracked.emitted_tokens = tracked.prompt_tokens + emitted - 1, emitted
        tracked.first_token_s = now - (emitted - 1) * FAST.tpot_s - behind_s
        tracked.last_token_s = now
    assert sorted(pacer.plan(now).run) == ["ahead", "last"]


@pytest.mark.parametrize(("stages", "flying", "run"), [(1, 0, 4), (2, 0, 2), (2, 2, 3), (4, 0, 1), (2, 9, 4)])
def test_a_micro_batch_takes_its_share_of_the_decodes(stages: int, flying: int, run: int) -> None:
    pacer = make_pacer(stages=stages)
    for id_ in "abcd":
        take(pacer, id_)
    running(pacer, *"abcd")
    pacer.view.flying = flying
    plan = pacer.plan(1.0)
    assert (plan.run, plan.sit_out) == (list("abcd")[:run], list("abcd")[run:])


def test_vllm_finds_our_packages_and_an_empty_folder_for_metrics(tmp_path: Path) -> None:
    env = surround(tmp_path / "x", {"PYTHONPATH": "elsewhere", "HOME": "here"})
    links, elsewhere = env["PYTHONPATH"].split(":")
    assert elsewhere == "elsewhere"
    assert env["HOME"] == "here"
    assert {p.name for p in Path(links).iterdir() if p.suffix != ".dist-info"} == set(PACKAGES)
    plugins = [p for d in distributions(path=[links]) for p in d.entry_points if p.group == "vllm.general_plugins"]
    assert [callable(p.load()) for p in plugins] == [True, True]
    assert (Path(links) / "paceline_engine" / "launch.py").is_file()
    assert list(Path(env["PROMETHEUS_MULTIPROC_DIR"]).iterdir()) == []


def test_folders_of_the_dead_are_swept(tmp_path: Path) -> None:
    for name in ("paceline-vllm-1", "paceline-vllm-2", "paceline-vllm-x", "other-1"):
        (tmp_path / name).mkdir()
    sweep(tmp_path, lambda pid: pid == 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other-1", "paceline-vllm-2", "paceline-vllm-x"]


def test_a_wrong_environment_ends_the_program_before_vllm_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm").write_text("#!/bin/sh\n")
    (tmp_path / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PACELINE_KV_LEASE_S", "soon")
    with pytest.raises(SystemExit, match="PACELINE_KV_LEASE_S must be seconds"):
        main([])


def test_a_plan_is_not_repeated_where_micro_batches_take_turns() -> None:
    for stages, repeats in ((1, True), (2, False)):
        pacer = make_pacer(stages=stages)
        for id_ in "abcd":
            take(pacer, id_)
        running(pacer, *"abcd")
        pacer.plan(1.0)
        assert (pacer.repeat > 0) == repeats
