"""What a request is expected to need, and by when: its own limits, and what the last answers of its class were like.

Router and simulator both ask here, so both decide from the same figures. Invariant: no more output is reserved than the
request may have. Lengths are tokens, times model seconds. Pure.
"""

from __future__ import annotations

from paceline_api.slo import SLOClass
from paceline_engine.lengths import OutputLengths

from paceline_router.replica import OUTPUT_QUANTILE, Size


def expected_size(
    slo: SLOClass,
    lengths: OutputLengths,
    arrival_s: float,
    prompt_tokens: int,
    most_tokens: int,
    prefix: tuple[int, ...] = (),
) -> Size:
    """Of one that arrives at `arrival_s` under `slo` and ends after at most `most_tokens`; `prefix` as in Size."""
    return Size(
        prompt_tokens,
        min(most_tokens, lengths.remaining(slo.name, 0, OUTPUT_QUANTILE)),
        arrival_s + slo.ttft_limit_s(prompt_tokens),
        slo.tpot_s,
        lengths.remaining(slo.name, 0),
        prefix,
    )
