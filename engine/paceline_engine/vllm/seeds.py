"""Lets a CPU engine prefill a prompt that has a `seed` in chunks: an entry point of vLLM's plugins.

A step draws a token for each of its requests and throws away what a partial prefill drew. vLLM 0.32 then steps that
request's generator back, which only a GPU's can: on a CPU the engine ended ("CPU Generator does not use offset"). Here
such a request's generator is out of its reach for the step instead. Invariant: a generator's first number is for the
first token that counts, however the prompt was cut; on other machines nothing happens.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def keep() -> None:
    """Wraps the sampling of CPU workers, once."""
    if not import_module("vllm.platforms").current_platform.is_cpu():
        return
    runner: Any = import_module("vllm.v1.worker.cpu_model_runner").CPUModelRunner
    sample = runner.sample_tokens
    if getattr(sample, "keeps_seeds", False):
        return

    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        discards = self.discard_request_mask.np[: self.input_batch.num_reqs]
        kept = {row: generators.pop(row) for row in list(generators) if discards[row]}
        try:
            return sample(self, *args, **kwargs)
        finally:
            generators.update(kept)

    sample_tokens.__dict__["keeps_seeds"] = True
    runner.sample_tokens = sample_tokens
