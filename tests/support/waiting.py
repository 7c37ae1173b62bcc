"""Waiting, in a test, for what becomes true by itself and sets no event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], object], timeout_s: float = 10.0) -> None:
    """TimeoutError where it does not come to hold."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110  # what is waited for knows nothing of events
            await asyncio.sleep(0.002)
