"""Scenarios for our scheduler and vLLM's own on a fake machine (`vllm_rig`).

Runs inside the environment of `make vllm` as `vllm_scheduler.py MODEL SCENARIO…` and prints one JSON object: what each
scenario saw. Judging is the tests' (tests/vllm). With `ahead` two steps are in flight, as with asynchronous scheduling
on a GPU, and a pipeline of two stages has as many under way.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import init_none_hash
from vllm.v1.request import RequestStatus
from vllm_rig import Rig, make

OBJECTIVES: tuple[Mapping[str, float], ...] = ({}, {"slo_tpot_ms": 15}, {"slo_tpot_ms": 40, "slo_ttft_ms": 100})


def long_prompt(model: str, *, ours: bool, ahead: bool, xargs: Mapping[str, float]) -> dict[str, Any]:
    """One stream, and a prompt of 4,000 tokens once it has run for a while: the stream's gaps after that."""
    rig = Rig(make(model, ours=ours, ahead=ahead), depth=2 if ahead else 1)
    rig.acquaint()
    rig.add("stream", 64, 400, xargs)
    while len(rig.times["stream"]) < 50:
        rig.step()
    sent_s, before = rig.now, len(rig.log)
    rig.add("long", 4000, 1)
    while not rig.times["long"]:
        rig.step()
    times = [t for t in rig.times["stream"] if t >= sent_s]
    chunks = [step["long"] for step in rig.log[before:] if "long" in step]
    skipped = sum("stream" not in step for step in rig.log[before:] if "long" in step)
    gaps = [b - a for a, b in pairwise(times)]
    rig.run()
    ttft_s = rig.times["long"][0] - sent_s
    tokens = {id_: len(t) for id_, t in rig.times.items()}
    held = {"left_blocks": rig.left_blocks(), "unplaced": rig.unplaced}
    return {"gaps_s": gaps, "chunks": chunks, "skipped": skipped, "ttft_s": ttft_s, "tokens": tokens, **held}


def classes(model: str) -> dict[str, Any]:
    """Four interactive streams and four of a batch class, and long prompts: who is in the steps that hold a prompt."""
    rig = Rig(make(model, ours=True))
    rig.acquaint()
    for k in range(4):
        rig.add(f"fast{k}", 64, 300, {"slo_ttft_ms": 1000, "slo_tpot_ms": 30})
        rig.add(f"slow{k}", 64, 300, {"slo_ttft_ms": 5000, "slo_tpot_ms": 250})
    for k in range(4):
        for _ in range(10):
            rig.step()
        rig.add(f"long{k}", 3000, 4, {"slo_ttft_ms": 20_000, "slo_tpot_ms": 250})
    rig.run()
    mixed = [step for step in rig.log if any(i.startswith("long") and n > 1 for i, n in step.items())]
    present = {kind: sum(any(i.startswith(kind) for i in step) for step in mixed) for kind in ("fast", "slow")}
    pace = {kind: max(_pace_s(rig.times[f"{kind}{k}"]) for k in range(4)) for kind in ("fast", "slow")}
    tokens = [len(t) for t in rig.times.values()]
    return {"mixed": len(mixed), "present": present, "pace_s": pace, "tokens": tokens, "left_blocks": rig.left_blocks()}


