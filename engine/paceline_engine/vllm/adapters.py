"""Which waiting requests may join by their LoRA adapter: a step of vLLM holds so many, and a plan should know.

vLLM 0.32 goes past a request whose adapter finds no place beside those that run; a plan that counts on it would keep
others out for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Adapters:
    """Those of `running` requests, of which there may be `most`, and of whoever is admitted."""

    def __init__(self, running: Iterable[Any], most: int) -> None:
        self._used = {request.lora_request.lora_int_id for request in running if request.lora_request}
        self._most = most

    def admit(self, request: Any) -> bool:
        """Whether it finds a place, which it then has."""
        if not request.lora_request or request.lora_request.lora_int_id in self._used:
            return True
        if len(self._used) >= self._most:
            return False
        self._used.add(request.lora_request.lora_int_id)
        return True
