"""Brings the cluster in line with what is desired of one service: writes what differs, deletes what is unwanted.

An object that the store does not know is looked up first: somebody else's of the same name is never touched, and
reported. Sizes go through /scale only. Invariant: where nothing differs, nothing is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from secrets import token_urlsafe

from paceline_router.kube import ApiError, Conflict, Kube, KubeError, NotFound, path_of

from paceline_operator import kinds
from paceline_operator.deletion_cost import DELETION_COST, Cost
from paceline_operator.desire import Desired
from paceline_operator.differ import desired_of, must_write, stamped
from paceline_operator.kinds import PODS, SERVICES, Json
from paceline_operator.manifests.engine_pool import pool_name
from paceline_operator.manifests.meta import Owner
from paceline_operator.manifests.secret import token_secret
from paceline_operator.observe import Observed
from paceline_operator.settings import MANAGER
from paceline_operator.status import Refused, Taken, own_part

_log = logging.getLogger(__name__)
TOKEN_BYTES = 32
FINAL = frozenset({400, 403, 422})  # refusals that are about the object, not about the moment


class StillThere(KubeError):
    """It passes: what is left of a deleted service of the same name goes by itself."""


class Applier:
    """Writes of one process. `wrote` counts them by kind."""

    def __init__(self, kube: Kube, wrote: Callable[[str], None]) -> None:
        self._kube = kube
        self._wrote = wrote
        self._written: dict[tuple[str, str, str], tuple[str, str]] = {}  # what a write left, where it still differs

    async def bring(self, owner: Owner, desired: Desired, seen: Observed) -> list[Taken | Refused]:
        """What cannot be written; the rest is as desired when this returns. Other KubeErrors: not all of it is."""
        missing: list[Taken | Refused] = []
        for cost in desired.costs:
            await self._mark(owner, cost)
        for manifest in map(stamped, desired.manifests):
            kind, name = kinds.key_of(manifest)
            live = seen.get(kind, name)
            if must_write(manifest, live) and not self._is_vain(owner, manifest, live):
                try:
                    answer = await self._write(owner, manifest, known=live is not None)
                except ApiError as e:
                    if e.status not in FINAL:
                        raise
                    missing.append(Refused(kind, name, e.message or str(e)))
                    continue
                if answer is None:
                    missing.append(Taken(kind, name))
                    continue
                self._remember(owner, manifest, answer)
                live = answer
            if kind == "EnginePool" and live is not None and _size(seen.get(kind, name)) in (None, _size(live)):
                await self._scale(owner, live, desired.sizes[manifest["spec"]["pool"]])  # else judged again, when seen
        for kind, name in desired.unwanted:
            await self._delete(owner, kind, seen.objects[kind, name])
        return missing

    async def create_token(self, owner: Owner) -> None:
        """Once: a Secret that is there already stays, unread."""
        path = path_of("v1", "secrets", owner.namespace)
        try:
            await self._kube.create(path, token_secret(owner, token_urlsafe(TOKEN_BYTES)))
        except Conflict:
            return
        self._note("create", "Secret", owner.namespace, owner.token_secret)

    async def write_status(self, owner: Owner, live: Json, status: Json) -> None:
        """Of the service, if our part of it differs."""
        if own_part(live.get("status") or {}) == own_part(status):
            return
        path = path_of(*SERVICES, owner.namespace, owner.name)
        body = {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": {"name": owner.name}}
        await self._kube.apply(f"{path}/status", {**body, "status": status}, manager=MANAGER)
        self._note("status", live["kind"], owner.namespace, owner.name)

    async def write_pool_status(self, owner: Owner, pool: Json, status: Json) -> None:
        live = pool.get("status") or {}
        if all(live.get(name) == value for name, value in status.items()):
            return
        name = pool["metadata"]["name"]
        body = {"apiVersion": pool["apiVersion"], "kind": pool["kind"], "metadata": {"name": name}, "status": status}
        path = kinds.path("EnginePool", owner.namespace, name)
        await self._kube.apply(f"{path}/status", body, manager=MANAGER)
        self._note("status", "EnginePool", owner.namespace, name)

    async def _write(self, owner: Owner, manifest: Json, *, known: bool) -> Json | None:
        """The object as it is now; None where it is somebody else's."""
        kind, name = kinds.key_of(manifest)
        path = kinds.path(kind, owner.namespace, name)
        if not known:
            try:
                live = await self._kube.get(path)
            except NotFound:
                pass  # nobody's; should somebody make one meanwhile, an unforced apply runs into their fields
            else:
                if owner.replaces(live):
                    raise StillThere(f"{kind} {name} is of an earlier service of this name, and not yet collected")
                if not owner.owns(live):
                    return None
                known = True
        try:
            answer = await self._kube.apply(path, manifest, manager=MANAGER, force=known)
        except Conflict as e:
            if known:
                raise
            _log.warning("not ours kind=%s name=%s error=%s", kind, name, e)
            return None
        self._note("apply", kind, owner.namespace, name)
        return answer

    async def _scale(self, owner: Owner, live: Json, replicas: int) -> None:
        if live["spec"].get("replicas") == replicas:
            return
        name = pool_name(owner, live["spec"]["pool"])
        path, version = kinds.path("EnginePool", owner.namespace, name), live["metadata"]["resourceVersion"]
        await self._kube.set_scale(path, replicas, version=version, manager=MANAGER)
        self._note("scale", "EnginePool", owner.namespace, name)

    async def _mark(self, owner: Owner, cost: Cost) -> None:
        body = {"metadata": {"annotations": {DELETION_COST: cost.value}}}
        try:
            await self._kube.merge(path_of(*PODS, owner.namespace, cost.pod), body, manager=MANAGER)
        except NotFound:
            return  # it is gone already
        self._note("mark", "Pod", owner.namespace, cost.pod)

    async def _delete(self, owner: Owner, kind: str, live: Json) -> None:
        name = live["metadata"]["name"]
        if live["metadata"].get("deletionTimestamp"):
            return
        await self._kube.delete(kinds.path(kind, owner.namespace, name), uid=live["metadata"]["uid"])
        self._note("delete", kind, owner.namespace, name)

    def _is_vain(self, owner: Owner, manifest: Json, live: Json | None) -> bool:
        """That very write has been made, and the API server keeps some value otherwise than it was written."""
        return live is not None and self._written.get(_place(owner, manifest)) == (_state(live), desired_of(manifest))

    def _remember(self, owner: Owner, manifest: Json, answer: Json) -> None:
        if must_write(manifest, answer):
            self._written[_place(owner, manifest)] = (_state(answer), desired_of(manifest))
        else:
            self._written.pop(_place(owner, manifest), None)

    def _note(self, verb: str, kind: str, namespace: str, name: str) -> None:
        self._wrote(kind)
        _log.info("%s kind=%s namespace=%s name=%s", verb, kind, namespace, name)


def _size(pool: Json | None) -> int | None:
    return pool["spec"].get("replicas") if pool else None


def _place(owner: Owner, manifest: Json) -> tuple[str, str, str]:
    return (owner.namespace, *kinds.key_of(manifest))


def _state(live: Json) -> str:
    """Changes with every change of the spec, and where the kind counts them, with nothing else."""
    metadata = live["metadata"]
    return f"{metadata.get('uid')} {metadata.get('generation') or metadata.get('resourceVersion')}"
