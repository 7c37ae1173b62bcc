"""What a pod says of itself: whether it serves, and in a sentence what keeps it from that. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline_router.endpoints import POOL_LABEL, REVISION_LABEL
from paceline_router.pod_state import Json, PodState, read_pod

MOST_PODS_NAMED = 3
STARTING = ("ContainerCreating", "PodInitializing")


@dataclass(frozen=True, slots=True)
class PodView:
    """`pool` is empty for a router. `problem` is empty while there is nothing to tell but that it starts."""

    name: str
    pool: str
    revision: str
    node: str
    ready: bool
    terminating: bool
    restarts: int
    problem: str


def pod_causes(pods: Sequence[PodView], told: str) -> list[str]:
    """One for each problem that the operator has not told already, with the pods that have it."""
    with_problem: dict[str, list[str]] = {}
    for pod in pods:
        if pod.problem and not pod.ready and not pod.terminating and pod.problem not in told:
            with_problem.setdefault(pod.problem, []).append(pod.name)
    return [f"{_named(names)}: {problem}" for problem, names in with_problem.items()]


def _named(names: Sequence[str]) -> str:
    more = len(names) - MOST_PODS_NAMED
    listed = ", ".join(names[:MOST_PODS_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"pod{'s' if len(names) > 1 else ''} {listed}"


def view_pod(pod: Json) -> PodView:
    """Of a v1 Pod as the API server gives it."""
    state = read_pod(pod)
    return PodView(
        name=state.name,
        pool=state.labels.get(POOL_LABEL, ""),
        revision=state.labels.get(REVISION_LABEL, ""),
        node=state.node,
        ready=state.ready,
        terminating=state.terminating,
        restarts=sum(container.restarts for container in state.containers),
        problem=_problem(state),
    )


def _problem(pod: PodState) -> str:
    """The first that there is, in the order in which a pod comes to life."""
    if pod.unscheduled:
        return str(pod.unscheduled) or "Unschedulable"
    for container in pod.containers:
        ended = container.last or container.ended
        failed = ended if ended and ended.code else None
        waits = container.waiting
        if waits and waits.reason and waits.reason not in STARTING and not (failed and container.loops):
            return str(waits)
        if failed:
            return container.exited(failed)
    return (str(pod.failed) or "failed") if pod.failed else ""
