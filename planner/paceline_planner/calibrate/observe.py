"""Reads step times out of what an engine counts between two looks: the seconds of all gaps between its tokens.

The engine times its own tokens, so neither client nor network is in it. Medians over several looks: a stall spoils one
of them only. What a client sees decides no time, only whether a prompt was computed in one step, where the engine
leaves that open. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import numpy as np
import numpy.typing as npt

from paceline_planner.calibrate.page import Page

Times = npt.NDArray[np.float64]  # when each token of a stream arrived, ascending

MOST_STEPS = 48  # beside one joint step, before the decodes' own spread hides it
PIECE_SHARE = 0.35  # of the longest gap's excess: a second gap beyond it was part of the same prompt


def decode_s(looks: Sequence[Page]) -> float | None:
    """Seconds of a step in which the same streams decoded from look to look; None without any that went well.

    The gap that a slip stretches is counted one step after it, and so maybe in the next look.
    """
    earlier = (looks[0], *looks)
    good = [(a, b) for before, (a, b) in zip(earlier, pairwise(looks), strict=False) if before.slips == b.slips]
    good = [(a, b) for a, b in good if b.gaps > a.gaps]
    steps = [(b.gaps_s - a.gaps_s) / (b.gaps - a.gaps) for a, b in good]
    return median(steps) if steps else None


def joint_s(before: Page, after: Page, decodes: int, alone_s: float) -> float | None:
    """Seconds of the one step between two looks that a prompt shared with `decodes` streams.

    `alone_s` is what each of the other steps took; None when there were too many of them to tell, or when one slipped.
    """
    steps = (after.gaps - before.gaps) / decodes
    if not 1.0 <= steps <= MOST_STEPS or after.slips > before.slips:
        return None
    seconds = (after.gaps_s - before.gaps_s) / decodes - (steps - 1.0) * alone_s
    return seconds if seconds > alone_s else None


def timed_as_one_step(before: Page, after: Page, joint: float, alone_s: float) -> bool:
    """Whether the engine says that the prompt took no longer than its joint step: each further one takes `alone_s`.

    An engine that schedules ahead counts the step before as well; there `in_one_step` has to tell.
    """
    return after.prompts == before.prompts + 1 and after.prompts_s - before.prompts_s < joint + alone_s / 2


def prompt_s(before: Page, after: Page, cached_tokens: int) -> float | None:
    """Seconds of the one prompt between two looks; None unless just `cached_tokens` of it were cached."""
    if after.slips > before.slips:
        return None
    if before.prefix_hits is None or after.prefix_hits is None:
        return None if cached_tokens else after.prompts_s - before.prompts_s
    return after.prompts_s - before.prompts_s if after.prefix_hits - before.prefix_hits == cached_tokens else None


def in_one_step(streams: Sequence[Times], sent_s: float, first_token_s: float) -> bool:
    """Whether a prompt delayed the streams once only, between its being sent and its first token.

    That step's results, the prompt's first token among them, end the longest gap of every stream.
    """
    shares: list[float] = []
    for times in streams:
        gaps, ends = np.diff(times), times[1:]
        usual_s = float(np.median(gaps))
        near = np.sort(gaps[(ends > sent_s) & (ends <= first_token_s + usual_s / 2)])
        if not len(near) or near[-1] <= usual_s:
            return False
        second_s = float(near[-2]) if len(near) > 1 else usual_s
        shares.append((second_s - usual_s) / (float(near[-1]) - usual_s))
    return median(shares) <= PIECE_SHARE
