"""A scheduler of vLLM's, ours or its own, on a fake machine and a fake clock: no engine, no weights, no kernels.

For a process in the environment of `make vllm`. A step takes 4 ms and 0.2 ms a token; a pipeline's stages share it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from paceline_engine.vllm.scheduler import stall_free
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    LoRAConfig,
    ModelConfig,
    SchedulerConfig,
    SpeculativeConfig,
    VllmConfig,
)
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK = 16
STEP_S, TOKEN_S = 0.004, 0.0002
FIRST = (16, 64, 256, 1000, 3000)  # prompts before any objective: what the machine is like


def make(
    model: str,
    *,
    ours: bool,
    ahead: bool = False,
    blocks: int = 4096,
    seqs: int = 32,
    stages: int = 1,
    drafts: int = 0,
    loras: int = 0,
    chunked: bool = True,
) -> Any:
    """A scheduler with its KV pool and nothing behind it; `drafts` are guessed tokens of each decode.

    `loras` is how many adapters a step may hold.
    """
    guess = {"method": "ngram", "num_speculative_tokens": drafts, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    config = VllmConfig(
        lora_config=LoRAConfig(max_lora_rank=8, max_loras=loras) if loras else None,
        speculative_config=SpeculativeConfig(**guess) if drafts else None,
        model_config=ModelConfig(model=model, dtype="bfloat16", seed=0, max_model_len=8192),
        scheduler_config=SchedulerConfig(
            max_num_seqs=seqs,
            max_num_batched_tokens=2048 if chunked else 8192,
            max_model_len=8192,
            enable_chunked_prefill=chunked,
            is_encoder_decoder=False,
        ),
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=True),
        device_config=DeviceConfig("cpu"),
    )
    config.scheduler_config.async_scheduling = ahead  # the CPU platform would say no; the scheduler does not mind
    config.parallel_config.pipeline_parallel_size = stages  # nor are there so many processes
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
    stages: int = 1
    now: float = 0.0
    free_s: list[float] = field(default_factory=list)  # when each stage is
    flights: deque[tuple[Any, list[str], float]] = field(default_factory=deque)
    log: list[dict[str, int]] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    preempted: int = 0
    unplaced: int = 0  # requests in no queue of vLLM, or in two, summed over steps
    accepted: random.Random | None = None  # decides how many of the drafts hold, where there are any

    def __post_init__(self) -> None:
        self.scheduler._clock = lambda: self.now
        self.free_s = [0.0] * self.stages
        self.hasher = get_request_block_hasher(BLOCK, sha256)
        self.started = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def add(
        self,
        id_: str,
        prompt: int,
        output: int,
        xargs: Mapping[str, float] | None = None,
        seed: int = 0,
        adapter: int = 0,
    ) -> None:
        rng = random.Random(f"{id_}{seed}")
        params = SamplingParams(max_tokens=output, ignore_eos=True, extra_args=dict(xargs) if xargs else None)
        params.update_from_generation_config({}, 2)
        request = Request(
            request_id=id_,
            prompt_token_ids=[rng.randrange(8000) for _ in range(prompt)],
            sampling_params=params,
            pooling_params=None,
            block_hasher=self.hasher,
            lora_request=LoRARequest(f"adapter{adapter}", adapter, "/none") if adapter else None,
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
            self.fly(output)
            if len(self.flights) < self.depth:
                return
        if self.flights:
            self.land()
        elif s.has_unfinished_requests():
            self.now += 0.001

    def fly(self, output: Any) -> None:
        """The step goes through the stages, each behind the one before it."""
        emits = [i for i in output.num_scheduled_tokens if not self.scheduler.requests[i].is_prefill_chunk]
        part_s, at = (STEP_S + TOKEN_S * output.total_num_scheduled_tokens) / self.stages, self.now
        for stage, free_s in enumerate(self.free_s):
            self.free_s[stage] = at = max(at, free_s) + part_s
        self.flights.append((output, emits, at))

    def land(self) -> None:
        output, emits, end_s = self.flights.popleft()
        self.now = max(self.now, end_s)
        ids = list(output.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={id_: k for k, id_ in enumerate(ids)},
            sampled_token_ids=[[7] * self._sampled(output, id_) if id_ in emits else [] for id_ in ids],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        for client in self.scheduler.update_from_output(output, result).values():
            for out in client.outputs:
                self.times[out.request_id] += [self.now] * len(out.new_token_ids)
        if self.accepted:
            self.scheduler.update_draft_token_ids(
                DraftTokenIds(ids, [[7] * self.scheduler.num_spec_tokens for _ in ids])
            )

    def _sampled(self, output: Any, id_: str) -> int:
        drafts = len(output.scheduled_spec_decode_tokens.get(id_, ()))
        return 1 + self.accepted.randint(0, drafts) if self.accepted else 1

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
