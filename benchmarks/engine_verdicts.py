"""Ratios of two sides that were measured in pairs, with their 95 % intervals, and the verdict on a bound.

A ratio passes on the lower end of its interval, fails on the upper one, else is undecided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from rich.console import Console

RESAMPLES = 2000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A ratio with its 95 % interval, and the bound it has to keep: at most, or at least."""

    name: str
    value: float
    low: float
    high: float
    bound: float
    at_most: bool
    busy: bool = False  # the machine was too busy to judge

    @property
    def word(self) -> str:
        if self.busy:
            return "busy"
        if self.at_most:
            return "pass" if self.high <= self.bound else "fail" if self.low > self.bound else "undecided"
        return "pass" if self.low >= self.bound else "fail" if self.high < self.bound else "undecided"

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{self.word:>9}  {self.name}: {self.value:.3f} [{self.low:.3f}, {self.high:.3f}], {sign} {self.bound}"


def ratio(
    name: str,
    over: Sequence[T],
    under: Sequence[T] | float,
    of: Callable[[Sequence[T]], float],
    bound: float,
    *,
    at_most: bool = False,
) -> Verdict:
    """`of` the one by `of` the other, both sides' rounds drawn anew together: they were measured in pairs."""
    rng, count = Random(0), len(over)

    def value(chosen: Sequence[int]) -> float:
        below = under if isinstance(under, float) else of([under[i] for i in chosen])
        return of([over[i] for i in chosen]) / max(below, 1e-9)

    drawn = sorted(value(rng.choices(range(count), k=count)) for _ in range(RESAMPLES))
    low, high = drawn[RESAMPLES * 25 // 1000], drawn[RESAMPLES * 975 // 1000]
    return Verdict(name, value(range(count)), low, high, bound, at_most)


def tell(verdicts: Sequence[Verdict], console: Console) -> None:
    for verdict in verdicts:
        console.print(str(verdict), highlight=False)
