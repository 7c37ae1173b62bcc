"""How long and how often the contests measure: the committed form, and a quick one that shows that they work.

Values only. Windows are of arrivals after what is dropped at the beginning; times are seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline_planner.judged.measure import Window

PAST_CAPACITY = 2.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How long and how often things are measured. `look`: to choose a budget; `fine`: the capacities' resolution.

    `mixed`: a batch backlog needs its time to show. `curve`: rates as shares of the deadline-driven capacity.
    """

    look: Window
    window: Window
    mixed: Window
    long: Window
    seeds: Sequence[int]
    fine: float
    curve: Sequence[float]
    curve_window: Window


FULL = Effort(
    look=Window(30.0, 500),
    window=Window(30.0, 2000),
    mixed=Window(60.0, 2500),
    long=Window(30.0, 5000),
    seeds=(1, 2),
    fine=1.03,
    curve=(0.6, 0.9, 1.2, PAST_CAPACITY),
    curve_window=Window(30.0, 700),
)
QUICK = Effort(
    look=Window(20.0, 300),
    window=Window(30.0, 600),
    mixed=Window(30.0, 1000),
    long=Window(30.0, 2000),
    seeds=(1,),
    fine=1.05,
    curve=(0.75, 1.0, PAST_CAPACITY),
    curve_window=Window(30.0, 500),
)
