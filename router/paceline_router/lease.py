"""One process of several acts at a time: the holder of a Lease, which it renews until it stops.

Another's Lease has ended when it was not renewed for its whole duration by our own clock, as client-go judges it. The
holder's name is the pod's, so that a container that was killed goes on at once when it is started again.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from time import monotonic

from paceline_router.kube import Conflict, Json, Kube, KubeError, NotFound, path_of

_log = logging.getLogger(__name__)

DURATION_S = 15
RENEW_S = 5.0
RETRY_S = 1.0


class LeaseLost(Exception):
    """Someone else acts now, or may: this process must stop."""


class Lease:
    """One name in one namespace."""

    def __init__(self, kube: Kube, namespace: str, name: str, holder: str) -> None:
        self._kube = kube
        self._folder = path_of("coordination.k8s.io/v1", "leases", namespace)
        self._path = f"{self._folder}/{name}"
        self._name, self._holder = name, holder
        self._seen = ("", 0.0)  # its version, and when we saw that first

    async def acquire(self) -> None:
        """Returns once it is ours."""
        while True:
            try:
                if await self.renew():
                    _log.info("lease held name=%s holder=%s", self._name, self._holder)
                    return
            except KubeError as e:
                _log.warning("lease not held name=%s error=%s", self._name, e)
            await asyncio.sleep(RETRY_S)

    async def keep(self) -> None:
        """Renews it until cancelled; LeaseLost when it is another's, or could not be renewed in time."""
        renewed_s = monotonic()
        while True:
            await asyncio.sleep(RENEW_S if monotonic() - renewed_s < RENEW_S else RETRY_S)
            asked_s = monotonic()
            try:
                async with asyncio.timeout(RENEW_S):
                    if not await self.renew():
                        raise LeaseLost(f"Lease {self._name} is another's")
                renewed_s = asked_s
            except (KubeError, TimeoutError) as e:
                if monotonic() - renewed_s > DURATION_S - RENEW_S:
                    raise LeaseLost(f"Lease {self._name} could not be renewed: {e}") from e

    async def release(self) -> None:
        """Lets the next one act at once."""
        try:
            lease = await self._kube.get(self._path)
            if lease["spec"].get("holderIdentity") == self._holder:
                lease["spec"]["holderIdentity"] = ""
                await self._kube.replace(self._path, lease)
        except KubeError as e:
            _log.warning("lease not released name=%s error=%s", self._name, e)

    async def renew(self) -> bool:
        """Creates, takes over or renews it; whether it is ours now."""
        try:
            lease = await self._kube.get(self._path)
        except NotFound:
            return await self._write(None)
        version, spec = lease["metadata"]["resourceVersion"], lease.get("spec") or {}
        if version != self._seen[0]:
            self._seen = (version, monotonic())
        ended = monotonic() - self._seen[1] > spec.get("leaseDurationSeconds", DURATION_S)
        if spec.get("holderIdentity") in (self._holder, "", None) or ended:
            return await self._write(lease)
        return False

    async def _write(self, lease: Json | None) -> bool:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = (lease or {}).get("spec") or {}
        spec = {"holderIdentity": self._holder, "leaseDurationSeconds": DURATION_S, "renewTime": now}
        if before.get("holderIdentity") == self._holder:
            spec["acquireTime"] = before.get("acquireTime", now)
            spec["leaseTransitions"] = before.get("leaseTransitions", 0)
        else:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = before.get("leaseTransitions", 0) + (lease is not None)
        try:
            if lease is None:
                head = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self._name}}
                await self._kube.create(self._folder, {**head, "spec": spec})
            else:
                await self._kube.replace(self._path, {**lease, "spec": spec})
        except Conflict:
            return False
        return True
