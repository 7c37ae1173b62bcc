"""An engine's work in hand: what counts, how it is told, and that the router reads what the engine says."""

from __future__ import annotations

import pytest
from engines import make_request
from hypothesis import given
from hypothesis import strategies as st
from paceline_engine.request import Leg, Objective, Request
from paceline_engine.work import CONTEXT_TOKENS, NO_WORK, PACED_REQUESTS, QUEUED_TOKENS, Work, told, work_of
from paceline_router.exposition import read
from paceline_router.facts import Facts, Role
from paceline_router.replica import Replica, Size
from paceline_router.state import Ledger


def make(leg: Leg = Leg.WHOLE, computed: int = 0, emitted: int = 0, tpot_s: float = 0.04) -> Request:
    request = make_request(prompt_tokens=100, leg=leg, objective=Objective("chat", 1.0, tpot_s, 0.12))
    request.computed_tokens, request.emitted_tokens = computed, emitted
    return request


COUNTED = [
    ("a waiting prompt", [make()], Work(100, 100, {0.04: 1})),
    ("a prompt that has begun", [make(computed=60)], Work(40, 100, {0.04: 1})),
    ("a decode", [make(computed=104, emitted=5)], Work(0, 105, {0.04: 1})),
    ("a preempted decode is no new prompt", [make(emitted=5)], Work(0, 105, {0.04: 1})),
    ("a prefill leg paces nobody", [make(Leg.PREFILL)], Work(100, 0, {})),
    ("a decode leg brings no prompt", [make(Leg.DECODE)], Work(0, 100, {0.04: 1})),
    ("limits are counted apart", [make(), make(tpot_s=0.25)], Work(200, 200, {0.04: 1, 0.25: 1})),
    ("nobody", [], NO_WORK),
]


@pytest.mark.parametrize(("requests", "work"), [c[1:] for c in COUNTED], ids=[c[0] for c in COUNTED])
def test_work_of(requests: list[Request], work: Work) -> None:
    assert work_of(requests) == work


@given(st.dictionaries(st.floats(1e-6, 1e6), st.integers(1, 9)))
def test_limits_are_told_to_two_digits_and_telling_them_again_changes_nothing(paces: dict[float, int]) -> None:
    once = told(paces)
    assert told(once) == once
    assert sum(once.values()) == sum(paces.values())
    assert all(any(abs(p - told_s) <= 0.051 * p for told_s in once) for p in paces)


def test_no_client_makes_a_decade_of_limits_longer_than_ninety() -> None:
    assert len(told({0.01 + i * 1e-5: 1 for i in range(9000)})) <= 91


PAGE = f"""{QUEUED_TOKENS}{{engine="0"}} 1200
{CONTEXT_TOKENS}{{engine="0"}} 5000
{PACED_REQUESTS}{{engine="0",tpot_seconds="0.04"}} 7
{PACED_REQUESTS}{{engine="0",tpot_seconds="0.25"}} 0
{PACED_REQUESTS}{{engine="0",tpot_seconds="inf"}} 2
"""


def test_the_router_reads_what_an_engine_tells() -> None:
    assert read(PAGE, 0.0, "m", 1).facts.work == Work(1200, 5000, {0.04: 7, float("inf"): 2})


SENSELESS = [
    ("an engine that does not tell", "", None),
    ("a queue that is no number", f"{QUEUED_TOKENS} NaN\n", None),
    ("a queue below nothing", f"{QUEUED_TOKENS} -5\n", None),
    ("a limit that is none", f'{QUEUED_TOKENS} 1\n{PACED_REQUESTS}{{tpot_seconds="x"}} 3\n', Work(1, 0, {})),
    ("a limit of nothing", f'{QUEUED_TOKENS} 1\n{PACED_REQUESTS}{{tpot_seconds="0"}} 3\n', Work(1, 0, {})),
    ("a negative count", f'{QUEUED_TOKENS} 1\n{PACED_REQUESTS}{{tpot_seconds="1"}} -3\n', Work(1, 0, {})),
]


@pytest.mark.parametrize(("page", "work"), [c[1:] for c in SENSELESS], ids=[c[0] for c in SENSELESS])
def test_what_makes_no_sense_is_not_work(page: str, work: Work | None) -> None:
    assert read(page, 0.0, "m", 1).facts.work == work


def test_a_router_takes_its_own_requests_out_whatever_their_limits() -> None:
    """12.345 ms is told as 12 ms."""
    ledger = Ledger([Replica("m0", Role.MIXED, ready=True)])
    for _ in range(2):
        ledger.first_token(ledger.begin(Size(100, 10, tpot_s=0.012345), None, "m0", 0.0), 0.0)
    theirs = [make(computed=104, emitted=5, tpot_s=0.012345) for _ in range(3)]
    ledger.learn("m0", Facts(work=work_of(theirs)))
    assert ledger.replicas["m0"].others == Work(0, 113, {0.012: 1})
    assert ledger.own == pytest.approx(2 / 3)
