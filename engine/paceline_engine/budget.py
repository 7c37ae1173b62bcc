"""How large a step may grow, and how long it should be: arithmetic on the step-time model.

The limits themselves are the policy's (`policies/stall_free.py`). A chunk that does not finish its prompt ends on a
tile, so that no partial tile is computed twice (Sarathi-Serve §4.3). Invariant: a chunk that is not 0 keeps the
predicted step within its limit. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline_engine.step_time import StepTimeModel

NO_SPEED = 1e-9  # tokens a second, where not even a tile fits


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


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a step with prefills should be, and how many prefill tokens a second come of it in the long run."""

    step_s: float
    tokens_per_s: float


SAME_SPEED = 0.97  # long steps that compute so much of what even ones do are preferred: they serve earlier


def best_pace(
    load: StepLoad,
    model: StepTimeModel,
    work: int,
    even_s: float,
    limit_s: float,
    decode_s: float,
    room: int,
    tile: int,
) -> Pace:
    """The better of two ways to compute `work` prefill tokens beside `load`: even steps, or steps up to the limit.

    All decodes keep their mean at steps of `even_s`, and at longer ones if decode-only steps of `decode_s` make up for
    them. Weights are read once a step, so even steps use a small machine better; where a mixed step costs much more
    than its decodes, long ones do.
    """
    tokens = largest_chunk(load, model, 0, work, even_s, room, tile)
    if tokens and (tokens in (work, room) or limit_s <= even_s):
        return Pace(even_s, tokens / load.seconds(model, tokens))
    most = largest_chunk(load, model, 0, work, limit_s, room, tile)
    if not most:
        return Pace(even_s, NO_SPEED)
    long_s = load.seconds(model, most)
    cycle_s = even_s * (long_s - decode_s) / max(even_s - decode_s, 1e-6) if long_s > even_s else long_s
    if tokens and most / cycle_s < SAME_SPEED * tokens / even_s:
        return Pace(even_s, tokens / even_s)
    return Pace(limit_s, most / cycle_s)
