"""The informer: what watches say of our kinds, by service, and who has to look again.

Only objects that carry our labels are watched; Secrets never are. It may be behind: whoever decides from it decides the
same again once it is not. Invariant: after each event the store holds exactly what the watches told, deletions that
happened while one was broken included.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, assert_never

from paceline_router.endpoints import SERVICE_LABEL
from paceline_router.kube import Changed, Listed, path_of

from paceline_operator.kinds import KINDS, PODS, SERVICE_KIND, SERVICES, Json
from paceline_operator.manifests.meta import MANAGED_BY_LABEL, NAME_LABEL
from paceline_operator.settings import MANAGER

Id = tuple[str, str]  # namespace, name of an LLMService
POD_KIND = "Pod"
CHILDREN = f"{MANAGED_BY_LABEL}={MANAGER},{SERVICE_LABEL}"
ENGINES_AND_ROUTERS = f"{NAME_LABEL}=paceline,{SERVICE_LABEL}"
WATCHED: Mapping[str, tuple[str, str, str]] = {  # kind → apiVersion, plural, label selector
    SERVICE_KIND: (*SERVICES, ""),
    POD_KIND: (*PODS, ENGINES_AND_ROUTERS),
    **{kind: (*place, CHILDREN) for kind, place in KINDS.items()},
}


class Source(Protocol):
    """What the store needs of the Kubernetes client."""

    def watch(self, path: str, params: Mapping[str, str] | None = None) -> AsyncIterator[Listed | Changed]: ...


class Store:
    """`wake` is told each service of which something changed."""

    def __init__(self, wake: Callable[[Id], None]) -> None:
        self._wake = wake
        self._objects: dict[Id, dict[tuple[str, str], Json]] = {}  # service → (kind, name) → object
        self._of: dict[tuple[str, str, str], Id] = {}  # (namespace, kind, name) → the service that it is under
        self._unlisted = set(WATCHED)
        self.synced = asyncio.Event()  # every kind has been listed once

    def ids(self) -> list[Id]:
        """The services that exist."""
        return [i for i in self._objects if self.service(i)]

    def service(self, service: Id) -> Json | None:
        return self._objects.get(service, {}).get((SERVICE_KIND, service[1]))

    def children(self, service: Id) -> list[Json]:
        return [o for (kind, _), o in self._objects.get(service, {}).items() if kind not in (SERVICE_KIND, POD_KIND)]

    def pods(self, service: Id) -> list[Json]:
        return [o for (kind, _), o in self._objects.get(service, {}).items() if kind == POD_KIND]

    def _put(self, kind: str, obj: Json) -> None:
        obj["metadata"].pop("managedFields", None)
        service, name = _service_of(kind, obj), obj["metadata"]["name"]
        before = self._of.get((service[0], kind, name), service)
        if before != service:  # somebody gave it another service's label: the first one lacks it now
            self._drop(before, kind, name)
            self._wake(before)
        self._of[service[0], kind, name] = service
        self._objects.setdefault(service, {})[kind, name] = obj

    def _drop(self, service: Id, kind: str, name: str) -> None:
        self._of.pop((service[0], kind, name), None)
        mine = self._objects.get(service, {})
        mine.pop((kind, name), None)
        if not mine:
            self._objects.pop(service, None)

    def tell(self, kind: str, event: Listed | Changed) -> None:
        match event:
            case Listed(objects):
                self._replace(kind, objects)
            case Changed("DELETED", obj):
                self._drop(_service_of(kind, obj), kind, obj["metadata"]["name"])
                self._wake(_service_of(kind, obj))
            case Changed(_, obj):
                self._put(kind, obj)
                self._wake(_service_of(kind, obj))
            case _ as never:
                assert_never(never)

    def _replace(self, kind: str, objects: tuple[Json, ...]) -> None:
        before = {service for service, mine in self._objects.items() if any(k == kind for k, _ in mine)}
        for service in list(self._objects):
            mine = {key: obj for key, obj in self._objects[service].items() if key[0] != kind}
            if mine:
                self._objects[service] = mine
            else:
                del self._objects[service]
        self._of = {place: service for place, service in self._of.items() if place[1] != kind}
        for obj in objects:
            self._put(kind, obj)
        for service in before | {_service_of(kind, obj) for obj in objects}:
            self._wake(service)
        self._unlisted.discard(kind)
        if not self._unlisted:
            self.synced.set()


async def follow(source: Source, store: Store, kind: str, namespace: str) -> None:
    """Until cancelled; `namespace` "" means all."""
    api_version, plural, selector = WATCHED[kind]
    params = {"labelSelector": selector} if selector else {}
    async for event in source.watch(path_of(api_version, plural, namespace), params):
        store.tell(kind, event)


def _service_of(kind: str, obj: Mapping[str, Any]) -> Id:
    metadata = obj["metadata"]
    name = metadata["name"] if kind == SERVICE_KIND else (metadata.get("labels") or {}).get(SERVICE_LABEL, "")
    return metadata["namespace"], name
