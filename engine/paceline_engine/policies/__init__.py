"""Batching policies by name: one file each, all behind the `Step` seam of `step.py`.

To change a policy, change its file; to add one, add a file and a line in `POLICIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from paceline_engine.lengths import OutputLengths
from paceline_engine.policies.chunked_only import ChunkedOnly
from paceline_engine.policies.decode_only import DecodeOnly
from paceline_engine.policies.orca import Orca
from paceline_engine.policies.prefill_only import PrefillOnly
from paceline_engine.policies.sarathi import Sarathi
from paceline_engine.policies.split_fuse import SplitFuse
from paceline_engine.policies.stall_free import StallFree
from paceline_engine.policies.step import Policy
from paceline_engine.policies.vllm_v0 import VLLMv0
from paceline_engine.policies.vllm_v1 import VLLMv1
from paceline_engine.step_time import StepTimeModel


@dataclass(frozen=True, slots=True)
class PolicySetting:
    """What a policy may be given; `token_budget` 0 means its default."""

    model: StepTimeModel
    lengths: OutputLengths
    token_budget: int = 0


POLICIES: Mapping[str, Callable[[PolicySetting], Policy]] = {
    "vllm-v0": lambda s: VLLMv0(),
    "vllm-v0-padded": lambda s: VLLMv0(padded=True),
    "orca": lambda s: Orca(),
    "sarathi": lambda s: Sarathi(s.token_budget or 512),
    "chunked-only": lambda s: ChunkedOnly(s.token_budget or 512),
    "vllm-v1": lambda s: VLLMv1(s.token_budget or 2048),
    "split-fuse": lambda s: SplitFuse(s.token_budget or 768),
    "prefill-only": lambda s: PrefillOnly(s.token_budget or 512),
    "decode-only": lambda s: DecodeOnly(),
    "stall-free": lambda s: StallFree(s.model, s.lengths),
}
