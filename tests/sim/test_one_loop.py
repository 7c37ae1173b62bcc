"""In an engine that is one loop a prompt from elsewhere joins where it fits beside all that wait, itself counted."""

from __future__ import annotations

import pytest
from engines import make_replica, make_request, make_table, run_steps
from paceline_engine.request import Leg
from paceline_engine.sim.machine import MachineSpec
from paceline_engine.sim.replica import Replica

BLOCK = 16
BLOCKS = 200  # 5 % are 10


def make_decoder(used_blocks: int, *, one_loop: bool = True) -> Replica:
    """A decode engine of BLOCKS blocks in which one request runs."""
    spec = MachineSpec(make_table(), tile_tokens=1, noise_ratio=0.0, stall_probability=0.0, one_loop=one_loop)
    replica = make_replica("decode-only", kv_blocks=BLOCKS, machine=spec)
    replica.submit(make_request("runs", prompt_tokens=BLOCK * used_blocks - 2, max_tokens=2, leg=Leg.DECODE))
    assert replica.next_transfer() is not None
    replica.kv_arrived("runs")
    return replica


@pytest.mark.parametrize(
    ("used_blocks", "waiting", "joins"),
    [
        pytest.param(179, (10,), True, id="room for twice its prompt, and for its first token"),
        pytest.param(180, (10,), False, id="one block less"),
        pytest.param(159, (10, 30), True, id="a prompt that holds 5 % of the pool keeps the next from being fetched"),
        pytest.param(168, (6, 20), False, id="the next one, fetched too, counts"),
        pytest.param(167, (6, 20), True, id="both fit, and the first once more"),
    ],
)
def test_a_prompt_joins_where_it_fits_beside_all_that_wait(
    used_blocks: int, waiting: tuple[int, ...], joins: bool
) -> None:
    replica = make_decoder(used_blocks)
    for i, blocks in enumerate(waiting):
        replica.submit(make_request(str(i), prompt_tokens=BLOCK * blocks, max_tokens=5, leg=Leg.DECODE))
    assert (replica.next_transfer() is not None) is joins


def test_an_engine_with_its_own_fetching_keeps_one_percent_free() -> None:
    replica = make_decoder(180, one_loop=False)
    replica.submit(make_request("next", prompt_tokens=BLOCK * 10, max_tokens=5, leg=Leg.DECODE))
    assert replica.next_transfer() is not None


def test_a_prompt_of_more_than_half_the_pool_runs_alone() -> None:
    replica = make_decoder(20)
    replica.submit(make_request("big", prompt_tokens=BLOCK * 150, max_tokens=5, leg=Leg.DECODE))
    assert replica.next_transfer() is None
    run_steps(replica, 0.0)
    assert replica.view.running == 0
    assert replica.next_transfer() is not None
