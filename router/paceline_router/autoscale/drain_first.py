"""Which pods of a pool go first when it shrinks: those whose going costs least.

Not ready before ready, an old revision before the current one, few running requests before many, young before old; then
by name, so that the same pods are named until something changes. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PodLoad:
    """One engine pod; `running` requests on it, `created_s` on any clock shared by the pods."""

    name: str
    ready: bool
    revision_is_current: bool
    running: int
    created_s: float


def choose(pods: Sequence[PodLoad], count: int) -> tuple[str, ...]:
    """The names of the first `count` to go, the cheapest first; fewer when there are fewer pods."""
    order = sorted(pods, key=lambda pod: (pod.ready, pod.revision_is_current, pod.running, -pod.created_s, pod.name))
    return tuple(pod.name for pod in order[: max(count, 0)])
