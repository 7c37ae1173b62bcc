"""A thin asynchronous Kubernetes client on httpx: the only module that talks to the API server.

Objects are plain dicts, paths come from `path_of`. Every answer that is no success is a typed error. A watch never
ends: it lists, streams, resumes at the last resourceVersion it saw (bookmarks included), lists again on 410, and backs
off with jitter while the server cannot be reached. No business logic.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Self

import httpx
import orjson

from paceline_router.kube_errors import (
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    Unreachable,
    error_from,
    error_of,
)
from paceline_router.kubeconfig import Access, ConfigError, find_access

__all__ = [
    "ApiError",
    "Changed",
    "ConfigError",
    "Conflict",
    "Forbidden",
    "Gone",
    "Invalid",
    "Json",
    "Kube",
    "KubeError",
    "Listed",
    "NotFound",
    "Unreachable",
    "path_of",
]

Json = dict[str, Any]

CALL_TIMEOUT_S = 30.0
WATCH_S = 290  # the server ends a watch after this long; it is then resumed
IDLE_S = 100.0  # the server sends a bookmark about once a minute: longer silence is a dead connection
PAGE = 500

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listed:
    """All objects there are; what is not among them is gone. `version` is where a watch may go on."""

    objects: tuple[Json, ...]
    version: str


@dataclass(frozen=True, slots=True)
class Changed:
    """One change after a `Listed`."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    object: Json


def path_of(api_version: str, plural: str, namespace: str = "", name: str = "") -> str:
    """`path_of("apps/v1", "deployments", "llm", "chat")`; without a namespace: of all, or a cluster's own."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    parts = ["namespaces", namespace] if namespace else []
    return "/".join([root, *parts, plural, *([name] if name else [])])


class Kube:
    """Calls of one process. `async with Kube.connect() as kube: …`; `client` has the server as its base URL."""

    def __init__(
        self, client: httpx.AsyncClient, namespace: str = "default", *, first_delay_s: float = 0.2, most_s: float = 30.0
    ) -> None:
        self._client = client
        self.namespace = namespace
        self._first_delay_s, self._most_s = first_delay_s, most_s
        self._random = Random()

    @classmethod
    def connect(cls, access: Access | None = None) -> Self:
        """Of the pod's service account or the kubeconfig; ConfigError when there is neither."""
        access = access or find_access()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
        client = httpx.AsyncClient(
            base_url=access.server,
            verify=access.tls,
            auth=access.auth,
            timeout=CALL_TIMEOUT_S,
            limits=limits,
            trust_env=False,
        )
        return cls(client, access.namespace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> Json:
        return await self._call("GET", path)

    async def list(self, path: str, params: Mapping[str, str] | None = None) -> Listed:
        """Every page; `params` may hold labelSelector and fieldSelector."""
        objects: list[Json] = []
        more = ""
        while True:
            page = await self._call("GET", path, {**(params or {}), "limit": str(PAGE), **_only("continue", more)})
            kind, api_version = page.get("kind", "").removesuffix("List"), page.get("apiVersion", "")
            # the items of a list carry neither, and everyone who looks at an object wants both
            objects += ({"apiVersion": api_version, "kind": kind} | item for item in page.get("items") or ())
            more = page["metadata"].get("continue", "")
            if not more:
                return Listed(tuple(objects), page["metadata"].get("resourceVersion", ""))

    async def create(self, path: str, body: Json) -> Json:
        """Conflict (AlreadyExists) when it exists."""
        return await self._call("POST", path, body=body)

    async def replace(self, path: str, body: Json) -> Json:
        """PUT; Conflict when it has changed since the resourceVersion in `body`."""
        return await self._call("PUT", path, body=body)

    async def apply(self, path: str, body: Json, *, manager: str, force: bool = True) -> Json:
        """Server-side apply; `force` takes fields over from other managers. Status: `path + "/status"`."""
        params = {"fieldManager": manager, "force": str(force).lower()}
        return await self._call("PATCH", path, params, body, "application/apply-patch+yaml")

    async def merge(self, path: str, body: Json, *, manager: str = "") -> Json:
        """JSON merge patch."""
        return await self._call("PATCH", path, _only("fieldManager", manager), body, "application/merge-patch+json")

    async def set_scale(self, path: str, replicas: int, *, version: str = "", manager: str = "") -> None:
        """spec.replicas through /scale; Conflict where the object has changed since `version`, if that is given."""
        known = {"metadata": {"resourceVersion": version}} if version else {}
        await self.merge(f"{path}/scale", {**known, "spec": {"replicas": replicas}}, manager=manager)

    async def delete(self, path: str, *, uid: str = "") -> bool:
        """False when it was gone already; with `uid` only that very object."""
        body: Json = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self._call("DELETE", path, body=body)
        except NotFound:
            return False
        return True

    async def watch(self, path: str, params: Mapping[str, str] | None = None) -> AsyncGenerator[Listed | Changed, None]:
        """Listed, then each change, without end; Listed again whenever changes may have been missed."""
        version, failures = "", 0
        while True:
            try:
                if not version:
                    listed = await self.list(path, params)
                    version, failures = listed.version, 0
                    yield listed
                async for event in self._stream(path, params, version):
                    version, failures = event["object"]["metadata"]["resourceVersion"], 0
                    if event["type"] != "BOOKMARK":
                        yield Changed(event["type"], event["object"])
            except Gone:
                version = ""
            except KubeError as e:
                failures += 1
                _log.warning("watch interrupted path=%s failures=%d error=%s", path, failures, e)
            await asyncio.sleep(self._delay_s(failures))

    def _delay_s(self, failures: int) -> float:
        """Full jitter over a doubling bound; short where nothing failed, so that an empty stream cannot spin."""
        return self._random.uniform(0.1, 1.0) * min(self._most_s, self._first_delay_s * 2.0 ** min(failures, 16))

    async def _stream(self, path: str, params: Mapping[str, str] | None, version: str) -> AsyncIterator[Json]:
        """The events of one watch request; Gone, or another KubeError, where it breaks off."""
        query = {
            **(params or {}),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_S),
        }
        timeout = httpx.Timeout(CALL_TIMEOUT_S, read=IDLE_S)
        try:
            async with self._client.stream("GET", path, params=query, timeout=timeout) as answer:
                if answer.is_error:
                    await answer.aread()
                    raise error_of(answer)
                rest = b""
                async for data in answer.aiter_bytes():
                    *lines, rest = (rest + data).split(b"\n")
                    for event in map(orjson.loads, filter(None, lines)):
                        if event["type"] == "ERROR":
                            raise error_from(event["object"], 500)
                        yield event
        except (httpx.HTTPError, OSError) as e:
            raise Unreachable(f"{path}: {type(e).__name__} {e}".rstrip()) from e
        except orjson.JSONDecodeError as e:
            raise Unreachable(f"{path}: not a watch event: {e}") from e

    async def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> Json:
        content = None if body is None else orjson.dumps(body)
        headers = {"accept": "application/json"} | ({"content-type": content_type} if content else {})
        try:
            answer = await self._client.request(method, path, params=params, content=content, headers=headers)
            if answer.is_error:
                raise error_of(answer)
            value = orjson.loads(answer.content)
        except (httpx.HTTPError, OSError) as e:  # OSError: the token's file
            raise Unreachable(f"{method} {path}: {type(e).__name__} {e}".rstrip()) from e
        except orjson.JSONDecodeError as e:
            raise Unreachable(f"{method} {path}: the answer is not JSON") from e
        return value if isinstance(value, dict) else {}


def _only(name: str, value: str) -> dict[str, str]:
    return {name: value} if value else {}
