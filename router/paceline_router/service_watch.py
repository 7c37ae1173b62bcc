"""Follows the service's EnginePools and its LLMService: which pods are removed first, and what was decided on sizes.

Neither is needed to serve. While the API server is away the last known stays; where the router may not read them, as
under an older chart, that is logged once and asked again from time to time. Invariant: after each event the membership
and the listener know exactly what the objects say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, assert_never

from paceline_api.config import KubernetesDiscovery
from paceline_api.schema import API_VERSION

from paceline_router.console.scaling import FORBIDDEN, GONE, Scaling, scaling_of
from paceline_router.endpoints import SERVICE_LABEL, drained_first
from paceline_router.kube import Changed, Forbidden, KubeError, Listed, path_of
from paceline_router.members import Membership

_log = logging.getLogger(__name__)

ASK_AGAIN_S = 300.0  # after a refusal


class Source(Protocol):
    """What these need of the Kubernetes client."""

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> Listed: ...
    def watch(self, path: str, params: Mapping[str, str] | None = None) -> AsyncIterator[Listed | Changed]: ...


async def follow_pools(source: Source, discovery: KubernetesDiscovery, membership: Membership) -> None:
    """Tells the membership what the pools' drain-first annotations name; until cancelled."""
    path = path_of(API_VERSION, "enginepools", discovery.namespace)
    selector = {"labelSelector": f"{SERVICE_LABEL}={discovery.service}"}
    await _until_allowed(source, path, selector, "pods to drain first are not known")
    named: dict[str, frozenset[str]] = {}
    async for event in source.watch(path, selector):
        match event:
            case Listed(objects):
                named = {_pool(pool): drained_first(pool) for pool in objects}
            case Changed("DELETED", pool):
                named.pop(_pool(pool), None)
            case Changed(_, pool):
                named[_pool(pool)] = drained_first(pool)
            case _ as never:
                assert_never(never)
        membership.drain_first(dict(named))


async def follow_service(source: Source, discovery: KubernetesDiscovery, tell: Callable[[Scaling], None]) -> None:
    """Tells what the LLMService's status says; until cancelled."""
    path = path_of(API_VERSION, "llmservices", discovery.namespace)
    selector = {"fieldSelector": f"metadata.name={discovery.service}"}
    await _until_allowed(source, path, selector, "decisions are not shown", lambda: tell(FORBIDDEN))
    async for event in source.watch(path, selector):
        match event:
            case Listed(objects):
                tell(scaling_of(objects[0]) if objects else GONE)
            case Changed(type_, service):
                tell(GONE if type_ == "DELETED" else scaling_of(service))
            case _ as never:
                assert_never(never)


async def _until_allowed(
    source: Source,
    path: str,
    params: Mapping[str, str],
    consequence: str,
    on_refusal: Callable[[], None] = lambda: None,
) -> None:
    """Until a list is not refused; any other failure is the watch's to sit out."""
    refused = False
    while True:
        try:
            await source.list(path, params)
        except Forbidden as e:
            if not refused:
                _log.warning("not allowed, %s: %s", consequence, e)
                on_refusal()
            refused = True
            await asyncio.sleep(ASK_AGAIN_S)
        except KubeError:
            return
        else:
            return


def _pool(pool: Mapping[str, Any]) -> str:
    return str((pool.get("spec") or {}).get("pool", ""))
