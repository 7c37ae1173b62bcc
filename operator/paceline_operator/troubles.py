"""Why pods are not ready, in the kubelet's and the scheduler's own words: what a person has to act on.

A missing Secret, an image that cannot be pulled and a crash show in the status of the pod; nothing else is asked. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paceline_router.pod_state import Container, PodState, Said, read_pod

# Waiting reasons that do not pass by themselves (kubelet, pkg/kubelet/container and pkg/kubelet/images).
FAILING = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "CrashLoopBackOff",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
    "StartError",
}
MAX_TEXT = 400
LOGS = "; see kubectl logs --previous"


@dataclass(frozen=True, slots=True)
class Trouble:
    """`failing`: someone has to act; otherwise it may pass, such as a wait for a node."""

    pod: str
    text: str
    failing: bool

    def __str__(self) -> str:
        return f"pod {self.pod}: {self.text}"


def find_trouble(pods: Iterable[Mapping[str, Any]]) -> Trouble | None:
    """The first that needs someone, else the first of any; pods that are going are left alone."""
    found = [t for pod in map(read_pod, pods) if not pod.terminating for t in _of_pod(pod)]
    return next((t for t in found if t.failing), found[0] if found else None)


def _of_pod(pod: PodState) -> Iterator[Trouble]:
    if pod.failed:
        yield _trouble(pod, pod.failed, "Failed", failing=True)
    for container in pod.containers:
        if said := _of_container(container):
            yield _trouble(pod, said, "", failing=True)
    if pod.unscheduled:
        yield _trouble(pod, pod.unscheduled, "Unschedulable", failing=False)


def _of_container(container: Container) -> Said | None:
    if container.loops and container.last:  # the message counts seconds; how it ended says more and changes less
        return Said("CrashLoopBackOff", container.exited(container.last) + LOGS)
    if container.waiting and container.waiting.reason in FAILING:
        return container.waiting
    if container.ended and container.ended.code:
        return Said("Terminated", container.exited(container.ended) + LOGS)
    return None


def _trouble(pod: PodState, said: Said, otherwise: str, *, failing: bool) -> Trouble:
    text = Said(said.reason or otherwise, " ".join(said.message.split())[:MAX_TEXT])
    return Trouble(pod.name, str(text), failing)


def lacks_secret(pods: Iterable[Mapping[str, Any]], secret: str) -> bool:
    """Whether the kubelet misses that very Secret for one of the pods."""
    texts = (str(t) for pod in map(read_pod, pods) for t in _of_pod(pod) if t.failing)
    return any(f'secret "{secret}" not found' in text for text in texts)
