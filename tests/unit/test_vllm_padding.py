"""vLLM 0.2.2's prompts: padded to the longest of their step, and kept apart where that would waste too much."""

from __future__ import annotations

import pytest
from engines import make_replica, make_request
from paceline_engine.policies.vllm_v0 import MAX_PADDINGS


@pytest.mark.parametrize(
    ("prompts", "batch"),
    [
        pytest.param((600, 600), (600, 600), id="equal prompts run together"),
        pytest.param((600, 600 - MAX_PADDINGS), (600, 600 - MAX_PADDINGS), id="256 tokens of padding are allowed"),
        pytest.param((600, 599 - MAX_PADDINGS), (600,), id="one token more, and the second waits"),
        pytest.param((300, 700), (300,), id="a longer one behind would pad the first"),
        pytest.param((600, 500, 400, 400), (600, 500), id="paddings add up over the batch"),
        pytest.param((300, 700, 300), (300,), id="first come first served: none is taken from behind one that waits"),
        pytest.param((1000, 900, 100), (1000, 900), id="the token limit of 2048 counts the padding"),
    ],
)
def test_prompts_of_a_step_are_alike(prompts: tuple[int, ...], batch: tuple[int, ...]) -> None:
    replica = make_replica("vllm-v0-padded")
    for i, tokens in enumerate(prompts):
        replica.submit(make_request(str(i), prompt_tokens=tokens))
    replica.begin(0.0)
    assert replica.batch is not None
    assert tuple(chunk for _, chunk in replica.batch.chunks) == batch
    assert replica.batch.prefill_tokens == len(batch) * max(batch)


def test_padding_takes_time() -> None:
    def seconds(policy: str) -> float:
        replica = make_replica(policy)
        for i, tokens in enumerate((600, 400)):
            replica.submit(make_request(str(i), prompt_tokens=tokens))
        found = replica.begin(0.0)
        assert found is not None
        return found

    assert seconds("vllm-v0-padded") == pytest.approx(seconds("vllm-v0") + 200 * 0.00015, rel=1e-3)
