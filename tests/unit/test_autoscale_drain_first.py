"""Which pods go first when a pool shrinks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from paceline_router.autoscale.drain_first import PodLoad, choose

POD = PodLoad("pod", ready=True, revision_is_current=True, running=5, created_s=1000.0)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(replace(POD, ready=False, running=9), replace(POD, revision_is_current=False), id="not ready"),
        pytest.param(replace(POD, revision_is_current=False, running=9), replace(POD, running=0), id="an old revision"),
        pytest.param(replace(POD, running=4, created_s=1.0), replace(POD, created_s=2000.0), id="the least running"),
        pytest.param(replace(POD, created_s=2000.0), replace(POD, created_s=1.0), id="the youngest"),
        pytest.param(replace(POD, name="a"), replace(POD, name="b"), id="the first by name"),
    ],
)
def test_goes_first_whatever_the_order(first: PodLoad, then: PodLoad) -> None:
    first, then = (replace(first, name="a1"), replace(then, name="b1")) if first.name != "a" else (first, then)
    assert choose([first, then], 1) == choose([then, first], 1) == (first.name,)


def test_as_many_as_asked_in_order_and_no_more_than_there_are() -> None:
    pods = [replace(POD, name=f"p{running}", running=running) for running in (7, 1, 4)]
    assert choose(pods, 2) == ("p1", "p4")
    assert choose(pods, 9) == ("p1", "p4", "p7")
    assert choose(pods, 0) == choose(pods, -1) == ()
