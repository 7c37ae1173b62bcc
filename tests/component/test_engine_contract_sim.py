"""The simulated engine keeps the contract of support/engine_contract.py, each check on a fresh one."""

from __future__ import annotations

import pytest
from engine_contract import ALONE, APART
from sim_engine import engines, run

FLAGS = ("--lease-s=10",)  # half a second of the wall
PREFILL, DECODE = (*FLAGS, "--role=prefill"), (*FLAGS, "--role=decode")


@pytest.mark.parametrize("check", ALONE)
def test_one_engine(check: str) -> None:
    async def work() -> None:
        async with engines(("--role=mixed",)) as (peer,):
            await ALONE[check](peer)

    run(work)


@pytest.mark.parametrize("check", APART)
def test_prefill_and_decode(check: str) -> None:
    async def work() -> None:
        async with engines(PREFILL, DECODE) as (prefill, decode):
            await APART[check](prefill, decode)

    run(work)
