"""Fairness between tenants: whose turn it is, what is remembered, and how a tenant is told from another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_router.admission import LONGEST_TENANT, tenant
from paceline_router.fairness import FORGET_FROM, TokenShares
from paceline_router.waiting import Claim, Fate, Prospect, WaitingRoom

LARGEST = 1000


@given(st.lists(st.tuples(st.integers(1, LARGEST), st.integers(1, LARGEST)), min_size=1, max_size=60))
def test_tenants_that_wait_all_the_time_are_served_alike_up_to_the_largest_request(
    sizes: list[tuple[int, int]],
) -> None:
    shares, served = TokenShares(), {"a": 0, "b": 0}
    for name in served:
        shares.come(name, served.keys() - {name})
    for a, b in sizes:
        turn = shares.next_of(("a", "b"))
        tokens = a if turn == "a" else b
        shares.serve(turn, tokens)
        served[turn] += tokens
        assert abs(served["a"] - served["b"]) <= LARGEST


def test_idle_time_is_not_saved_up() -> None:
    shares = TokenShares()
    shares.come("busy", ())
    for _ in range(10):
        shares.serve("busy", 500)
    shares.come("new", {"busy"})
    shares.serve("new", 1)
    assert shares.next_of({"busy", "new"}) == "busy"


def test_once_nobody_waits_all_begin_anew() -> None:
    shares = TokenShares()
    shares.serve("a", 5000)
    shares.come("b", ())
    assert len(shares) == 1
    shares.come("a", {"b"})
    assert shares.next_of({"a", "b"}) == "a"


def test_names_that_come_once_are_forgotten() -> None:
    shares = TokenShares()
    shares.come("stays", ())
    for i in range(20 * FORGET_FROM):
        shares.come(f"t{i}", {"stays"})
        shares.serve(f"t{i}", 10)
        shares.serve("stays", 10)
    assert len(shares) <= FORGET_FROM + 1


def test_in_a_waiting_room_tenants_take_turns() -> None:
    room: WaitingRoom[str] = WaitingRoom({})
    for i in range(4):
        room.enter(f"big{i}", Claim("chat", 10.0 + i, "big", 100))
    room.enter("small", Claim("chat", 20.0, "small", 100))
    order = []
    while (left := room.release(lambda _: Prospect(0.0, 0.1), 0.0)) is not None:
        assert left.fate is Fate.SERVE
        order.append(left.what)
    assert order == ["big0", "small", "big1", "big2", "big3"]


TENANTS = [
    ("its own name", (b"acme", b"gateway", b"Bearer x"), "acme"),
    ("what a gateway says", (None, b"gateway", b"Bearer x"), "gateway"),
    ("nobody in particular", (None, None, None), ""),
    ("an empty name is none", (b"", b"gateway", None), "gateway"),
    ("a long name is cut", (b"x" * 100, None, None), "x" * LONGEST_TENANT),
    ("any bytes", (b"\xff", None, None), "\xff"),
]


@pytest.mark.parametrize(("named", "whose"), [c[1:] for c in TENANTS], ids=[c[0] for c in TENANTS])
def test_whose_request_it_is(named: tuple[bytes | None, ...], whose: str) -> None:
    assert tenant("", *named) == whose


def test_keys_are_told_apart_and_not_kept() -> None:
    one, other = (tenant("", None, None, key) for key in (b"Bearer sk-one", b"Bearer sk-other"))
    assert one != other
    assert "sk" not in one
    assert one == tenant("", None, None, b"Bearer sk-one")
