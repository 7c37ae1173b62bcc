"""Follows the EndpointSlices of a service, so that the router knows its replicas while they come and go.

The watch (kube.py) resumes, lists again and backs off by itself; while the API server is away, the last known replicas
stay and their probes say which are well. Invariant: after each event the members are exactly what the slices say.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from typing import Protocol, assert_never

from paceline_api.config import KubernetesDiscovery

from paceline_router import endpoints
from paceline_router.endpoints import POOL_LABEL, SERVICE_LABEL, Slices
from paceline_router.kube import Changed, Listed, path_of
from paceline_router.members import Membership

_log = logging.getLogger(__name__)


class Source(Protocol):
    """What discovery needs of the Kubernetes client."""

    def watch(self, path: str, params: Mapping[str, str] | None = None) -> AsyncIterator[Listed | Changed]: ...


async def follow(source: Source, discovery: KubernetesDiscovery, membership: Membership) -> None:
    """Until cancelled."""
    path = path_of("discovery.k8s.io/v1", "endpointslices", discovery.namespace)
    selector = {"labelSelector": f"{SERVICE_LABEL}={discovery.service},{POOL_LABEL}"}
    slices: Slices = {}
    async for event in source.watch(path, selector):
        match event:
            case Listed(objects):
                slices = endpoints.listed(objects)
                _log.info("discovery listed slices=%d replicas=%d", len(slices), len(endpoints.members(slices)))
            case Changed(type_, object_):
                slices = endpoints.changed(slices, type_ == "DELETED", object_)
            case _ as never:
                assert_never(never)
        membership.apply(endpoints.members(slices))
