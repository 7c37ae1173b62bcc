"""What a pod's status says, read once: the operator's conditions and `paceline status` tell the same facts."""

from __future__ import annotations

from typing import Any

import pytest
from paceline_cli.pod_view import view_pod
from paceline_operator.troubles import find_trouble
from paceline_router.pod_state import Exit, Said, read_pod

Json = dict[str, Any]


def make_pod(**status: Any) -> Json:
    return {"metadata": {"name": "a"}, "status": {"phase": "Pending", **status}}


def make_container(state: Json, **more: Any) -> Json:
    return {"name": "engine", "state": state, **more}


def waits(reason: str, message: str = "") -> Json:
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int, **why: str) -> Json:
    return {"terminated": {"exitCode": code, **why}}


@pytest.mark.parametrize("pod", [{"metadata": {"name": "a"}}, make_pod(), make_pod(conditions=None)])
def test_a_status_that_nobody_has_written_yet_says_nothing(pod: Json) -> None:
    state = read_pod(pod)
    assert (state.ready, state.terminating, state.failed, state.unscheduled) == (False, False, None, None)
    assert (state.node, state.containers, dict(state.labels)) == ("", (), {})


def test_containers_tell_what_they_wait_for_and_how_they_ended() -> None:
    status = make_container(waits("CrashLoopBackOff", "back-off"), lastState=ended(137, reason="OOMKilled"))
    (container,) = read_pod(make_pod(containerStatuses=[status | {"restartCount": 4}])).containers
    assert container.loops
    assert (container.waiting, container.last) == (Said("CrashLoopBackOff", "back-off"), Exit(137, "OOMKilled"))
    assert (container.ended, container.restarts) == (None, 4)


def test_init_containers_come_first() -> None:
    init = make_container(waits("ErrImagePull")) | {"name": "fetch"}
    pod = make_pod(containerStatuses=[make_container(waits("PodInitializing"))], initContainerStatuses=[init])
    assert [c.name for c in read_pod(pod).containers] == ["fetch", "engine"]


@pytest.mark.parametrize(
    ("status", "fact"),
    [
        pytest.param(
            {"containerStatuses": [make_container(waits("CreateContainerConfigError", 'secret "hf" not found'))]},
            'CreateContainerConfigError: secret "hf" not found',
            id="a missing Secret",
        ),
        pytest.param(
            {"containerStatuses": [make_container(waits("ImagePullBackOff", "no such image"))]},
            "ImagePullBackOff: no such image",
            id="an image that cannot be pulled",
        ),
        pytest.param(
            {"containerStatuses": [make_container(waits("CrashLoopBackOff"), lastState=ended(1, message="no GPU"))]},
            "engine exited with 1 (no GPU)",
            id="a crash loop",
        ),
        pytest.param(
            {"containerStatuses": [make_container(ended(2))]},
            "engine exited with 2 (Error)",
            id="an end without a word",
        ),
        pytest.param(
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3"}]},
            "Unschedulable: 0/3",
            id="no node",
        ),
        pytest.param({"phase": "Failed", "reason": "Evicted"}, "Evicted", id="an eviction"),
    ],
)
def test_operator_and_command_tell_the_same_fact(status: Json, fact: str) -> None:
    pod = make_pod(**status)
    assert view_pod(pod).problem == fact
    trouble = find_trouble([pod])
    assert trouble is not None
    assert fact in str(trouble)
