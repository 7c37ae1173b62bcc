"""What the watches say of LLMServices, EnginePools and pods, as the views that the autoscaler decides on.

Parsed once an event, put together once a tick. It may be behind: whoever writes checks against the API server.
Invariant: after each event the store holds exactly what the watches told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, assert_never

from paceline_api.schema import API_VERSION

from paceline_router.endpoints import SERVICE_LABEL
from paceline_router.kube import Changed, Listed, path_of
from paceline_router.scaling.objects import Pod, Pool, Service, read_pod, read_pool, read_service, view_of
from paceline_router.scaling.views import Id, ServiceView

_log = logging.getLogger(__name__)

Place = tuple[str, str, str]  # apiVersion, plural, label selector
SERVICES: Place = (API_VERSION, "llmservices", "")
POOLS: Place = (API_VERSION, "enginepools", "")
PODS: Place = ("v1", "pods", f"app.kubernetes.io/name=paceline,{SERVICE_LABEL}")
READERS: Mapping[Place, Callable[[Mapping[str, Any]], Service | Pool | Pod | None]] = {
    SERVICES: read_service,
    POOLS: read_pool,
    PODS: read_pod,
}


class Source(Protocol):
    """What the store needs of the Kubernetes client."""

    def watch(self, path: str, params: Mapping[str, str] | None = None) -> AsyncIterator[Listed | Changed]: ...


class Store:
    """`synced` is set once every kind has been listed."""

    def __init__(self) -> None:
        self._objects: dict[Place, dict[Id, Service | Pool | Pod]] = {}
        self.synced = asyncio.Event()

    def tell(self, place: Place, event: Listed | Changed) -> None:
        match event:
            case Listed(objects):
                self._objects[place] = {}
                for obj in objects:
                    self._put(place, obj)
                if len(self._objects) == len(READERS):
                    self.synced.set()
            case Changed("DELETED", obj):
                self._objects[place].pop(_id(obj), None)
            case Changed(_, obj):
                self._put(place, obj)
            case _ as never:
                assert_never(never)

    def views(self) -> list[ServiceView]:
        """Of all services, by namespace and name."""
        pools: dict[Id, list[Pool]] = {}
        pods: dict[Id, list[Pod]] = {}
        for obj in self._all(POOLS):
            if isinstance(obj, Pool):
                pools.setdefault((obj.spec.metadata.namespace, obj.spec.spec.service), []).append(obj)
        for obj in self._all(PODS):
            if isinstance(obj, Pod):
                pods.setdefault(obj.service, []).append(obj)
        found = self._objects.get(SERVICES, {})
        return [
            view_of(obj, pools.get(id_, ()), pods.get(id_, ()))
            for id_, obj in sorted(found.items(), key=lambda item: item[0])
            if isinstance(obj, Service)
        ]

    def _all(self, place: Place) -> list[Service | Pool | Pod]:
        return [obj for _, obj in sorted(self._objects.get(place, {}).items(), key=lambda item: item[0])]

    def _put(self, place: Place, obj: Mapping[str, Any]) -> None:
        try:
            read = READERS[place](obj)
        except (LookupError, TypeError, ValueError) as e:
            _log.error("not understood namespace=%s name=%s error=%r", *_id(obj), e)
            read = None
        if read is None:
            self._objects[place].pop(_id(obj), None)
        else:
            self._objects[place][_id(obj)] = read


async def follow(source: Source, store: Store, place: Place, namespace: str) -> None:
    """Until cancelled; `namespace` "" means all."""
    api_version, plural, selector = place
    params = {"labelSelector": selector} if selector else {}
    async for event in source.watch(path_of(api_version, plural, namespace), params):
        store.tell(place, event)


def _id(obj: Mapping[str, Any]) -> Id:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]
