"""vLLM's scheduler alone, ours and its own, on a fake machine and a fake clock: no engine, no weights, no kernels.

Runs inside the environment of `make vllm` as `vllm_scheduler.py MODEL SCENARIO…` and prints one JSON object: what each
scenario saw. Judging is the tests' (tests/vllm). A step takes 4 ms and 0.2 ms a token; with `ahead` two steps are in
flight, as with asynchronous scheduling on a GPU.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from paceline_engine.vllm.scheduler import stall_free
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

BLOCK = 16
STEP_S, TOKEN_S = 0.004, 0.0002
OBJECTIVES: tuple[Mapping[str, float], ...] = ({}, {"slo_tpot_ms": 15}, {"slo_tpot_ms": 40, "slo_ttft_ms": 100})
FIRST = (16, 64, 256, 1000, 3000)  # prompts before any objective: what the machine is like


def make(model: str, *, ours: bool, ahead: bool = False, blocks: int = 4096, seqs: int = 32) -> Any:
    """A scheduler with its KV pool and nothing behind it."""
    config = VllmConfig(
        model_config=ModelConfig(model=model, dtype="bfloat16", seed=0, max_model_len=8192),
        scheduler_config=SchedulerConfig(
            max_num_seqs=seqs,
            max_num_batched_tokens=2048,
            max_model_len=8192,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
        ),
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=True),
        device_config=DeviceConfig("cpu"),
    )
    config.scheduler_config.async_scheduling = ahead  # the CPU platform would say no; the scheduler does not mind
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    kv = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    factory: Callable[..., Any] = stall_free if ours else AsyncScheduler if ahead else Scheduler
    return factory(
        vllm_config=config,
        kv_cache_config=kv,
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        hash_block_size=BLOCK,
        log_stats=True,
    )


@dataclass
class Rig:
    """One engine loop around a scheduler; `now` is the clock, `log` what each step held."""

    scheduler: Any
    depth: int = 1
    now: float = 0.0
    free_s: float = 0.0
    flights: deque[tuple[Any, list[str], float]] = field(default_factory=deque)
    log: list[dict[str, int]] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    preempted: int = 0
    unplaced: int = 0  # requests in no queue of vLLM, or in two, summed over steps

    def __post_init__(self) -> None:
        self.scheduler._clock = lambda: self.now
        self.hasher = get_request_block_hasher(BLOCK, sha256)
        self.started = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def add(self, id_: str, prompt: int, output: int, xargs: Mapping[str, float] | None = None, seed: int = 0) -> None:
        rng = random.Random(f"{id_}{seed}")
        params = SamplingParams(max_tokens=output, ignore_eos=True, extra_args=dict(xargs) if xargs else None)
        params.update_from_generation_config({}, 2)
        request = Request(
            request_id=id_,
            prompt_token_ids=[rng.randrange(8000) for _ in range(prompt)],
            sampling_params=params,
            pooling_params=None,
            block_hasher=self.hasher,
        )
        self.times[id_] = []
        self.scheduler.add_request(request)

    def acquaint(self) -> None:
        """A start-up's requests, one by one."""
        for tokens in FIRST:
            self.add(f"first{tokens}", tokens, 2)
            self.run()

    def step(self) -> None:
        """Schedule one step; where the pipeline is then full, or nothing was to be done, await the oldest result."""
        s = self.scheduler
        output = s.schedule()
        self._check()
        self.preempted += len(output.preempted_req_ids)
        if output.total_num_scheduled_tokens:
            self.log.append(dict(output.num_scheduled_tokens))
            emits = [i for i in output.num_scheduled_tokens if not s.requests[i].is_prefill_chunk]
            self.free_s = max(self.now, self.free_s) + STEP_S + TOKEN_S * output.total_num_scheduled_tokens
            self.flights.append((output, emits, self.free_s))
            if len(self.flights) < self.depth:
                return
        if self.flights:
            self._land()
        elif s.has_unfinished_requests():
            self.now += 0.001

    def _land(self) -> None:
        output, emits, end_s = self.flights.popleft()
        self.now = max(self.now, end_s)
        ids = list(output.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={id_: k for k, id_ in enumerate(ids)},
            sampled_token_ids=[[7] if id_ in emits else [] for id_ in ids],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        for client in self.scheduler.update_from_output(output, result).values():
            for out in client.outputs:
                self.times[out.request_id] += [self.now] * len(out.new_token_ids)

    def _check(self) -> None:
        s = self.scheduler
        queued = [r.request_id for queue in (s.running, s.waiting, s.kv_holding_waiting) for r in queue]
        live = {i for i, r in s.requests.items() if not r.is_finished()}
        self.unplaced += len(queued) - len(set(queued)) + len(set(queued) ^ live)

    def run(self, steps: int = 20_000) -> None:
        while steps and (self.scheduler.has_unfinished_requests() or self.flights):
            self.step()
            steps -= 1

    def left_blocks(self) -> int:
        """KV blocks that are still held after everything has ended; cached ones count as free."""
        return int(self.started - self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


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
                rig.free_s = rig.now + STEP_S + TOKEN_S * output.total_num_scheduled_tokens
                emits = [i for i in output.num_scheduled_tokens if not rig.scheduler.requests[i].is_prefill_chunk]
                rig.flights.append((output, emits, rig.free_s))
                rig._land()
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
    "overhead": overhead,
    **{f"stock {mode}": partial(long_prompt, ours=False, ahead=ahead, xargs={}) for mode, ahead in MODES.items()},
    **{
        f"{name} {mode}": partial(long_prompt, ours=True, ahead=ahead, xargs=xargs)
        for mode, ahead in MODES.items()
        for name, xargs in LIMITS.items()
    },
    **{f"chaos {n} {mode}": partial(chaos, seed=n, ahead=ahead) for mode, ahead in MODES.items() for n in range(6)},
}


def main(model: str, names: list[str]) -> None:
    init_none_hash(sha256)
    seen = {name: SCENARIOS[name](model) for name in names or SCENARIOS}
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
