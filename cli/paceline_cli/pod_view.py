"""What a pod says of itself: whether it serves, and in a sentence what keeps it from that. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline_router.endpoints import POOL_LABEL, REVISION_LABEL

Json = Mapping[str, Any]

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


def read_pod(pod: Json) -> PodView:
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = metadata.get("labels") or {}
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    return PodView(
        name=metadata["name"],
        pool=labels.get(POOL_LABEL, ""),
        revision=labels.get(REVISION_LABEL, ""),
        node=(pod.get("spec") or {}).get("nodeName", ""),
        ready=conditions.get("Ready", {}).get("status") == "True",
        terminating="deletionTimestamp" in metadata,
        restarts=sum(container.get("restartCount", 0) for container in containers),
        problem=_problem(status, conditions, containers),
    )


def _problem(status: Json, conditions: Mapping[str, Json], containers: Sequence[Json]) -> str:
    """The first that there is, in the order in which a pod comes to life."""
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return _sentence(scheduled)
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        ended = (container.get("lastState") or {}).get("terminated") or (container.get("state") or {}).get("terminated")
        failed = ended if ended and ended.get("exitCode") else None
        if waiting.get("reason", STARTING[0]) not in STARTING and not (failed and _is_crash(waiting)):
            return _sentence(waiting)
        if failed:
            why = failed.get("message") or failed.get("reason") or "Error"
            return f"{container['name']} exited with {failed['exitCode']} ({why})"
    return _sentence(status) if status.get("phase") == "Failed" else ""


def _is_crash(waiting: Json) -> bool:
    """Its message is the name of the pod; how the container ended says more."""
    return waiting.get("reason") == "CrashLoopBackOff"


def _sentence(said: Json) -> str:
    return ": ".join(filter(None, (said.get("reason", ""), said.get("message", "")))) or "failed"
