"""What the scheduler is told at its start: the object `paceline` of vLLM's `--additional-config`.

Anything that is wrong stops the engine with a message that names the key, before it serves: a scheduler that silently
runs without its default class would miss it for everyone. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from paceline_api.slo import STALL_PER_TPOT

from paceline_engine.request import Objective

KEY = "paceline"


class InvalidSettings(ValueError):
    """`--additional-config` cannot be followed; the message names the key."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`service` to `revision` label this engine's metrics; `default_*` is the class of requests that name no limit.

    `default_tpot_ms` 0: no default class; `default_max_stall_ms` 0: that of its pace. `table`, `table_model` and
    `tensor` name a step-time table; without one the engine starts from a guess.
    """

    service: str = ""
    namespace: str = ""
    pool: str = ""
    role: str = "mixed"
    revision: str = ""
    default_class: str = "default"
    default_ttft_ms: float = 1000.0
    default_tpot_ms: float = 0.0
    default_max_stall_ms: float = 0.0
    table: str = ""
    table_model: str = ""
    tensor: int = 1

    @property
    def default(self) -> Objective | None:
        if not self.default_tpot_ms:
            return None
        tpot_s = self.default_tpot_ms / 1e3
        stall_s = self.default_max_stall_ms / 1e3 or STALL_PER_TPOT * tpot_s
        return Objective(self.default_class, self.default_ttft_ms / 1e3, tpot_s, stall_s)


def read_settings(additional_config: Mapping[str, Any]) -> Settings:
    """InvalidSettings for an unknown key, a wrong type or a negative number."""
    given = additional_config.get(KEY, {})
    if not isinstance(given, dict):
        raise InvalidSettings(f"--additional-config: {KEY} must be an object, got {given!r}")
    defaults = {f.name: f.default for f in fields(Settings)}
    for key, value in given.items():
        if key not in defaults:
            raise InvalidSettings(f"--additional-config: {KEY} knows no {key!r}; there are: {', '.join(defaults)}")
        if isinstance(defaults[key], str):
            right = isinstance(value, str)
        else:
            whole = isinstance(defaults[key], int)
            right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and value >= 0
        if not right:
            kind = "a text" if isinstance(defaults[key], str) else "a number of 0 or more"
            raise InvalidSettings(f"--additional-config: {KEY}.{key} must be {kind}, got {value!r}")
    return Settings(**given)
