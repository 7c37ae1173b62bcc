"""What the router follows in Kubernetes: slices, pools and its own service, also where it may not read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from factories_members import Parts, make_endpoint, make_member, make_pool, make_slice
from paceline_api.config import KubernetesDiscovery
from paceline_router.console.scaling import FORBIDDEN, GONE, Scaling, scaling_of
from paceline_router.discovery import follow
from paceline_router.kube import Changed, Forbidden, Listed, Unreachable
from paceline_router.service_watch import follow_pools, follow_service

Json = dict[str, Any]


# --- what the router does with it
class Script:
    """A Kubernetes whose watch tells what a test puts in; its lists fail as `refusals` say, one by one."""

    def __init__(self, *refusals: Exception) -> None:
        self.events: asyncio.Queue[Listed | Changed] = asyncio.Queue()
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        self.refusals = list(refusals)

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> Listed:
        if self.refusals:
            raise self.refusals.pop(0)
        return Listed((), "1")

    async def watch(self, path: str, params: Mapping[str, str] | None = None) -> AsyncIterator[Listed | Changed]:
        self.asked.append((path, params or {}))
        while True:
            yield await self.events.get()
            self.events.task_done()


def test_it_watches_the_slices_of_its_service_and_follows_each_event() -> None:
    async def body() -> None:
        script, parts = Script(), Parts()
        discovery = KubernetesDiscovery(namespace="llm", service="chat")
        task = asyncio.create_task(follow(script, discovery, parts.membership))
        one, two = make_slice("s", make_endpoint("a")), make_slice("t", make_endpoint("b"))
        for event, present in (
            (Listed((one,), "1"), {"a"}),
            (Changed("ADDED", two), {"a", "b"}),
            (Changed("MODIFIED", make_slice("s")), {"b"}),
            (Changed("DELETED", two), set()),
            (Listed((one, two), "9"), {"a", "b"}),
        ):
            script.events.put_nowait(event)
            await asyncio.sleep(0)
            await script.events.join() if script.events.qsize() else None
            async with asyncio.timeout(2):
                while set(parts.ledger.replicas) != present:  # noqa: ASYNC110 - the reader of the queue is another task
                    await asyncio.sleep(0)
        task.cancel()
        assert script.asked == [
            (
                "/apis/discovery.k8s.io/v1/namespaces/llm/endpointslices",
                {"labelSelector": "paceline.dev/service=chat,paceline.dev/pool"},
            )
        ]

    asyncio.run(body())


DISCOVERY = KubernetesDiscovery(namespace="llm", service="chat")


async def turns(count: int = 20) -> None:
    """Lets the other tasks do what they can without waiting for time to pass."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_it_follows_the_pools_of_its_service() -> None:
    async def body() -> None:
        script, parts = Script(), Parts()
        parts.apply(make_member("a"), make_member("b"), make_member("x", pool="q"))
        task = asyncio.create_task(follow_pools(script, DISCOVERY, parts.membership))
        for event, active in (
            (Listed((make_pool("p", "a"), make_pool("q", None)), "1"), ["b", "x"]),
            (Changed("MODIFIED", make_pool("q", "x")), ["b"]),
            (Changed("MODIFIED", make_pool("p", "b")), ["a"]),
            (Changed("DELETED", make_pool("q", "x")), ["a", "x"]),
            (Listed((make_pool("p", None),), "9"), ["a", "b", "x"]),
        ):
            script.events.put_nowait(event)
            await turns()
            assert parts.active() == active
        task.cancel()
        path = "/apis/paceline.dev/v1alpha1/namespaces/llm/enginepools"
        assert script.asked == [(path, {"labelSelector": "paceline.dev/service=chat"})]

    asyncio.run(body())


def test_it_follows_what_its_service_says() -> None:
    async def body() -> None:
        script, told = Script(Unreachable("away")), list[Scaling]()
        task = asyncio.create_task(follow_service(script, DISCOVERY, told.append))
        decision = {"time": "2026-01-01T00:00:00Z", "pool": "p", "from": 1, "to": 2}
        service = {"metadata": {"name": "chat"}, "status": {"decisions": [decision]}}
        for event, expected in (
            (Listed((), "1"), GONE),
            (Changed("ADDED", service), scaling_of(service)),
            (Changed("DELETED", service), GONE),
            (Listed((service,), "9"), scaling_of(service)),
        ):
            script.events.put_nowait(event)
            await turns()
            assert told.pop() == expected
        assert not told
        task.cancel()
        path = "/apis/paceline.dev/v1alpha1/namespaces/llm/llmservices"
        assert script.asked == [(path, {"fieldSelector": "metadata.name=chat"})]

    asyncio.run(body())


def test_what_it_may_not_read_is_said_once_and_asked_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline_router.service_watch.ASK_AGAIN_S", 0)

    async def body() -> None:
        refusal = Forbidden(403, "Forbidden", "no")
        script, told, parts = Script(*[refusal] * 6), list[Scaling](), Parts()
        tasks = [
            asyncio.create_task(follow_service(script, DISCOVERY, told.append)),
            asyncio.create_task(follow_pools(script, DISCOVERY, parts.membership)),
        ]
        await turns()
        assert told == [FORBIDDEN]
        assert sum("not allowed" in record.message for record in caplog.records) == 2
        assert len(script.asked) == 2  # the refusals are over
        for task in tasks:
            task.cancel()

    asyncio.run(body())
