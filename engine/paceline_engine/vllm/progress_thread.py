"""Makes NIXL's progress thread sleep between its rounds: an entry point of vLLM's plugins.

NIXL 1.5's Python wrapper starts that thread without a pause, and it takes a whole core of every process that has an
agent: 99 % of one per idle engine, and 3 % with a pause of 1 ms, while prefills of 4,000 tokens on two cores became
three times as fast. Without the thread, a read from an idle engine hangs. What else NIXL's worker takes of a CPU,
`cores` gives back. Invariant: nothing but that pause and those cores differs, however often vLLM loads its plugins;
where there is no NIXL nothing happens.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from paceline_engine.vllm.cores import leave_unpinned

PAUSE_US = 1000


def tame() -> None:
    """Wraps the agent class that NIXL's wrapper makes its agents of, and leaves a CPU engine its cores."""
    try:
        wrapper = import_module("nixl._api")
    except ImportError:
        return
    leave_unpinned()
    bindings: Any = sys.modules[wrapper.nixl_agent_config.__module__].nixlBind
    agent: Any = bindings.nixlAgent
    if getattr(agent, "is_tame", False):
        return

    class TameAgent(agent):  # type: ignore[misc]  # a class of NIXL's, which mypy does not see
        is_tame = True

        def __init__(self, name: str, config: Any, *args: Any) -> None:
            config.pthrDelay = PAUSE_US
            super().__init__(name, config, *args)

    bindings.nixlAgent = TameAgent
