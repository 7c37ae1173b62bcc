"""How large a step may grow: the largest chunk of a prefill that keeps the predicted step within a time limit.

The limit itself is the policy's (`policies/stall_free.py`); here is the arithmetic on the step-time model. A chunk that
does not finish its prompt ends on a tile, so that no partial tile is computed twice (Sarathi-Serve §4.3). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline_engine.step_time import StepTimeModel


@dataclass(slots=True)
class StepLoad:
    """The step that is being composed, in the four numbers that its time depends on."""

    decodes: int = 0
    decode_context: int = 0
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0

    def add(self, chunk: int, context: int) -> None:
        self.prefill_tokens += chunk
        self.prefill_pairs += chunk * (context + chunk / 2)

    def seconds(self, model: StepTimeModel, chunk: int = 0, context: int = 0) -> float:
        """Predicted time of this step with `chunk` more prefill tokens after `context` computed ones."""
        pairs = self.prefill_pairs + chunk * (context + chunk / 2)
        return model.predict4(self.prefill_tokens + chunk, pairs, self.decodes, self.decode_context)


def largest_chunk(
    load: StepLoad, model: StepTimeModel, context: int, left: int, limit_s: float, room: int, tile: int
) -> int:
    """Tokens of a prefill with `left` to go that fit `load` within `limit_s` and `room`; 0 when not one tile does.

    The prediction is monotone in the chunk, so a bisection over whole tiles finds it in about ten evaluations.
    """
    whole = min(left, room)
    if whole <= 0:
        return 0
    if load.seconds(model, whole, context) <= limit_s:
        return whole if whole == left else _on_tile(load, whole, tile)
    base = load.decodes + load.prefill_tokens
    first = tile - base % tile  # the smallest chunk that ends on a tile
    low, high = -1, (whole - first) // tile + 1  # in tiles beyond `first`: low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        if load.seconds(model, first + middle * tile, context) <= limit_s:
            low = middle
        else:
            high = middle
    return first + low * tile if low >= 0 else 0


def _on_tile(load: StepLoad, chunk: int, tile: int) -> int:
    """`chunk` cut so that the whole step ends on a tile, unless it is less than one."""
    over = (load.decodes + load.prefill_tokens + chunk) % tile
    return chunk - over if chunk > over else chunk
