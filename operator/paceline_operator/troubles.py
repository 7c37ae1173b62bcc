"""Why pods are not ready, in the kubelet's and the scheduler's own words: what a person has to act on.

A missing Secret, an image that cannot be pulled and a crash show in the status of the pod; nothing else is asked. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
    found = [t for pod in pods if not pod["metadata"].get("deletionTimestamp") for t in _of_pod(pod)]
    return next((t for t in found if t.failing), found[0] if found else None)


def _of_pod(pod: Mapping[str, Any]) -> Iterator[Trouble]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if status.get("phase") == "Failed":
        yield _trouble(name, status.get("reason") or "Failed", status.get("message"), failing=True)
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        yield from _of_container(name, container)
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield _trouble(name, condition.get("reason") or "Unschedulable", condition.get("message"), failing=False)


def _of_container(pod: str, container: Mapping[str, Any]) -> Iterator[Trouble]:
    state = container.get("state") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    last = (container.get("lastState") or {}).get("terminated") or {}
    reason = waiting.get("reason", "")
    if reason == "CrashLoopBackOff" and last:  # the message counts seconds; how it ended says more and changes less
        yield _trouble(pod, reason, _ending(container, last), failing=True)
    elif reason in FAILING:
        yield _trouble(pod, reason, waiting.get("message"), failing=True)
    elif ended and ended.get("exitCode") != 0:
        yield _trouble(pod, "Terminated", _ending(container, ended), failing=True)


def _ending(container: Mapping[str, Any], ended: Mapping[str, Any]) -> str:
    why = ended.get("message") or ended.get("reason") or ""
    return f"{container.get('name')} exited with {ended.get('exitCode')} ({why}); see kubectl logs --previous"


def _trouble(pod: str, reason: str, message: str | None, *, failing: bool) -> Trouble:
    text = " ".join((message or "").split())[:MAX_TEXT]
    return Trouble(pod, f"{reason}: {text}" if text else reason, failing)


def lacks_secret(pods: Iterable[Mapping[str, Any]], secret: str) -> bool:
    """Whether the kubelet misses that very Secret for one of the pods."""
    texts = (str(t) for pod in pods for t in _of_pod(pod) if t.failing)
    return any(f'secret "{secret}" not found' in text for text in texts)
