"""What the autoscaler writes: an EnginePool's /scale and annotations, and its part of the LLMService's status.

A size is written only where it is still the one that was decided on: what somebody set meanwhile stays. That it is
ours is noted before, and so are the pods to remove; each write names the version that it changes. Invariant: nothing
else is ever written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

from paceline_api.schema import API_VERSION

from paceline_router.autoscale.signals import Change
from paceline_router.endpoints import DRAIN_FIRST
from paceline_router.kube import Conflict, Kube, KubeError, NotFound, path_of
from paceline_router.scaling.holds import annotations_of
from paceline_router.scaling.report import Json
from paceline_router.scaling.steward import Task, Turn
from paceline_router.scaling.views import Marks, PoolView, ServiceView

_log = logging.getLogger(__name__)

MANAGER = "paceline-autoscaler"


class Actuator:
    """Writes of one process."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def act(self, turn: Turn) -> tuple[Change, ...]:
        """The changes that were made; what could not be is said in the log, and decided again at the next tick."""
        done = []
        for task in turn.tasks:
            try:
                if await self._resize(turn.service, task):
                    done.append(task.change)
            except KubeError as e:
                _log.warning("not resized %s pool=%s error=%s", _name(turn.service), task.change.pool, e)
        for pool in turn.service.pools:
            annotations = annotations_of(turn.marks[pool.name]) if pool.name in turn.marks else {}
            if pool.name in turn.forget:
                annotations |= {DRAIN_FIRST: None}
            if annotations:
                await self._note(turn.service, pool, annotations)
        return tuple(done)

    async def write_status(self, service: ServiceView, part: Json) -> bool:
        """Whether it was written."""
        body = {"apiVersion": API_VERSION, "kind": "LLMService", "metadata": {"name": service.name}, "status": part}
        path = path_of(API_VERSION, "llmservices", service.namespace, service.name)
        try:
            await self._kube.apply(f"{path}/status", body, manager=MANAGER)
        except NotFound:
            return False  # it was deleted meanwhile
        except KubeError as e:
            _log.warning("status not written %s error=%s", _name(service), e)
            return False
        return True

    async def _resize(self, service: ServiceView, task: Task) -> bool:
        change, path = task.change, _pool_path(service, task.change.pool)
        scale = await self._kube.get(f"{path}/scale")
        found = (scale.get("spec") or {}).get("replicas", 0)
        if found != change.before:
            _log.warning("size changed meanwhile %s pool=%s replicas=%s", _name(service), change.pool, found)
            return False
        both = annotations_of(Marks(frozenset({change.before, change.after})))
        draining = {DRAIN_FIRST: ",".join(task.drain_first)} if task.drain_first else {}
        try:
            noted = await self._change(path, _version(scale), {"metadata": {"annotations": {**both, **draining}}})
            scaled = await self._change(f"{path}/scale", _version(noted), {"spec": {"replicas": change.after}})
        except Conflict:
            _log.info("pool changed meanwhile %s pool=%s", _name(service), change.pool)
            return False
        after = annotations_of(Marks(frozenset({change.after})))
        with suppress(KubeError):  # the next tick notes it
            await self._change(path, _version(scaled), {"metadata": {"annotations": after}})
        _log.info(
            "resized %s pool=%s from=%d to=%d binding=%s why=%r",
            *(_name(service), change.pool, change.before, change.after, change.binding, change.why),
        )
        return True

    async def _note(self, service: ServiceView, pool: PoolView, annotations: Mapping[str, str | None]) -> None:
        """On the very version that was judged; where that has gone, the next tick judges again."""
        try:
            await self._change(_pool_path(service, pool.name), pool.version, {"metadata": {"annotations": annotations}})
        except Conflict:
            pass
        except KubeError as e:
            _log.warning("not noted %s pool=%s error=%s", _name(service), pool.name, e)

    async def _change(self, path: str, version: str, patch: Json) -> Json:
        """Conflict where the object has changed since `version`."""
        metadata = {**patch.get("metadata", {}), "resourceVersion": version}
        return await self._kube.merge(path, {**patch, "metadata": metadata}, manager=MANAGER)


def _version(obj: Json) -> str:
    version: str = obj["metadata"]["resourceVersion"]
    return version


def _pool_path(service: ServiceView, pool: str) -> str:
    return path_of(API_VERSION, "enginepools", service.namespace, f"{service.name}-{pool}")


def _name(service: ServiceView) -> str:
    return f"namespace={service.namespace} service={service.name}"
