"""What the status of a pod says, read once for all who tell people about pods (the operator's conditions, `paceline
status`): whether it serves, what its containers wait for, how they ended. Pure.

Nothing is judged here. Invariant: a status that the kubelet has not written yet reads as a pod of which nothing is
known, never as an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """The kubelet's or the scheduler's own words; either may be empty."""

    reason: str
    message: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.reason, self.message)))


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended."""

    code: int
    why: str


@dataclass(frozen=True, slots=True)
class Container:
    """`ended`: it is not running; `last`: how the run before ended."""

    name: str
    waiting: Said | None
    ended: Exit | None
    last: Exit | None
    restarts: int

    @property
    def loops(self) -> bool:
        """The kubelet waits before it starts it again: how it ended says more than the waiting does."""
        return self.waiting is not None and self.waiting.reason == "CrashLoopBackOff"

    def exited(self, how: Exit) -> str:
        return f"{self.name} exited with {how.code} ({how.why})"


@dataclass(frozen=True, slots=True)
class PodState:
    """`failed`: the whole pod has, such as by an eviction; `unscheduled`: what the scheduler says of a pod without a
    node; `containers`: init containers first."""

    name: str
    labels: Mapping[str, str]
    node: str
    ready: bool
    terminating: bool
    failed: Said | None
    unscheduled: Said | None
    containers: tuple[Container, ...]


def read_pod(pod: Json) -> PodState:
    """Of a v1 Pod as the API server gives it."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled") or {}
    containers = (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
    return PodState(
        name=metadata["name"],
        labels=metadata.get("labels") or {},
        node=(pod.get("spec") or {}).get("nodeName") or "",
        ready=(conditions.get("Ready") or {}).get("status") == "True",
        terminating=bool(metadata.get("deletionTimestamp")),
        failed=_said(status) if status.get("phase") == "Failed" else None,
        unscheduled=_said(scheduled) if scheduled.get("status") == "False" else None,
        containers=tuple(map(_container, containers)),
    )


def _container(status: Json) -> Container:
    state, before = status.get("state") or {}, status.get("lastState") or {}
    waiting = state.get("waiting")
    return Container(
        name=status.get("name") or "",
        waiting=None if waiting is None else _said(waiting),
        ended=_exit(state.get("terminated")),
        last=_exit(before.get("terminated")),
        restarts=status.get("restartCount") or 0,
    )


def _said(part: Json) -> Said:
    return Said(part.get("reason") or "", part.get("message") or "")


def _exit(terminated: Json | None) -> Exit | None:
    if not terminated:
        return None
    why = terminated.get("message") or terminated.get("reason") or "Error"
    return Exit(terminated.get("exitCode") or 0, why)