def _pace_s(times: list[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1)


def beside_four(model: str, *, stages: int = 1, ahead: bool = False, drafts: int = 0) -> dict[str, Any]:
    """Four streams at 60 ms, and a prompt of 4,000 tokens once they have run for a while: what they see of it."""
    scheduler = make(model, ours=True, ahead=ahead, stages=stages, drafts=drafts)
    depth = max(stages, 2 if ahead else 1)
    rig = Rig(scheduler, depth=depth, stages=stages, accepted=random.Random(1) if drafts else None)
    rig.acquaint()
    streams = [f"stream{k}" for k in range(4)]
    for id_ in streams:
        rig.add(id_, 64, 400, LIMITS["60"])
    while any(len(rig.times[id_]) < 50 for id_ in streams):
        rig.step()
    sent_s, before = rig.now, len(rig.log)
    rig.add("long", 4000, 1)
    while not rig.times["long"]:
        rig.step()
    ttft_s, end_s, log = rig.times["long"][0] - sent_s, rig.now, rig.log[before:]
    rig.run()
    return {
        "ttft_s": ttft_s,
        "gap_s": max(b - a for id_ in streams for a, b in pairwise(rig.times[id_]) if sent_s < b <= end_s),
        "pace_s": max(_pace_s([t for t in rig.times[id_] if t <= end_s]) for id_ in streams),
        "decodes": max(sum(id_ in step for id_ in streams) for step in log),
        "most_of_one": max(step.get(id_, 0) for step in rig.log[before:] for id_ in streams),
        "tokens": [len(rig.times[id_]) for id_ in streams],
        "left_blocks": rig.left_blocks(),
        "unplaced": rig.unplaced,
    }


def chaos(model: str, *, seed: int, ahead: bool) -> dict[str, Any]:
    """Requests of all kinds come and are aborted at random, with KV for a few of them only."""
    rng = random.Random(seed)
    rig = Rig(make(model, ours=True, ahead=ahead, blocks=64, seqs=8), depth=2 if ahead else 1)
    asked: dict[str, int] = {}
    aborted: set[str] = set()
    for k in range(60):
        id_ = f"r{k}"
        asked[id_] = rng.randrange(1, 500)
        rig.add(id_, rng.choice((1, 15, 16, 17, 200, 400)), asked[id_], rng.choice(OBJECTIVES), seed=rng.randrange(3))
        live = [i for i, r in rig.scheduler.requests.items() if not r.is_finished()]
        if live and rng.random() < 0.2:
            gone = rng.choice(live)
            rig.scheduler.finish_requests(gone, RequestStatus.FINISHED_ABORTED)
            aborted.add(gone)
        for _ in range(rng.randrange(120)):
            rig.step()
    rig.run()
    wrong = {i: (len(rig.times[i]), n) for i, n in asked.items() if i not in aborted and len(rig.times[i]) != n}
    left = {"left_blocks": rig.left_blocks(), "unplaced": rig.unplaced, "tracked": len(rig.scheduler._pacer.tracked)}
    return {"wrong": wrong, "aborted": len(aborted), "preempted": rig.preempted, **left}


def errors(model: str) -> dict[str, Any]:
    """Two requests end in an error: one whose KV was on its way, one for a reason of its own."""
    rig = Rig(make(model, ours=True))
    scheduler, lost = rig.scheduler, list[int]()
    scheduler._metrics = SimpleNamespace(on_lost_kv=lost.append, in_hand=lambda *_: None)
    for id_ in ("fetching", "other"):
        rig.add(id_, 64, 4)
    fetching = scheduler.requests["fetching"]
    scheduler.waiting.remove_requests([fetching])
    scheduler.kv_holding_waiting.add_request(fetching)
    fetching.status = RequestStatus.WAITING_FOR_REMOTE_KVS
    ended = scheduler.finish_requests(["fetching", "other"], RequestStatus.FINISHED_ERROR)
    return {"lost": sum(lost), "ended": len(ended), "tracked": len(scheduler._pacer.tracked)}


def adapters(model: str) -> dict[str, Any]:
    """One adapter a step: fast streams without, slow ones with the first; then prompts with another and without."""
    rig = Rig(make(model, ours=True, loras=1))
    rig.acquaint()
    for k in range(4):
        rig.add(f"fast{k}", 64, 200, {"slo_ttft_ms": 1000, "slo_tpot_ms": 30})
        rig.add(f"slow{k}", 64, 200, {"slo_ttft_ms": 5000, "slo_tpot_ms": 250}, adapter=1)
    while any(len(rig.times[f"{kind}{k}"]) < 5 for kind in ("fast", "slow") for k in range(4)):
        rig.step()
    rig.add("other", 3000, 4, {"slo_ttft_ms": 1000, "slo_tpot_ms": 30}, adapter=2)
    rig.add("plain", 3000, 4, {"slo_ttft_ms": 2000, "slo_tpot_ms": 30})
    rig.run()
    first = {id_: rig.times[id_][0] for id_ in ("other", "plain")}
    slow_end_s = max(rig.times[f"slow{k}"][-1] for k in range(4))
    tokens = [len(t) for id_, t in rig.times.items() if not id_.startswith("first")]
    return {"first_s": first, "slow_end_s": slow_end_s, "tokens": tokens, "left_blocks": rig.left_blocks()}


def arrived(model: str) -> dict[str, Any]:
    """KV from elsewhere is there while a long prompt is under way: in how many steps its request has its turn."""
    rig = Rig(make(model, ours=True))
    rig.acquaint()
    scheduler = rig.scheduler
    for k in range(2):
        rig.add(f"stream{k}", 64, 400, LIMITS["60"])
    while any(len(rig.times[f"stream{k}"]) < 20 for k in range(2)):
        rig.step()
    rig.add("long", 8000, 1)
    while not any("long" in step for step in rig.log):
        rig.step()
    rig.add("handed", 33, 40, LIMITS["60"])
    handed = scheduler.requests["handed"]
    scheduler.waiting.remove_requests([handed])
    scheduler.kv_cache_manager.allocate_slots(handed, 32)
    handed.num_computed_tokens = 32
    scheduler.kv_holding_waiting.add_request(handed)
    before = len(rig.log)
    while not rig.times["handed"]:
        rig.step()
    steps, long_done = len(rig.log) - before, bool(rig.times["long"])
    rig.run()
    return {"steps": steps, "long_done": long_done, "left_blocks": rig.left_blocks(), "unplaced": rig.unplaced}


def kept_out(model: str) -> dict[str, Any]:
    """All places are taken and a prompt waits, until the first of the streams ends: how often a step is planned."""
    rig = Rig(make(model, ours=True, seqs=8))
    rig.acquaint()
    for k in range(8):
        rig.add(f"stream{k}", 64, 100 if k else 60, LIMITS["60"])
    while any(len(rig.times[f"stream{k}"]) < 2 for k in range(8)):
        rig.step()
    pacer, plans = rig.scheduler._pacer, 0
    plan = type(pacer).plan

    def counted(self: Any, now: float) -> Any:
        nonlocal plans
        plans += 1
        return plan(self, now)

    type(pacer).plan = counted
    try:
        rig.add("next", 100, 4, LIMITS["60"])
        before = len(rig.log)
        while len(rig.times["stream0"]) < 60:
            rig.step()
        planned, ended = plans, len(rig.log)
        while not rig.times["next"]:
            rig.step()
        rig.run()
    finally:
        type(pacer).plan = plan
    joined = next(k for k, step in enumerate(rig.log[ended:]) if "next" in step)
    seen = {"steps": ended - before, "plans": planned, "joined_after": joined}
    return {**seen, "unplaced": rig.unplaced, "left_blocks": rig.left_blocks()}


def whole_prompts(model: str) -> str:
    """What is said where vLLM may not cut prompts."""
    try:
        make(model, ours=True, chunked=False)
    except ValueError as e:
        return str(e)
    return ""


def overhead(model: str) -> dict[str, float]:
    """Median CPU milliseconds of `schedule` with 255 decodes and a long prompt under way, ours and vLLM's."""
    medians = {}
    for name, ours in (("ours", True), ("stock", False)):
        rig = Rig(make(model, ours=ours, blocks=20_000, seqs=256))
        xargs = {"slo_tpot_ms": 120.0} if ours else None
        for k in range(255):
            rig.add(f"r{k}", 100, 2000, xargs)
        while any(not t for t in rig.times.values()):
            rig.step()
        spent: list[float] = []
        for k in range(12):
            rig.add(f"long{k}", 8000, 1)
            while not rig.times[f"long{k}"]:
                began = time.process_time()
                output = rig.scheduler.schedule()
                spent.append(1e3 * (time.process_time() - began))
                rig.fly(output)
                rig.land()
        medians[name] = statistics.median(spent)
    return medians


LIMITS: dict[str, dict[str, float]] = {
    "none": {},
    "30": {"slo_tpot_ms": 30, "slo_max_stall_ms": 30},
    "60": {"slo_tpot_ms": 60, "slo_max_stall_ms": 60},
}
MODES = {"sync": False, "ahead": True}
SCENARIOS: dict[str, Callable[[str], Any]] = {
    "classes": classes,
    "errors": errors,
    "overhead": overhead,
    **{f"stock {mode}": partial(long_prompt, ours=False, ahead=ahead, xargs={}) for mode, ahead in MODES.items()},
    **{
        f"{name} {mode}": partial(long_prompt, ours=True, ahead=ahead, xargs=xargs)
        for mode, ahead in MODES.items()
        for name, xargs in LIMITS.items()
    },
    "pipeline sync": partial(beside_four, stages=2),
    "pipeline ahead": partial(beside_four, stages=2, ahead=True),
    "speculation on": partial(beside_four, drafts=3),
    "speculation ahead": partial(beside_four, drafts=3, ahead=True),
    "adapters": adapters,
    "arrived": arrived,
    "kept out": kept_out,
    "whole prompts": whole_prompts,
    "speculation off": beside_four,
    **{f"chaos {n} {mode}": partial(chaos, seed=n, ahead=ahead) for mode, ahead in MODES.items() for n in range(6)},
}


def main(model: str, names: list[str]) -> None:
    init_none_hash(sha256)
    seen = {name: SCENARIOS[name](model) for name in names or SCENARIOS}
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
