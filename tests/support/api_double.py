"""An API server in memory for the operator's shell: objects by path, watches that tell every change, writes counted.

It knows no schemas, no field managers and no controllers: an applied manifest replaces what it said before, a merge
patch is merged. Whatever depends on more than that is tested on a real cluster.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

Json = dict[str, Any]


class ApiDouble:
    """`transport` is what an httpx client is given; `writes` are (method, path) in order."""

    def __init__(self) -> None:
        self.objects: dict[str, Json] = {}
        self.writes: list[tuple[str, str]] = []
        self.transport = httpx.MockTransport(self._handle)
        self.refused = ""  # an object with this in its path is not taken
        self.rewrite: dict[str, str] = {}  # values of applied manifests that are kept otherwise
        self._version = 0
        self._watchers: list[tuple[str, dict[str, str], asyncio.Queue[bytes]]] = []

    def put(self, path: str, obj: Json) -> Json:
        """Creates or changes, as somebody else would."""
        before = self.objects.get(path)
        self._version += 1
        obj = copy.deepcopy(obj)
        meta = obj["metadata"]
        meta.setdefault("uid", before["metadata"]["uid"] if before else f"uid-{self._version}")
        meta["resourceVersion"] = str(self._version)
        if "namespaces/" in path:
            meta.setdefault("namespace", path.split("namespaces/")[1].split("/")[0])
        self.objects[path] = obj
        self._tell("MODIFIED" if before else "ADDED", path, obj)
        return obj

    def drop(self, path: str) -> None:
        self._version += 1
        gone = self.objects.pop(path)
        gone["metadata"]["resourceVersion"] = str(self._version)
        self._tell("DELETED", path, gone)

    def paths(self, plural: str) -> list[str]:
        return sorted(path for path in self.objects if path.split("/")[-2] == plural)

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        path, method = request.url.path, request.method
        if method == "GET":
            return self._read(request, path)
        self.writes.append((method, path))
        body = json.loads(request.content)
        if self.refused and self.refused in path:
            return _refuse(422, "Invalid")
        match method:
            case "POST":
                path = f"{path}/{body['metadata']['name']}"
                return _refuse(409, "AlreadyExists") if path in self.objects else _answer(self.put(path, body))
            case "PUT":
                same = body["metadata"]["resourceVersion"] == self.objects[path]["metadata"]["resourceVersion"]
                return _answer(self.put(path, body)) if same else _refuse(409, "Conflict")
            case "DELETE":
                self.drop(path)
                return _answer({})
            case _ if "merge-patch" in request.headers["content-type"] and path.rpartition("/")[2] != "scale":
                if path not in self.objects:
                    return _refuse(404, "NotFound")
                if self._is_outdated(path, body):
                    return _refuse(409, "Conflict")
                return _answer(self.put(path, _merged(self.objects[path], body)))
            case _ if self._is_outdated(path, body):
                return _refuse(409, "Conflict")
            case _:
                return _answer(self._patch(path, body))

    def _is_outdated(self, path: str, body: Json) -> bool:
        """A change to an object that has changed since the version that it names."""
        version = (body.get("metadata") or {}).get("resourceVersion")
        live = self.objects.get(path.removesuffix("/scale"), {"metadata": {"resourceVersion": None}})
        return version not in (None, live["metadata"]["resourceVersion"])

    def _patch(self, path: str, body: Json) -> Json:
        target, _, sub = path.rpartition("/")
        if sub in ("status", "scale"):
            part = "status" if sub == "status" else "spec"
            live = self.objects[target]
            return self.put(target, {**live, part: {**live.get(part, {}), **body[part]}})
        before = self.objects.get(path)
        if before:
            body["metadata"] |= {"uid": before["metadata"]["uid"]}
            body |= {"status": before["status"]} if "status" in before else {}
        for written, kept in self.rewrite.items():
            body = json.loads(json.dumps(body).replace(json.dumps(written), json.dumps(kept)))
        if body["kind"] == "EnginePool":
            body["spec"]["replicas"] = before["spec"]["replicas"] if before else 1
        return self.put(path, body)

    def _read(self, request: httpx.Request, path: str) -> httpx.Response:
        if path.removesuffix("/scale") in self.objects:
            return _answer(self.objects[path.removesuffix("/scale")])
        if path.split("/")[-2] in self._plurals() and "watch" not in request.url.params:
            return _refuse(404, "NotFound")
        labels = dict(p.split("=") for p in request.url.params.get("labelSelector", "").split(",") if "=" in p)
        plural = path.split("/")[-1]
        if "watch" in request.url.params:
            queue: asyncio.Queue[bytes] = asyncio.Queue()
            self._watchers.append((plural, labels, queue))
            return httpx.Response(200, content=_stream(queue))
        items = [o for p, o in self.objects.items() if p.split("/")[-2] == plural and _matches(o, labels)]
        meta = {"resourceVersion": str(self._version)}
        return _answer({"kind": "List", "apiVersion": "v1", "metadata": meta, "items": copy.deepcopy(items)})

    def _plurals(self) -> set[str]:
        return {"leases", *(path.split("/")[-2] for path in self.objects)} | {
            "deployments", "services", "configmaps", "serviceaccounts", "rolebindings", "networkpolicies",
            "poddisruptionbudgets", "enginepools", "controllerrevisions", "secrets", "events",
        }  # fmt: skip

    def _tell(self, kind: str, path: str, obj: Json) -> None:
        event = json.dumps({"type": kind, "object": obj}).encode() + b"\n"
        for plural, labels, queue in self._watchers:
            if path.split("/")[-2] == plural and _matches(obj, labels):
                queue.put_nowait(event)


async def _stream(queue: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:
    while True:
        yield await queue.get()


def _merged(live: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    before = live if isinstance(live, dict) else {}
    changed = {key: _merged(before.get(key), value) for key, value in patch.items() if value is not None}
    return {key: value for key, value in before.items() if key not in patch} | changed


def _matches(obj: Json, labels: dict[str, str]) -> bool:
    return labels.items() <= (obj["metadata"].get("labels") or {}).items()


def _answer(obj: Json) -> httpx.Response:
    return httpx.Response(200, json=obj)


def _refuse(code: int, reason: str) -> httpx.Response:
    return httpx.Response(code, json={"kind": "Status", "code": code, "reason": reason, "message": reason})
