"""What vLLM knows of the machine and the model, as a step-time model and a tile size for the scheduler.

A named table counts where there is a GPU and such a table; everywhere else the engine starts from a guess that its
first steps put right (`guess`).
"""

from __future__ import annotations

import os

from vllm.config import ModelConfig, VllmConfig
from vllm.logger import init_logger
from vllm.platforms import current_platform

from paceline_engine.policies.step import Limits
from paceline_engine.step_time import StepTimeModel
from paceline_engine.tables import TableMissing, load_table
from paceline_engine.vllm.guess import CPU_CORE, GPU, GuessedModel, Shape, guess_table
from paceline_engine.vllm.settings import Settings

logger = init_logger(f"vllm.{__name__}")  # vLLM prints what is below its own name
CPU_TILE_TOKENS = 16  # smaller chunks cost a CPU nothing more; a GPU's tile is Limits' default


def tile_tokens() -> int:
    return CPU_TILE_TOKENS if current_platform.is_cpu() else Limits().tile_tokens


def step_times(settings: Settings, config: VllmConfig) -> StepTimeModel:
    """On the named table, or on a guess from the model's shape."""
    is_cpu = current_platform.is_cpu()
    if settings.table and not is_cpu:
        try:
            return StepTimeModel(load_table(settings.table, settings.table_model, settings.tensor))
        except TableMissing as e:
            logger.warning("paceline: %s; starting from a guess", e)
    model, cache = config.model_config, config.cache_config
    devices = config.parallel_config.tensor_parallel_size * (_cores() if is_cpu else 1)
    kv_tokens = cache.num_gpu_blocks * cache.block_size
    name = str(model.served_model_name)
    return GuessedModel(guess_table(_shape(model), CPU_CORE if is_cpu else GPU, name, devices, kv_tokens))


def _shape(model: ModelConfig) -> Shape:
    text = model.hf_text_config
    hidden = model.get_hidden_size()
    return Shape(
        layers=text.num_hidden_layers,
        hidden=hidden,
        heads=text.num_attention_heads,
        kv_heads=model.get_total_num_kv_heads(),
        head_dim=model.get_head_size(),
        intermediate=getattr(text, "intermediate_size", None) or 4 * hidden,
    )


def _cores() -> int:
    """Cores that a step is computed on: what OpenMP is told, or all of this process."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) else len(os.sched_getaffinity(0))
