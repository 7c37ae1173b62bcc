"""Keeps NIXL's worker from pinning a CPU engine to one core.

vLLM 0.32 keeps the last core of each NUMA node for KV transfers, and to that end gives its worker's thread those cores
alone. Where the worker computes in that very thread (VLLM_ENABLE_V1_MULTIPROCESSING=0), each engine of a machine with
one node then computes on the last core, the same for all of them. Invariant: nothing but that reservation differs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def leave_unpinned() -> None:
    """Says that there are no cores to keep, which is asked for nothing else. Nothing happens where there is a GPU."""
    try:
        platform: Any = import_module("vllm.platforms").current_platform
    except ImportError:
        return
    if platform.is_cpu():
        type(platform).discover_numa_topology = classmethod(lambda cls: [])
